"""The worker from outside: killed in the middle, started again, and nothing lost, twice or out of order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from acceptance.programs import run_program
from support.network.ipv6 import require_ipv6

from simplu_local.processes.watchdog import running_processes, with_descendants

STACK_READY_S = 60.0
STACK_END_S = 60.0


@contextmanager
def running_stack(env_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `simplu-worker stack` as a process of its own, and end it as Ctrl-C would."""
    argv = [sys.executable, "-m", "simplu_worker", "stack", "--env-file", str(env_file)]
    log_path = env_file.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + STACK_READY_S
        while not env_file.exists():
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=STACK_END_S)
    assert process.returncode == 0, log_path.read_text()


@pytest.mark.slow(20)
def test_worker_applies_everything_exactly_once_over_ipv6_when_killed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two kill -9 every row, outcome and dead letter is right, SIGTERM ends with 0, and no process is left.

    Postgres, AWS, Citrus and the worker listen on ::1, and on no address of IPv4.
    """
    require_ipv6()
    monkeypatch.setenv("STACK_HOST", "::1")
    env_file = tmp_path / "stack.env"
    with running_stack(env_file) as stack:
        text = env_file.read_text()
        assert text.count("[::1]:") > 10
        assert "127.0.0.1" not in text
        options = ("--operations", "800", "--rate", "100", "--late-tenants", "2", "--kills", "2", "--timeout", "90")
        run_program("acceptance.blackbox", "--env-file", str(env_file), *options)
        family = with_descendants([stack.pid], running_processes())
    assert family & {process.pid for process in running_processes()} == set()
