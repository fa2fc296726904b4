"""Waits that an event ends early, deadlines that move, and repetition: the door to stamina."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from typing import Final, TypeAlias

import stamina
from stamina.instrumentation import set_on_retry_hooks

from simplu_worker.errors import RetryableError


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
