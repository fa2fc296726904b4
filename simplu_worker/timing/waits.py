"""Waits that an event ends early, and deadlines that move."""

from __future__ import annotations

import asyncio


async def sleep_or_event(seconds: float, *, until: asyncio.Event) -> bool:
    """Wait for *seconds*, or until *until* is set; return whether it is set."""
    await wait_any(until, within_s=seconds)
    return until.is_set()


async def wait_any(*events: asyncio.Event, within_s: float | None = None) -> None:
    """Wait until one of *events* is set, at most for *within_s*; return at once when one is set already.

    Needs no task for each event, as `asyncio.wait` would, and no cancellation, by which `asyncio.timeout` ends a wait:
    a worker with many stream shards waits in most of its steps.
    """
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
