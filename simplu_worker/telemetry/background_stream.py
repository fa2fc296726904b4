"""Write lines to stdout or stderr from a thread of its own, so that a full disk or an unread pipe stops nothing else.

A write to a pipe that nobody reads never returns, and making the descriptor non-blocking would make it so for every
process that shares it. Therefore a thread writes, and whoever has a line puts it into a queue of bounded size. A line
that finds no room, or that the system refuses, is dropped and counted. The queue has no lock of ours: the garbage
collector may run a `__del__` that logs in either thread at any instruction.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, TextIO

WAITING_MAX_BYTES: Final = 1_048_576
RETRY_S: Final = 1.0  # after a refused line: the next ones wait, and some of them outlast a short trouble


class BackgroundStream(io.TextIOBase):
    """A text stream to the descriptor of *stream*, whose `write` never blocks and never fails.

    *on_drop* is called with the number of lines of each drop, in whichever thread; *on_recovery* in the writing thread
    with the number of all lines dropped so far, after a line was written again.
    """

    def __init__(self, stream: TextIO, *, on_drop: Callable[[int], None], on_recovery: Callable[[int], None]) -> None:
        self._stream = stream  # keeps the descriptor open
        self._descriptor = stream.fileno()
        self._on_drop = on_drop
        self._on_recovery = on_recovery
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._put_bytes = 0
        self._done_bytes = 0  # changed by the writing thread alone
        self._dropped = 0
        self._is_line_cut = False
        self._ending = threading.Event()
        threading.Thread(target=self._write_all, name=f"writer of {stream.name}", daemon=True).start()

    def __repr__(self) -> str:
        waiting = self._put_bytes - self._done_bytes
        return f"BackgroundStream({self._stream.name}, {waiting} bytes waiting, {self._dropped} lines dropped)"

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Have *text* written, or drop it where too much is waiting."""
        data = text.encode(self._stream.encoding, "backslashreplace")
        waiting = self._put_bytes - self._done_bytes
        if waiting and waiting + sys.getsizeof(data) > WAITING_MAX_BYTES:
            self._drop(data)
        else:
            self._put_bytes += sys.getsizeof(data)
            self._waiting.put(data)
        return len(text)

    def drain(self, *, within_s: float) -> bool:
        """Wait until all that was put is written or dropped, for *within_s* at most; return whether it is."""
        self._ending.set()
        self._waiting.put(reached := threading.Event())
        return reached.wait(within_s)

    def _write_all(self) -> None:
        told = 0
        while True:
            data = self._waiting.get()
            if isinstance(data, threading.Event):
                data.set()
                continue
            try:
                self._write_whole(data)
            except OSError:
                self._drop(data)
                self._ending.wait(RETRY_S)
            else:
                if self._dropped > told:
                    told = self._dropped
                    self._on_recovery(told)
            self._done_bytes += sys.getsizeof(data)

    def _write_whole(self, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._is_line_cut else data)
        while rest:
            try:
                count = os.write(self._descriptor, rest)
            except BlockingIOError:  # another process has made the shared descriptor non-blocking
                select.select([], [self._descriptor], [])
                continue
            rest = rest[count:]
            self._is_line_cut = bool(rest)

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self._dropped += lines
        self._on_drop(lines)
