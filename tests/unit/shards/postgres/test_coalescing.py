"""Items submitted while a batch runs form the next batch, reads before a query share it; one call's end is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.coalescing import Coalescer, ReadCoalescer, TakeKeys


class Work:
    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.permits = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def run_batch(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.begun.release()
        await self.permits.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [item.upper() for item in items]


async def test_items_submitted_while_a_batch_runs_form_the_next() -> None:
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


class Shard:
    def __init__(self) -> None:
        self.queries: list[tuple[str, list[str]]] = []
        self.connections = asyncio.Semaphore(0)
        self.answers = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def run_query(self, source: str, take_keys: TakeKeys[str]) -> dict[str, str]:
        await self.connections.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        keys = take_keys()
        self.queries.append((source, list(keys)))
        await self.answers.acquire()
        return {key: key.upper() for key in keys if not key.startswith("x")}


async def start_reads(reads: ReadCoalescer[str, str, str], *keys: str) -> list[asyncio.Task[str | None]]:
    started = [asyncio.create_task(reads.read("shard", key)) for key in keys]
    await asyncio.sleep(0)
    return started


async def test_reads_share_a_query_until_it_is_sent() -> None:
    shard = Shard()
    reads = ReadCoalescer(shard.run_query)
    early = await start_reads(reads, "a", "xb", "a")
    elsewhere = asyncio.create_task(reads.read("other", "a"))
    await asyncio.sleep(0)
    assert repr(reads) == "ReadCoalescer(2 queries not sent)"
    for _ in range(2):
        shard.connections.release()
    await asyncio.sleep(0)
    late = await start_reads(reads, "a", "c")
    shard.connections.release()
    for _ in range(3):
        shard.answers.release()

    assert await asyncio.gather(*early, elsewhere, *late) == ["A", None, "A", "A", "A", "C"]
    assert shard.queries == [("shard", ["a", "xb"]), ("other", ["a"]), ("shard", ["a", "c"])]
    assert repr(reads) == "ReadCoalescer(0 queries not sent)"


async def test_reads_get_the_error_of_their_query() -> None:
    shard = Shard()
    reads = ReadCoalescer(shard.run_query)
    shard.error = RetryableError("no")
    failing = await start_reads(reads, "a", "b")
    shard.connections.release()

    assert [str(error) for error in await asyncio.gather(*failing, return_exceptions=True)] == ["no", "no"]
    (read,) = await start_reads(reads, "a")
    shard.connections.release()
    shard.answers.release()
    assert await read == "A"
    assert shard.queries == [("shard", ["a"])]


@pytest.mark.parametrize("sent_count", [0, 1])
async def test_reads_run_again_when_the_one_with_the_query_is_cancelled(sent_count: int) -> None:
    shard = Shard()
    reads = ReadCoalescer(shard.run_query)
    first, *others = await start_reads(reads, "a", "b", "c")
    for _ in range(sent_count):
        shard.connections.release()
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0)
    shard.connections.release()
    shard.answers.release()

    async with asyncio.timeout(5):
        assert await asyncio.gather(*others) == ["B", "C"]
    assert shard.queries == [("shard", ["a", "b", "c"])] * sent_count + [("shard", ["b", "c"])]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_reads_run_again_when_the_one_with_the_query_fails_alone() -> None:
    shard = Shard()
    reads = ReadCoalescer(shard.run_query)
    shard.error = ValueError("no")
    first, other = await start_reads(reads, "a", "b")
    for _ in range(2):
        shard.connections.release()
    shard.answers.release()

    async with asyncio.timeout(5):
        assert await other == "B"
    with pytest.raises(ValueError, match="no"):
        await first
