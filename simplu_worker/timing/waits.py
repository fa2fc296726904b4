"""Waits that an event ends early, deadlines that move, repetition (the door to stamina), back-off, pace, and a grid.

Work done together, right after one sleep of the process, takes two thirds of the processor time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from math import floor, isinf
from typing import Final, TypeAlias, TypeVar

import stamina
from stamina.instrumentation import set_on_retry_hooks

from simplu_worker.errors import RetryableError

T = TypeVar("T")
ItemT = TypeVar("ItemT")


async def run_until(event: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Run *work* to its end, or until *event* is set, which cancels it; return whether it came to its end."""
    running, ending = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait([running, ending], return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()
        ending.cancel()
        await asyncio.wait([running])
    if running.cancelled():
        return False
    running.result()  # raises what *work* has raised
    return True


async def sleep_or_event(seconds: float, *, until: asyncio.Event) -> bool:
    """Wait for *seconds*, or until *until* is set; return whether it is set."""
    await wait_any(until, within_s=seconds)
    return until.is_set()


async def wait_any(*events: asyncio.Event, within_s: float | None = None) -> None:
    """Wait until one of *events* is set, at most for *within_s*, without a task for each event."""
    if any(event.is_set() for event in events):
        return
    loop = asyncio.get_running_loop()
    happened = loop.create_future()

    def wake(_: asyncio.Future[bool] | None = None) -> None:
        if not happened.done():
            happened.set_result(None)

    # The first step of a wait yields the future by which its event will wake it; a task drives every coroutine like
    # this. Closing the wait removes the future from the event.
    waits = [event.wait() for event in events]
    timer = None if within_s is None else loop.call_later(within_s, wake)
    try:
        for wait in waits:
            wait.send(None).add_done_callback(wake)
        await happened
    finally:
        if timer is not None:
            timer.cancel()
        for wait in waits:
            wait.close()


def move_deadline(deadline: asyncio.Timeout, when: float) -> None:
    """Move a deadline, unless it has passed: then the block that it bounds is being cancelled, and so it stays."""
    if not deadline.expired():
        deadline.reschedule(when)


async def repeat_every(interval_s: float, action: Callable[[], Awaitable[object]]) -> None:
    """Await *action* until cancelled, one call at a time; each begins at least *interval_s* after the one before."""
    while True:
        started = time.monotonic()
        await action()
        await asyncio.sleep(max(0.0, started + interval_s - time.monotonic()))


set_on_retry_hooks(())  # its own would log arguments, and count what the metrics of our doors count

PATIENCE_S: Final = 10.0
RETRY_BASE_S, RETRY_MAX_S = 0.2, 2.0

RetryOn: TypeAlias = type[Exception] | Callable[[Exception], bool | float]

retry: Final = stamina.AsyncRetryingCaller(
    attempts=None, timeout=PATIENCE_S, wait_initial=RETRY_BASE_S, wait_max=RETRY_MAX_S, wait_jitter=RETRY_BASE_S
).on(RetryableError)
"""Call a function with its arguments, for a person who waits: again for PATIENCE_S while it raises RetryableError."""


def attempts(on: RetryOn, *, count: int, base_s: float, max_s: float) -> AsyncIterable[stamina.Attempt]:
    """Yield up to *count* attempts at a block, until one does not raise *on*; raise the last error.

    A function as *on* returns whether to try again after an error, or the seconds until then.
    """
    return stamina.retry_context(
        on, attempts=count, timeout=None, wait_initial=base_s, wait_max=max_s, wait_jitter=base_s
    )


DOUBLINGS_MAX = 32  # past any cap in use; keeps the power small


def backoff_s(failure_count: int, *, draw: float, base_s: float, max_s: float) -> float:
    """Return the pause after the *failure_count*-th failure in a row, counted from 1.

    The span doubles from *base_s* to *max_s*; *draw* (0 to 1) picks within its upper half.
    """
    span_s = min(max_s, base_s * 2.0 ** min(max(failure_count - 1, 0), DOUBLINGS_MAX))
    return span_s * (0.5 + draw / 2)


def jittered(interval_s: float, *, ratio: float, draw: float) -> float:
    """Return *interval_s*, up to *ratio* of it more or less by *draw* (0 to 1)."""
    return interval_s * (1 - ratio + 2 * ratio * draw)


GRID_S: Final = 0.1  # work for a thousand objects a second is done for a hundred at a time
EARLY_S: Final = 0.01  # work that began so little before a grid time counts as begun at it
INTERVAL_MIN_S: Final = 10 * GRID_S  # a shorter one is not aligned: the grid shortens it by nearly GRID_S


def shared_pause_s(now: float, interval_s: float) -> float:
    """Return the time until the next multiple of *interval_s*, up to EARLY_S before which the one after counts."""
    return interval_s + EARLY_S - (now + EARLY_S) % interval_s


def aligned_time(since: float, interval_s: float, grid_s: float = GRID_S) -> float:
    """Return when to repeat work that began at *since*: the last grid time within *interval_s* + EARLY_S after it."""
    at = since + interval_s
    return at if interval_s < INTERVAL_MIN_S or isinf(at) else floor((at + EARLY_S) / grid_s) * grid_s


class Pacer:
    """Keeps work at *per_s* units a second, whoever does it; None: no bound. *now* is monotonic throughout."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self.free_at = float("-inf")  # when all that was done is paid for

    def pause_s(self, count: int, *, now: float) -> float:
        """Note *count* units that were just done; return the pause before the next. Slow times are not made up for."""
        if self._per_s is None:
            return 0.0
        self.free_at = max(self.free_at, now) + count / self._per_s
        return self.free_at - now


async def run_at_once(run: Callable[[ItemT], Awaitable[T]], items: Iterable[ItemT], *, most: int) -> list[T]:
    """Run *run* for each of *items*, *most* at a time; return the results in order. Raises the first error."""
    slots = asyncio.Semaphore(most)

    async def run_one(item: ItemT) -> T:
        async with slots:
            return await run(item)

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(run_one(item)) for item in items]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [one.result() for one in running]
