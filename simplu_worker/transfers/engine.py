"""How transfers wait, try again, and go through a tenant's rows, so that both shards have time for others.

Again: while a shard is silent, after a lost race, and with fewer rows after a timeout. At a pace: a chunk of rows is a
transaction of about the same time, whatever the rows are, with a rest behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError, fewer_after
from simplu_worker.shards.settling import FIRST, RowKey
from simplu_worker.timing.clock import loop_time

T = TypeVar("T")

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


ROWS_FIRST: Final = 200  # they may be of some MB each
ROWS_MIN: Final = 200  # unless so many have taken too long
ROWS_MAX: Final = 100_000
CHUNK_S: Final = 0.1  # a chunk is a transaction on the target
REST_SHARE: Final = 0.5  # of the time that a chunk took: others find both shards at rest then
GROWTH: Final = 4
SLOW_RATIO: Final = 4.0  # an answer that takes so many times the usual time shows that a shard is busy
SLOW_MIN_S: Final = 0.05
REST_MAX_S: Final = 2.0
SMALL_ROUND: Final = 100  # rows: a round of so many or fewer leaves nothing to win by another one
SHORT_ROUND_SHARE: Final = 0.25  # of the longest pause: a round that takes no longer is short


class ChunkPace(msgspec.Struct, frozen=True):
    """The size of the next chunk, which is to take *chunk_s*, and the rest before it; *most* is the largest for now."""

    row_count: int = ROWS_FIRST
    rest_s: float = 0.0
    usual_answer_s: float = 0.0  # of the smallest statement on either shard, the best so far
    most: int = ROWS_MAX
    chunk_s: float = CHUNK_S
    rest_share: float = REST_SHARE


def next_pace(
    pace: ChunkPace, *, row_count: int, took_s: float, answer_s: float, max_rows_per_s: float | None = None
) -> ChunkPace:
    """Return the pace after a chunk of *row_count* rows that took *took_s*.

    While *answer_s*, of a tiny statement on the slower shard, is high, chunks get smaller and rests longer.
    """
    usual_s = min(pace.usual_answer_s or answer_s, answer_s)
    most = pace.most if took_s > pace.chunk_s else min(ROWS_MAX, pace.most * GROWTH)
    is_slow = answer_s > max(SLOW_MIN_S, SLOW_RATIO * usual_s)
    if is_slow:
        size, rest_s = pace.row_count // 2, max(pace.rest_s * 2, took_s)
    else:
        fitting = round(min(ROWS_MAX, row_count * pace.chunk_s / took_s)) if took_s > 0 and row_count else ROWS_MAX
        size, rest_s = min(pace.row_count * GROWTH, fitting), pace.rest_share * took_s
    rest_s = min(REST_MAX_S, rest_s)
    if max_rows_per_s is not None:
        size = min(size, max(1, round(max_rows_per_s * pace.chunk_s)))
        rest_s = max(rest_s, row_count / max_rows_per_s - took_s)
    least = ROWS_MIN if max_rows_per_s is None else max(1, min(ROWS_MIN, size))
    return msgspec.structs.replace(
        pace, row_count=min(most, max(least, size)), rest_s=rest_s, usual_answer_s=usual_s, most=most
    )


def is_last_round(row_count: int, took_s: float, max_pause_s: float) -> bool:
    """Return whether a tenant can be fenced after a round of *row_count* rows that took *took_s*."""
    return took_s <= max_pause_s * SHORT_ROUND_SHARE or (row_count <= SMALL_ROUND and took_s <= max_pause_s)


def slower_after(error: StatementFailedError, pace: ChunkPace) -> ChunkPace:
    """Return the pace after a chunk that failed. Raises *error* unless fewer rows may avoid it."""
    size = fewer_after(error, min(pace.row_count, pace.most))
    return msgspec.structs.replace(pace, row_count=size, most=size)


class Chunk(msgspec.Struct, frozen=True):
    """What was done about a chunk of rows: *end* is the key of the last one, None if it has all that was left.

    *answer_s* is the time of a tiny statement on the slower shard.
    """

    end: RowKey | None
    row_count: int
    answer_s: float


class Walker:
    """Goes through rows in the order of their keys, in chunks at a pace that it keeps from one walk to the next."""

    def __init__(
        self,
        pace: ChunkPace | None = None,
        *,
        max_rows_per_s: float | None = None,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._pace = pace or ChunkPace()
        self._max_rows_per_s = max_rows_per_s
        self._clock = clock

    async def walk(
        self,
        handle: Callable[[RowKey, int], Awaitable[Chunk]],
        after: RowKey | None = FIRST,
        *,
        within_transaction: bool = False,
    ) -> None:
        """Call *handle* with the key before a chunk and the most rows of it, until a chunk has no end.

        After a timeout again with fewer rows, unless all is *within_transaction*, which has to be begun again.
        """
        while after is not None:
            await asyncio.sleep(self._pace.rest_s)
            began_at = self._clock()
            try:
                chunk = await handle(after, self._pace.row_count)
            except StatementFailedError as exc:
                self._pace = slower_after(exc, self._pace)
                if within_transaction:
                    raise
                continue
            after = chunk.end
            self._pace = next_pace(
                self._pace,
                row_count=chunk.row_count,
                took_s=self._clock() - began_at,
                answer_s=chunk.answer_s,
                max_rows_per_s=self._max_rows_per_s,
            )
