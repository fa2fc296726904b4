"""Write lines from a thread of its own, so that a full disk or an unread pipe stops nothing else.

A line without room, or that the system refuses, is dropped and counted. The queue is a `SimpleQueue`: the garbage
collector may run a `__del__` that logs at any instruction.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
from collections.abc import Callable
from logging.handlers import QueueListener
from queue import SimpleQueue
from typing import Any, Final, TextIO

LINES_MAX: Final = 2000

CountLines = Callable[[int], None]


class BackgroundStream(io.TextIOBase):
    """A text stream whose `write` never blocks and never fails.

    *on_drop* is called with the number of dropped lines, in whichever thread.
    """

    def __init__(self, stream: TextIO, *, on_drop: CountLines) -> None:
        self._stream = stream  # keeps the descriptor open
        self._on_drop = on_drop
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._listener = QueueListener(self._waiting, _Writer(stream.fileno(), on_drop))
        self._listener.start()

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Have *text* written, or drop it where too much is waiting."""
        if self._waiting.qsize() >= LINES_MAX:
            self._on_drop(text.count("\n"))
        else:
            self._waiting.put(logging.makeLogRecord({"msg": text}))
        return len(text)

    def drain(self, *, within_s: float) -> bool:
        """Write what waits and end the thread; return whether that is done *within_s*."""
        ending = threading.Thread(target=self._listener.stop, daemon=True)
        ending.start()
        ending.join(within_s)
        return not ending.is_alive()


class _Writer(logging.Handler):
    """Writes without a lock: a write that never returns would hold up the end of the process."""

    def __init__(self, descriptor: int, on_drop: CountLines) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._on_drop = on_drop

    def handle(self, record: logging.LogRecord) -> bool:
        rest = record.msg.encode("utf-8", "backslashreplace")
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process has made the shared descriptor non-blocking
                    select.select([], [self._descriptor], [])
        except OSError:
            self._on_drop(record.msg.count("\n"))
        return True
