"""`operations send -`: lines from a stdin that this user cannot open again by its name, and files it may not read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support.requires import ROOT

LINE = b'{"operation": "dance", "businessId": "smile", "locationId": "berlin"}\n'
SETTINGS = {"AWS_REGION": "eu-west-1", "KINESIS_STREAM_NAME": "resources-operations", "PYTHONPATH": str(ROOT)}
OTHER_USER: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []}


def send(file: str, stdin: int | IO[bytes] | None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command; nothing is sent, as the line is no operation."""
    command = [sys.executable, "-m", "simplu_worker", "operations", "send", file]
    env = {"PATH": os.environ["PATH"]} | SETTINGS
    return subprocess.run(
        command, stdin=stdin, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.fixture
def piped() -> Iterator[IO[bytes]]:
    """Give the reading end of a pipe with LINE, of the user who runs the tests."""
    reader, writer = os.pipe()
    os.write(writer, LINE)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        yield file


def is_readable_to_all(path: str) -> bool:
    """Return whether another user can run the Python at *path*, and import from the repository."""
    probe = [path, "-c", "import simplu_worker.cli"]
    return subprocess.run(probe, cwd=ROOT, capture_output=True, check=False, **OTHER_USER).returncode == 0


def assert_read(done: subprocess.CompletedProcess[str]) -> None:
    """Assert that the line was read and judged."""
    assert (done.returncode, done.stderr.splitlines()[0][:8]) == (1, "line 1: "), done.stderr
    assert "nothing was sent" in done.stderr


def test_send_reads_a_pipe(piped: IO[bytes]) -> None:
    """As `cat FILE | simplu-worker operations send -` does."""
    assert_read(send("-", piped))


def test_send_reads_a_stdin_that_cannot_be_opened_again() -> None:
    """A socket has no name to be opened by; a pipe of another user may not be."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LINE)
        ours.shutdown(socket.SHUT_WR)
        assert_read(send("-", theirs.fileno()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_send_reads_a_pipe_of_another_user(piped: IO[bytes]) -> None:
    """As after `sudo -u`."""
    if not is_readable_to_all(sys.executable):
        pytest.skip("another user may not read this checkout")
    assert_read(send("-", piped, **OTHER_USER))


def test_send_names_a_file_that_the_user_may_not_read(tmp_path: Path) -> None:
    """And the way around it."""
    file = tmp_path / "operations.jsonl"
    file.write_bytes(LINE)
    file.chmod(0)
    options = OTHER_USER if os.geteuid() == 0 else {}
    if options and not is_readable_to_all(sys.executable):
        pytest.skip("another user may not read this checkout")
    done = send(str(file), None, **options)
    assert done.returncode == 1
    expected = "FILE: expected a file that this user may read, got "
    assert done.stderr.startswith(f"{expected}{file}; give the user the right, or pipe the file in and name it -")


def test_send_names_a_closed_stdin() -> None:
    """As after `<&-`."""
    command = f"{sys.executable} -m simplu_worker operations send - <&-"
    env = {"PATH": os.environ["PATH"]} | SETTINGS
    done = subprocess.run(["sh", "-c", command], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:43]) == (1, "FILE: expected JSON lines on stdin, got a c"), done.stderr
