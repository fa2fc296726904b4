"""Some things at once."""

from __future__ import annotations

import asyncio

import pytest

from simplu_worker.errors import RetryableError
from simplu_worker.timing.waits import run_at_once


async def test_some_run_at_once_and_their_results_keep_the_order() -> None:
    running, most = 0, 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(9 - number):
            await asyncio.sleep(0)
        running -= 1
        return number * 10

    assert await run_at_once(work, range(9), most=3) == [number * 10 for number in range(9)]
    assert most == 3


async def test_first_error_ends_the_others() -> None:
    ended = []

    async def work(name: str) -> None:
        if name == "fails":
            raise RetryableError(name)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    with pytest.raises(RetryableError, match="fails"):
        await run_at_once(work, ["waits", "fails"], most=2)
    assert ended == ["waits"]
