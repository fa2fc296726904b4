"""Concurrent callers share one probe, and no caller gets an old result."""

from __future__ import annotations

import asyncio

import pytest

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.single_flight import FAILED_FRESH_S, FRESH_S, SingleFlightProbe


class Door:
    def __init__(self) -> None:
        self.now = 1000.0
        self.look_count = 0
        self.error: Exception | None = None
        self.opened = asyncio.Event()
        self.opened.set()
        self.shared = SingleFlightProbe(self.look, clock=lambda: self.now)

    async def look(self) -> None:
        self.look_count += 1
        await self.opened.wait()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(("after_s", "expected"), [(0.0, 1), (FRESH_S, 1), (FRESH_S + 0.01, 2)])
async def test_look_is_taken_anew_when_the_last_answer_is_old(after_s: float, expected: int) -> None:
    door = Door()

    await door.shared()
    door.now += after_s
    await door.shared()

    assert door.look_count == expected


async def test_look_is_one_for_all_who_ask_at_once() -> None:
    door = Door()
    door.error = RetryableError("down")
    door.opened.clear()

    async def ask() -> str:
        with pytest.raises(RetryableError) as caught:
            await door.shared()
        return str(caught.value)

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask()) for _ in range(50)]
        await asyncio.sleep(0)
        door.opened.set()

    assert ({task.result() for task in asking}, door.look_count) == ({"down"}, 1)


async def test_look_is_taken_by_the_next_when_the_one_who_looks_is_cancelled() -> None:
    door = Door()
    door.opened.clear()

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(door.shared())
        await asyncio.sleep(0)
        second = tasks.create_task(door.shared())
        await asyncio.sleep(0)
        first.cancel()
        door.opened.set()
        await second

    assert (first.cancelled(), door.look_count) == (True, 2)


async def test_look_tells_of_a_recovery_when_it_is_taken_anew() -> None:
    door = Door()
    door.error = RetryableError("down")
    with pytest.raises(RetryableError):
        await door.shared()

    door.error = None
    door.now += FAILED_FRESH_S / 2
    with pytest.raises(RetryableError):
        await door.shared()
    door.now += FAILED_FRESH_S / 2 + 0.01

    await door.shared()
    assert "error=None" in repr(door.shared)


async def test_look_hands_on_what_is_no_answer() -> None:
    door = Door()
    door.error = RuntimeError("bug")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await door.shared()
    assert door.look_count == 2
