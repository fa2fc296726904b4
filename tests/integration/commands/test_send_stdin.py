"""`operations send -`: lines from a stdin that this user cannot open again by its name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from support.requires import ROOT

LINE = b'{"operation": "dance", "businessId": "smile", "locationId": "berlin"}\n'
SETTINGS = {"AWS_REGION": "eu-west-1", "KINESIS_STREAM_NAME": "resources-operations", "PYTHONPATH": str(ROOT)}


def send(file: str, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simplu_worker", "operations", "send", file],
        stdin=stdin,
        env={"PATH": os.environ["PATH"]} | SETTINGS,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow(2)
def test_send_reads_a_stdin_that_cannot_be_opened_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LINE)
        ours.shutdown(socket.SHUT_WR)
        done = send("-", theirs.fileno())
    assert (done.returncode, done.stderr.splitlines()[0][:8]) == (1, "line 1: "), done.stderr
    assert "nothing was sent" in done.stderr


@pytest.mark.slow(2)
def test_file_that_cannot_be_read_is_named() -> None:
    done = send("/nowhere.jsonl")
    assert (done.returncode, done.stderr[:40]) == (1, "FILE: /nowhere.jsonl cannot be read: No "), done.stderr
