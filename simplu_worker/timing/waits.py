"""Waiting that an event cuts short."""

from __future__ import annotations

import asyncio


async def sleep_or_event(seconds: float, *, until: asyncio.Event) -> bool:
    """Wait for *seconds*, or less when *until* is set; return whether it is."""
    await wait_any(until, within_s=seconds)
    return until.is_set()


async def wait_any(*events: asyncio.Event, within_s: float | None = None) -> None:
    """Wait until one of *events* is set, or for *within_s*; at once when one is set already.

    Without a task for each event, which `asyncio.wait` would need, and without the cancellation by which
    `asyncio.timeout` ends a wait: a worker with many stream shards waits in most of its steps.
    """
    if any(event.is_set() for event in events):
        return
    loop = asyncio.get_running_loop()
    happened = loop.create_future()

    def wake(_: asyncio.Future[bool] | None = None) -> None:
        if not happened.done():
            happened.set_result(None)

    # The first step of a wait hands out the future by which its event will wake it: what a task does with every
    # coroutine. Closing the wait takes the future back from the event.
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
