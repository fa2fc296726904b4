"""Items submitted while a batch runs form the next batch, and the end of one call is not that of another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from simplu_worker.shards.postgres.coalescing import Coalescer


class Work:
    """Runs batches when allowed; `batches` are those that were begun."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.permits = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def run_batch(self, items: Sequence[str]) -> list[str]:
        """Return each item in capitals."""
        self.batches.append(list(items))
        self.begun.release()
        await self.permits.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [item.upper() for item in items]


async def test_items_submitted_while_a_batch_runs_form_the_next() -> None:
    """Each gets the answers to its own items, in their order."""
    work = Work()
    coalescer = Coalescer(work.run_batch)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(coalescer.submit(["a"]))
        await work.begun.acquire()
        others = [tasks.create_task(coalescer.submit(items)) for items in (["b", "c"], ["c"], [])]
        await asyncio.sleep(0)
        assert repr(coalescer) == "Coalescer(3 waiting)"
        work.permits.release()
        work.permits.release()

    assert work.batches == [["a"], ["b", "c", "c"]]
    assert first.result() == ["A"]
    assert [task.result() for task in others] == [["B", "C"], ["C"], []]


async def test_batch_runs_again_when_its_caller_is_cancelled() -> None:
    """The next caller runs the batch again, for all that wait."""
    work = Work()
    coalescer = Coalescer(work.run_batch)
    first = asyncio.create_task(coalescer.submit(["a"]))
    await work.begun.acquire()
    waiting = [asyncio.create_task(coalescer.submit([item])) for item in "bcd"]
    await asyncio.sleep(0)
    work.permits.release()
    await first
    await work.begun.acquire()
    waiting[0].cancel()
    await work.begun.acquire()
    work.permits.release()

    assert await waiting[1] == ["C"]
    assert await waiting[2] == ["D"]
    assert work.batches == [["a"], ["b", "c", "d"], ["b", "c", "d"]]
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def test_error_is_raised_to_the_caller_that_ran_the_batch_only() -> None:
    """The others' items are tried once more."""
    work = Work()
    coalescer = Coalescer(work.run_batch)
    first = asyncio.create_task(coalescer.submit(["a"]))
    await work.begun.acquire()
    second, third = (asyncio.create_task(coalescer.submit([item])) for item in "bc")
    await asyncio.sleep(0)
    work.permits.release()
    await first
    await work.begun.acquire()
    work.error = ValueError("no")
    work.permits.release()
    work.permits.release()

    with pytest.raises(ValueError, match="no"):
        await second
    assert await third == ["C"]
