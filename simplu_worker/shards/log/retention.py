"""Delete old batches of the log with their rows, in small statements with long pauses, and never on an unhealthy shard.

Old counts of failed messages, rows of rejected records, and events that destinations of the feed refused are deleted
with them.

Safe because a batch is deleted only when no source can still have its record: `window` is that time, None while it is
unknown. The shard's clock measures it, while that clock agrees with ours. Replicas may do this at the same time; each
skips the batches that another one has locked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import RetryableError
from simplu_worker.operations.retention_rules import deleting_share, deletion_pause_s, next_row_count
from simplu_worker.shards.log.message_failures import forget_old_failures
from simplu_worker.shards.log.rejections import forget_old_rejections
from simplu_worker.shards.postgres.errors import StatementFailedError, fewer_after
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.schema.clock_check import check_clocks
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.timing.periodic import repeat_every
from simplu_worker.vocabulary import TargetKind

TURN_S: Final = 60.0
STATEMENT_ROWS: Final = 1000  # of the first statement of a turn
SHARDS_AT_ONCE: Final = 8
LATE_TURNS: Final = 10  # with old rows left, until a warning, and between two
EVER: Final = datetime(1, 1, 2, tzinfo=UTC)  # before the time of every row

log = structlog.get_logger(__name__)


class DeletedRows(NamedTuple):
    """The rows that one statement has deleted in *busy_s*; the oldest had been due for *late_s*.

    *newest* is the time of the newest; *is_last*: there are no more.
    """

    row_count: int
    newest: datetime | None
    late_s: float
    busy_s: float
    is_last: bool


@dataclass
class Progress:
    """The rows of the next statement on one shard, and the turns in a row that ended with old rows of its log left."""

    row_count: int
    late_turns: int = 0


class LogRetention:
    """The retention of the logs of all shards of *pools*: as short as *window* allows; every turn reads *window*."""

    def __init__(
        self,
        pools: Pools,
        window: Callable[[], Awaitable[timedelta | None]],
        *,
        turn_s: float = TURN_S,
        statement_rows: int = STATEMENT_ROWS,
    ) -> None:
        self._pools = pools
        self._window = window
        self._turn_s = turn_s
        self._statement_rows = statement_rows
        self._slots = asyncio.Semaphore(SHARDS_AT_ONCE)
        self._progress: dict[str, Progress] = {}  # by shard id

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.take_turn)

    async def take_turn(self) -> dict[str, int]:
        """Delete old rows on every shard, for at most `turn_s`; return the counts by shard id."""
        pools = list(self._pools.by_shard_id().values())
        retention = await self._window() if pools else None
        if retention is None:
            return {}
        self._progress = {
            pool.address.shard_id: self._progress.get(pool.address.shard_id, Progress(self._statement_rows))
            for pool in pools
        }
        async with asyncio.TaskGroup() as tasks:
            turns = {
                pool.address.shard_id: tasks.create_task(
                    self._forget_old(pool, retention), name=f"retention:{pool.address.shard_id}"
                )
                for pool in pools
            }
        counts = {shard_id: turn.result() for shard_id, turn in turns.items() if turn.result()}
        if counts:
            log.info(
                "operations.forgotten",
                operation_count=sum(counts.values()),
                shards=counts,
                retention_h=round(retention.total_seconds() / 3600, 2),
            )
        return counts

    async def _forget_old(self, pool: ShardPool, retention: timedelta) -> int:
        """Delete old rows until none is left or the turn is over, once at least; return how many of the log.

        The pace follows the time that the shard takes for a statement. Most of the time that this replica takes is its
        other work, and no load on the shard. A statement that runs into its timeout is followed by one of fewer rows.
        """
        if not pool.is_healthy:
            return 0
        end = time.monotonic() + self._turn_s
        shard_id, count, after = pool.address.shard_id, 0, EVER
        error: str | None = None
        progress = self._progress[shard_id]
        progress.late_turns += 1
        try:
            while pool.is_healthy:
                limit, pause_s = progress.row_count, 0.0
                try:
                    deleted = await self._delete(pool, retention, limit, after)
                except StatementFailedError as exc:
                    progress.row_count = fewer_after(exc, limit)
                else:
                    count += deleted.row_count
                    if deleted.is_last:
                        progress.late_turns = 0
                        break
                    after = deleted.newest or after
                    progress.row_count = next_row_count(limit, deleted.busy_s, self._statement_rows)
                    pause_s = deletion_pause_s(deleted.busy_s, deleting_share(deleted.late_s, self._turn_s))
                if time.monotonic() >= end:
                    break
                await asyncio.sleep(pause_s)
            await self._forget_beside(pool, retention, end)
        except RetryableError as exc:
            error = str(exc)
            log.debug("retention.deferred", shard_id=shard_id, error=error)
        except Exception as exc:  # noqa: BLE001  # of this shard; the others continue
            note_trouble(TargetKind.SHARD, shard_id, "retention", exc)
        if progress.late_turns and progress.late_turns % LATE_TURNS == 0:
            log.warning("retention.late", shard_id=shard_id, turn_count=progress.late_turns, error=error)
        return count

    async def _delete(self, pool: ShardPool, retention: timedelta, limit: int, after: datetime) -> DeletedRows:
        """Delete old batches that were completed at *after* or later, with about *limit* rows together."""
        async with self._slots, pool.transaction() as connection:
            if not await has_schema(connection, pool):
                return DeletedRows(0, None, 0.0, 0.0, is_last=True)
            await check_clocks(connection, pool)
            row = await connection.fetchrow(QUERIES["forget_batches"], retention.total_seconds(), limit, after)
            return DeletedRows(**dict(row))

    async def _forget_beside(self, pool: ShardPool, retention: timedelta, end: float) -> None:
        """Delete old counts of failures, rows of rejected records, and refused events of the feed."""
        while pool.is_healthy:
            async with self._slots, pool.transaction() as connection:
                if not await has_schema(connection, pool):
                    return
                await check_clocks(connection, pool)
                started = time.monotonic()
                await forget_old_failures(connection, self._statement_rows)
                count = max(
                    await forget_old_rejections(connection, retention, self._statement_rows),
                    await forget_old_refusals(connection, retention, self._statement_rows),
                )
                busy_s = time.monotonic() - started
            if count < self._statement_rows or time.monotonic() >= end:
                return
            await asyncio.sleep(deletion_pause_s(busy_s))


async def forget_old_refusals(connection: Connection, retention: timedelta, max_rows: int) -> int:
    """Delete at most *max_rows* refused events of the feed that are older than *retention*; return how many."""
    deleted = await connection.execute(QUERIES["forget_old_refusals"], retention.total_seconds(), max_rows)
    return affected_count(deleted)
