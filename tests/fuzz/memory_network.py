"""Connections in memory: what a protocol sends is kept, and what it gets is an input. No socket, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fuzz.quiet import note_fault

TURNS_MAX: Final = 10_000  # of the event loop, for one input


class MemoryTransport(asyncio.Transport):
    """The transport of one connection."""

    def __init__(self, protocol: asyncio.Protocol, on_write: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.sent = bytearray()
        self._protocol = protocol
        self._on_write = on_write
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data
        if self._on_write is not None:
            on_write, self._on_write = self._on_write, None
            on_write()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def receive(self, data: bytes) -> None:
        if not self._is_closing:
            self._protocol.data_received(data)

    def receive_end(self) -> None:
        if not self._is_closing and not self._protocol.eof_received():
            self.close()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False


_loop: asyncio.AbstractEventLoop | None = None
_closers: list[Callable[[], Coroutine[Any, Any, None]]] = []


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run *work* on the event loop of this process, and end the tasks that it leaves."""
    loop = event_loop()
    loop.run_until_complete(work)
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=5))


def event_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603 - one for all inputs: making one takes longer than most inputs
    if _loop is None:
        _loop = asyncio.new_event_loop()
        _loop.set_exception_handler(lambda _, context: note_fault(f"event loop: {context}"))
    return _loop


def call_at_close(closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
    _closers.append(closer)


def close() -> None:
    global _loop  # noqa: PLW0603 - see event_loop
    while _closers:
        run(_closers.pop()())
    if _loop is not None:
        _loop.close()
        _loop = None


async def turn_until(condition: Callable[[], bool], turns: int = TURNS_MAX) -> bool:
    """Let the event loop turn until *condition* holds, at most *turns* times; return whether it does."""
    for _ in range(turns):
        if condition():
            return True
        await asyncio.sleep(0)
    return condition()
