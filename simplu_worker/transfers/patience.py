"""How transfers wait, try again, and do some things at once.

Again: while a shard is silent, after a lost race, and with fewer rows after a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError, fewer_after
from simplu_worker.timing.clock import loop_time

T = TypeVar("T")
ItemT = TypeVar("ItemT")

PATIENCE_S: Final = 60.0  # in which a shard that does not answer may come back
PAUSE_S: Final = 0.5  # before each new try


async def run_patiently(
    run: Callable[[], Awaitable[T]],
    *,
    progress: Callable[[], object],
    on_failure: Callable[[Exception], Awaitable[None]],
    clock: Callable[[], float] = loop_time,
) -> T:
    """Run *run*, again after a failure that passes; raise the last one when *progress* stands still for a minute."""
    seen, since = progress(), clock()
    while True:
        try:
            return await run()
        except (LostRaceError, RetryableError) as exc:
            if (now_seen := progress()) != seen:
                seen, since = now_seen, clock()
            if clock() - since > PATIENCE_S:
                raise
            await asyncio.sleep(PAUSE_S)
            await on_failure(exc)


async def run_until_won(run: Callable[[], Awaitable[T]], *, tries: int) -> T:
    """Run *run*, which waits for a moment without others' batches; the last try raises `LostRaceError`."""
    for _ in range(tries - 1):
        with contextlib.suppress(LostRaceError):
            return await run()
        await asyncio.sleep(PAUSE_S)
    return await run()


async def run_in_pages(run: Callable[[int], Awaitable[int]], *, limit: int) -> int:
    """Run *run*, which handles *limit* rows at most, until it has handled fewer; return the sum.

    After a timeout it gets a smaller limit.
    """
    total = 0
    while True:
        try:
            count = await run(limit)
        except StatementFailedError as exc:
            limit = fewer_after(exc, limit)
            continue
        total += count
        if count < limit:
            return total


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
