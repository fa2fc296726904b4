"""`operations send -`: lines from a stdin that this user cannot open again by its name, and files it may not read."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from support.requires import ROOT

LINE = b'{"operation": "dance", "businessId": "smile", "locationId": "berlin"}\n'
SETTINGS = {"AWS_REGION": "eu-west-1", "KINESIS_STREAM_NAME": "resources-operations", "PYTHONPATH": str(ROOT)}
NOBODY = 65_534
# As another user the interpreter itself may be out of reach, so all is imported before.
READ_AS_NOBODY = f"""
import os, sys
from pathlib import Path
from simplu_worker.commands.stream.send import read_lines
from simplu_worker.errors import WorkerError
if os.geteuid() == 0:
    os.setuid({NOBODY})
try:
    sys.stdout.buffer.write(read_lines(Path(sys.argv[1]) if sys.argv[1:] else None))
except WorkerError as exc:
    sys.exit(str(exc))
"""


def run(*command: str, stdin: int | IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with *command* to its end."""
    env = {"PATH": os.environ["PATH"]} | SETTINGS
    return subprocess.run(
        [sys.executable, *command],
        stdin=stdin,
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def send(stdin: int | IO[bytes]) -> subprocess.CompletedProcess[str]:
    """Run the command; nothing is sent, as the line is no operation."""
    return run("-m", "simplu_worker", "operations", "send", "-", stdin=stdin)


@pytest.fixture
def piped() -> Iterator[IO[bytes]]:
    """Give the reading end of a pipe with LINE, of the user who runs the tests."""
    reader, writer = os.pipe()
    os.write(writer, LINE)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        yield file


def assert_read(done: subprocess.CompletedProcess[str]) -> None:
    """Assert that the line was read and judged."""
    assert (done.returncode, done.stderr.splitlines()[0][:8]) == (1, "line 1: "), done.stderr
    assert "nothing was sent" in done.stderr


@pytest.mark.slow(0.5)
def test_send_reads_a_pipe(piped: IO[bytes]) -> None:
    assert_read(send(piped))


@pytest.mark.slow(2)
def test_send_reads_a_stdin_that_cannot_be_opened_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LINE)
        ours.shutdown(socket.SHUT_WR)
        assert_read(send(theirs.fileno()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.slow(2)
def test_pipe_of_another_user_is_read(piped: IO[bytes]) -> None:
    done = run("-c", READ_AS_NOBODY, stdin=piped)
    assert (done.stdout.encode(), done.stderr) == (LINE, "")


@pytest.mark.slow(2)
def test_file_that_the_user_may_not_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "operations.jsonl"
    file.write_bytes(LINE)
    file.chmod(0)
    done = run("-c", READ_AS_NOBODY, str(file))
    expected = (
        f"FILE: expected a file that this user may read, got {file}; give the user the right, or pipe the file in"
    )
    assert (done.returncode, done.stderr) == (1, f"{expected} and name it -\n")


@pytest.mark.slow(2)
def test_send_names_a_closed_stdin() -> None:
    command = f"{shlex.quote(sys.executable)} -m simplu_worker operations send - <&-"
    env = {"PATH": os.environ["PATH"]} | SETTINGS
    done = subprocess.run(["sh", "-c", command], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:43]) == (1, "FILE: expected JSON lines on stdin, got a c"), done.stderr
