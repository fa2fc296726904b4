"""An event loop whose time jumps from one timer to the next, with processes on it that can be stopped and killed.

Nothing here waits or does I/O: an hour passes as fast as what happens in it can be run, and a run is a function of its
seed. A process is everything that runs in one context: its tasks, their timers, and the answers they wait for.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDING_S = 1e-9

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class QuietError(AssertionError): ...


class Process:
    """Something that can be stopped (SIGSTOP), go on (SIGCONT) and be killed (SIGKILL), all at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_stopped = False
        self.is_dead = False
        self.rate = 1.0  # of its monotonic clock
        self.put_by: list[asyncio.Handle] = []  # what would have run while it was stopped, in order
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)

    def __repr__(self) -> str:
        state = "dead" if self.is_dead else "stopped" if self.is_stopped else "running"
        return f"Process({self.name}, {state})"


def current_process() -> Process | None:
    return _process.get()


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop of a simulation: when nothing is ready, its clock jumps to the next timer."""

    # The inside of BaseEventLoop, which its type stubs do not tell.
    _ready: deque[Any]  # handles
    _scheduled: list[Any]  # handles of timers, a heap
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._task_numbers = itertools.count()
        self.set_task_factory(self._numbered_task)
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        process = _process.get()
        return self._now if process is None else self._now * process.rate

    def call_at(  # type: ignore[override]  # with any arguments
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        process = _process.get()
        if process is not None and process.rate != 1.0:
            when = when / process.rate + ROUNDING_S
        return super().call_at(when, callback, *args, context=context)

    def utc(self) -> datetime:
        return EPOCH + timedelta(seconds=self._now)

    def start(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.create_task(work, context=process.context)

    def resume(self, process: Process) -> None:
        process.is_stopped = False
        self._ready.extend(process.put_by)
        process.put_by.clear()

    def _run_once(self) -> None:
        timers, ready = self._scheduled, self._ready
        if not ready and not self._stopping:
            while timers and timers[0]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise QuietError("nothing is left to run: everybody waits for somebody else")
            self._now = max(self._now, timers[0]._when)
        while timers and timers[0]._when <= self._now:
            ready.append(heapq.heappop(timers))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is not None and (process.is_stopped or process.is_dead):
                process.put_by.append(handle)
            else:
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def _numbered_task(self, _loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return _NumberedTask(next(self._task_numbers), work, loop=self, **options)

    def _note_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exception = context.get("exception")
        self.failures.append(exception if exception is not None else AssertionError(context["message"]))


class _NumberedTask(asyncio.Task[T]):
    """A task that hashes by its number: sets of tasks are then in the same order in every run of a seed."""

    def __init__(self, number: int, work: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = number
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other
