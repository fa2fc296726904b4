"""Lots: what comes while one is being done is done together, and nobody's end is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from simplu_worker.shards.tenants.coalescing import Coalescer


class Work:
    """Does lots when it is let; `lots` are those that were begun."""

    def __init__(self) -> None:
        self.lots: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.let = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def do(self, items: Sequence[str]) -> list[str]:
        """Return each item in capitals."""
        self.lots.append(list(items))
        self.begun.release()
        await self.let.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [item.upper() for item in items]


async def test_turns_do_together_what_comes_in_the_meantime() -> None:
    """Each gets the answers to its own items, in their order."""
    work = Work()
    turns = Coalescer(work.do)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(turns.submit(["a"]))
        await work.begun.acquire()
        others = [tasks.create_task(turns.submit(items)) for items in (["b", "c"], ["c"], [])]
        await asyncio.sleep(0)
        assert repr(turns) == "Coalescer(3 waiting)"
        work.let.release()
        work.let.release()

    assert work.lots == [["a"], ["b", "c", "c"]]
    assert first.result() == ["A"]
    assert [task.result() for task in others] == [["B", "C"], ["C"], []]


async def test_turns_go_on_when_the_one_whose_turn_it_is_is_cancelled() -> None:
    """The next one does the lot again, for all who wait."""
    work = Work()
    turns = Coalescer(work.do)
    first = asyncio.create_task(turns.submit(["a"]))
    await work.begun.acquire()
    waiting = [asyncio.create_task(turns.submit([item])) for item in "bcd"]
    await asyncio.sleep(0)
    work.let.release()
    await first
    await work.begun.acquire()
    waiting[0].cancel()
    await work.begun.acquire()
    work.let.release()

    assert await waiting[1] == ["C"]
    assert await waiting[2] == ["D"]
    assert work.lots == [["a"], ["b", "c", "d"], ["b", "c", "d"]]
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def test_turns_raise_to_the_one_whose_turn_it_is_only() -> None:
    """The others' items are tried once more."""
    work = Work()
    turns = Coalescer(work.do)
    first = asyncio.create_task(turns.submit(["a"]))
    await work.begun.acquire()
    second, third = (asyncio.create_task(turns.submit([item])) for item in "bc")
    await asyncio.sleep(0)
    work.let.release()
    await first
    await work.begun.acquire()
    work.error = ValueError("no")
    work.let.release()
    work.let.release()

    with pytest.raises(ValueError, match="no"):
        await second
    assert await third == ["C"]
