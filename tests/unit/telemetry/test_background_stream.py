"""The stream of the log: whoever writes goes on, whatever becomes of the descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from simplu_worker.telemetry.background_stream import WAITING_MAX_BYTES, BackgroundStream

PATIENCE_S = 60.0
PIPE_MAX_BYTES = 131_072  # that the system keeps


class Pipe:
    """A pipe that nobody reads until a test does, with a stream that writes to it."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.file: TextIO = os.fdopen(writing, "w", encoding="utf-8")
        self.drops: list[int] = []
        self.told: list[int] = []
        self.stream = BackgroundStream(self.file, on_drop=self.drops.append, on_recovery=self.told.append)

    def read_until(self, end: bytes) -> bytes:
        """Return all up to *end*, which some line has."""
        text = b""
        while end not in text:
            text += os.read(self.reading, 65536)
        return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Open a pipe; at the end nobody reads it, and its thread has written or dropped everything."""
    opened = Pipe()
    yield opened
    os.close(opened.reading)
    assert opened.stream.drain(within_s=PATIENCE_S)
    opened.file.close()


def test_stream_writes_all_in_order_when_the_descriptor_takes_them(pipe: Pipe) -> None:
    for number in range(100):
        pipe.stream.write(f"line {number} ü\n")
    assert pipe.stream.drain(within_s=PATIENCE_S)
    assert pipe.read_until(b"line 99").decode() == "".join(f"line {number} ü\n" for number in range(100))
    assert pipe.drops == []


def test_stream_drops_what_finds_no_room_and_goes_on_when_it_is_read_again(pipe: Pipe) -> None:
    line = "x" * 999 + "\n"
    count = 2 * WAITING_MAX_BYTES // len(line)
    for _ in range(count):
        pipe.stream.write(line)
    dropped = len(pipe.drops)
    kept_bytes = (count - dropped) * len(line)
    assert 0.9 * WAITING_MAX_BYTES < kept_bytes < WAITING_MAX_BYTES + PIPE_MAX_BYTES
    assert not pipe.stream.drain(within_s=0.01)

    written = b""
    while written.count(b"\n") < count - dropped:
        written += os.read(pipe.reading, 65536)
    assert set(written.decode().splitlines(keepends=True)) == {line}
    assert pipe.stream.drain(within_s=PATIENCE_S)
    assert pipe.told == sorted(pipe.told)  # more than once where the pipe took a line between two that were dropped
    assert pipe.told[-1] == dropped


def test_stream_drops_lines_when_its_pipe_is_closed() -> None:
    pipe = Pipe()
    os.close(pipe.reading)
    for _ in range(3):
        pipe.stream.write("two\nlines\n")
    assert pipe.stream.drain(within_s=PATIENCE_S)
    pipe.file.close()
    assert (pipe.drops, pipe.told) == ([2, 2, 2], [])


def test_stream_waits_for_room_when_its_descriptor_is_non_blocking(pipe: Pipe) -> None:
    os.set_blocking(pipe.file.fileno(), False)
    text = "y" * 300_000 + "\n"
    pipe.stream.write(text)
    assert pipe.read_until(b"\n").decode() == text
    assert pipe.drops == []
