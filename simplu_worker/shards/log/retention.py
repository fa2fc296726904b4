"""Delete old rows of the operation log, in small statements with long pauses, and never on an unhealthy shard.

Old counts of failed messages, and rows of rejected records, are deleted with them.

Safe because a row is deleted only when no source can still have its record: `window` is that time, None while it is
unknown. Replicas may do this at the same time; each skips the rows that another one has locked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.operations.retention_rules import deletion_pause_s
from simplu_worker.shards.log.message_failures import forget_old_failures
from simplu_worker.shards.log.rejections import forget_old_rejections
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.timing.periodic import repeat_every

TURN_S: Final = 60.0
STATEMENT_MAX_ROWS: Final = 1000
SHARDS_AT_ONCE: Final = 8

log = structlog.get_logger(__name__)


class LogRetention:
    """The retention of the logs of all shards of *pools*: as short as *window* allows; every turn reads *window*."""

    def __init__(
        self,
        pools: Pools,
        window: Callable[[], Awaitable[timedelta | None]],
        *,
        turn_s: float = TURN_S,
        statement_max_rows: int = STATEMENT_MAX_ROWS,
    ) -> None:
        self._pools = pools
        self._window = window
        self._turn_s = turn_s
        self._statement_max_rows = statement_max_rows
        self._slots = asyncio.Semaphore(SHARDS_AT_ONCE)

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.take_turn)

    async def take_turn(self) -> dict[str, int]:
        """Delete old rows on every shard, for at most `turn_s`; return the counts by shard id."""
        pools = list(self._pools.by_shard_id().values())
        retention = await self._window() if pools else None
        if retention is None:
            return {}
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
        end = time.monotonic() + self._turn_s
        count = 0
        while pool.is_healthy and time.monotonic() < end:
            try:
                async with self._slots:
                    started = time.monotonic()
                    deleted, is_any_left = await self._delete(pool, retention)
                    busy_s = time.monotonic() - started
            except RetryableError as exc:
                log.debug("retention.deferred", shard_id=pool.address.shard_id, error=str(exc))
                break
            count += deleted
            if not is_any_left:
                break
            await asyncio.sleep(deletion_pause_s(busy_s))
        return count

    async def _delete(self, pool: ShardPool, retention: timedelta) -> tuple[int, bool]:
        """Delete some old rows; return how many of the log, and whether there may be more of any kind."""
        async with pool.transaction() as connection:
            if await check_schema(connection, pool.address.shard_id) is SchemaState.EMPTY:
                return 0, False
            await forget_old_failures(connection, self._statement_max_rows)
            rejections = await forget_old_rejections(connection, retention, self._statement_max_rows)
            operations = affected_count(
                await connection.execute(
                    QUERIES["forget_operations"], retention.total_seconds(), self._statement_max_rows
                )
            )
        return operations, max(operations, rejections) >= self._statement_max_rows
