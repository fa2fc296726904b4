"""The programs beside this file, faults and benchmarks, on a small scale; by hand each runs at full size."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.postgres.standby import COPY_PROGRAM, can_copy
from support.requires import require

from simplu_local.postgres.server import find_postgres_bin
from simplu_local.processes.loopback import StackError
from simplu_local.processes.watchdog import running_processes, with_descendants

STACK_READY_S = 60.0
STACK_END_S = 60.0
RUN_S = 540.0  # of a slow machine; less than `faulthandler_timeout`, which ends all tests
KEPT = 6000  # of what a program printed: its end
nightly = pytest.mark.nightly


def run_program(module: str, *arguments: str) -> str:
    """Run `python -m module`; return what it printed on stdout. A failure shows the end of what it printed."""
    argv = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == 0, done.stdout[-KEPT:] + done.stderr[-KEPT:]
    return done.stdout


@contextmanager
def running_stack(env_file: Path) -> Iterator[subprocess.Popen[bytes]]:
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


def require_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        require("IPv6 on loopback", found=False, how="sysctl net.ipv6.conf.lo.disable_ipv6=0")


def require_standbys() -> None:
    try:
        folder = find_postgres_bin()
    except StackError as exc:
        require("a Postgres server", found=False, how=str(exc))
    require(COPY_PROGRAM, found=can_copy(folder), how="install simplu-worker[local]")


@pytest.mark.slow(20)
def test_worker_that_is_killed_twice_applies_all_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres, AWS, Citrus and the worker listen on ::1 alone; SIGTERM ends with 0, and no process is left."""
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


@pytest.mark.slow(40)
def test_orders_leave_no_dead_letter_in_a_rolling_restart(tmp_path: Path) -> None:
    with running_stack(tmp_path / "stack.env"):
        small = ("--events", "600", "--groups", "100", "--rate", "40")
        run_program("acceptance.orders", "--env-file", str(tmp_path / "stack.env"), *small)


# Each with its options, and a pattern of what it prints.
PROGRAMS = {
    "moving": ("--rows 5000 --moves 2 --kill --seed 3 --control 5", "mover killed"),
    "upgrading": ("--shards 2 --rate 100 --seconds 1.5", ""),
    "adopting": ("--rows 10000 --kills 1", ""),
    "importing": (
        "--restaurants 5 --orders 20 --follow",
        r"cut over in[^$]*rows that differ, operations lost, done twice or dead: nothing",
    ),
}
FOR_THE_NIGHT = {"adopting", "importing"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=nightly if name in FOR_THE_NIGHT else pytest.mark.slow(40)) for name in PROGRAMS]
)
def test_program_finds_no_difference(name: str) -> None:
    options, printed = PROGRAMS[name]
    assert re.search(printed, run_program(f"acceptance.{name}", *options.split()))


@pytest.mark.slow(40)
def test_way_back_is_equal_after_kills_a_move_and_a_fail_over() -> None:
    require_standbys()
    small = "--operations 600 --restaurants 3 --rate 60 --kill-every 2"
    assert "differences: none" in run_program("acceptance.exporting", *small.split())


@pytest.mark.slow(40)
def test_feed_is_complete_through_moves_kills_and_fail_overs() -> None:
    require_standbys()
    small = "--moves 2 --fail-overs 1 --shards 2 --rate 30 --kill-every 10 --hang-every 0 --outage 2"
    run_program("acceptance.feeding", *small.split())


@nightly
def test_moves_lose_nothing_when_a_primary_is_killed_on_the_way() -> None:
    options = "--rows 5000 --moves 2 --fail-over --seed 2 --control 5"
    out = run_program("acceptance.moving", *options.split())
    assert out.count("a shard failed over on the way") == 2


@pytest.mark.slow(60)
def test_promises_are_kept_beside_kills_cuts_moves_and_promotions(tmp_path: Path) -> None:
    require_standbys()
    nemeses = "kill,half-answered postgres,move,promote stale"
    small = ("--minutes", "0", "--operations", "300", "--rate", "25", "--nemeses", nemeses, "--keep", str(tmp_path))
    run_program("faults.__main__", *small)
    lines = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    assert {"moved", "promoted"} <= {line["what"] for line in lines}


@nightly
def test_worker_goes_on_for_others_when_a_shard_is_in_trouble() -> None:
    small = "--troubles slow,disk --seconds 2 --rate 100 --shards 3 --stream-shards 4"
    # Whether they go on at all; how well is for a machine that does nothing else.
    loose = "--p99-ratio 50 --rate-ratio 0.3 --first-seconds 30 --last-seconds 60"
    answer = json.loads(run_program("benchmarks.isolation", *small.split(), *loose.split(), "--json"))
    held = {run["trouble"]: run["held"] for run in answer["runs"]}
    assert all(held.values()), f"a trouble that held nothing up was none: {held}"
    require("every trouble", found=not answer["skipped"], how=str(answer["skipped"]))


@nightly
def test_benchmark_measures_a_worker_beside_the_bare_loop(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    small = ("--quick", "--only", "rates", "--who", "worker", "bare loop", "--records", "40000", "--seconds", "4")
    run_program("benchmarks.throughput", *small, "--json", str(figures))
    runs = json.loads(figures.read_text())["runs"]
    assert {one["who"] for one in runs} == {"worker", "bare loop"}
    assert all(one["operations"] > 0 and one["clientUs"] > 0 and one["serverUs"] > 0 for one in runs)
    assert all(one["walBytes"] > 100 and one["diskBytes"] > 100 for one in runs), runs
