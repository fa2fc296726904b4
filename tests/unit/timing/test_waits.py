"""Waits that an event ends early: each event wakes, so does the time, and no waiter is left behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from simplu_worker.timing.waits import move_deadline, sleep_or_event, wait_any

LONG_S = 60.0


def waiting_at(event: asyncio.Event) -> int:
    return len(cast("Any", event)._waiters)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("within_s", [None, LONG_S])
async def test_wait_ends_when_any_of_its_events_is_set(at: int, within_s: float | None) -> None:
    events = [asyncio.Event() for _ in range(3)]
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        wait = tasks.create_task(wait_any(*events, within_s=within_s))
        await asyncio.sleep(0)
        assert [waiting_at(event) for event in events] == [1, 1, 1]
        assert not wait.done()
        events[at].set()
    assert [waiting_at(event) for event in events] == [0, 0, 0]


@pytest.mark.parametrize("within_s", [-1.0, 0.0, 0.01])
async def test_wait_ends_when_the_time_is_over(within_s: float) -> None:
    event = asyncio.Event()
    async with asyncio.timeout(5):
        await wait_any(event, within_s=within_s)
    assert (event.is_set(), waiting_at(event)) == (False, 0)


async def test_wait_ends_at_once_when_an_event_is_set_already() -> None:
    event, other = asyncio.Event(), asyncio.Event()
    event.set()
    with pytest.raises(StopIteration):
        wait_any(other, event).send(None)


async def test_wait_sees_an_event_that_is_cleared_again_before_its_turn() -> None:
    event = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(wait_any(event))
        await asyncio.sleep(0)
        event.set()
        event.clear()


async def test_wait_leaves_nothing_behind_when_cancelled() -> None:
    event, other = asyncio.Event(), asyncio.Event()
    wait = asyncio.create_task(wait_any(event, other, within_s=LONG_S))
    await asyncio.sleep(0)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    assert (waiting_at(event), waiting_at(other)) == (0, 0)


@pytest.mark.parametrize("is_set", [True, False])
async def test_sleep_returns_whether_its_event_is_set(is_set: bool) -> None:  # noqa: FBT001  # a parameter of the test
    event = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(sleep_or_event(0.01, until=event))
        await asyncio.sleep(0)
        if is_set:
            event.set()
    assert ended.result() is is_set


async def test_deadline_is_moved() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout_at(loop.time()) as deadline:
        move_deadline(deadline, loop.time() + LONG_S)
        for _ in range(3):
            await asyncio.sleep(0)


async def wait_and_move_deadline() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout_at(loop.time()) as deadline:
        try:
            await asyncio.sleep(LONG_S)
        finally:
            move_deadline(deadline, loop.time() + LONG_S)


async def test_deadline_that_has_passed_is_not_moved() -> None:
    with pytest.raises(TimeoutError):
        await wait_and_move_deadline()
