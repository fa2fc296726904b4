"""The usage of tenants, by hour, for bills: `usage` of each shard, counted from its log.

Operations and bytes are exact: a batch is counted in the transaction that notes how far the count is, behind a lock,
and only once no running transaction can come before it. The retention waits for the count, and who deletes the log of a
departed tenant counts the rest of it. Copied batches are not counted again. A shard that loses commits loses both, and
both are equal again.

A row has the shard that counted it, and there it only grows. A cleanup copies the rows of a departed tenant to its
home, so a drained shard may go. Who finds rows of one shard on several takes the largest: copies count once, however
often a cleanup was killed and repeated.

Time is measured by each replica and added once a turn: the last turn's is lost with a replica. What is stored is
sampled once a day.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from simplu_worker.fairness import ShardTime
from simplu_worker.shards.log import on_each_shard
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.timing.clock import utc_now
from simplu_worker.timing.waits import repeat_every

TURN_S: Final = 60.0
KEPT_DAYS: Final = 400
STATEMENT_BATCHES: Final = 200
FORGOTTEN_ROWS: Final = 2000  # by one turn
SAMPLED_ROWS: Final = 100_000
CARRIED_DAYS: Final = 20  # by one statement


class UsageCount:
    """Counts the usage of the tenants of all shards of *pools*; *times* are what this replica measured, by shard id."""

    def __init__(
        self,
        pools: Pools,
        times: Mapping[str, ShardTime],
        *,
        turn_s: float = TURN_S,
        statement_batches: int = STATEMENT_BATCHES,
    ) -> None:
        self._pools = pools
        self._times = times
        self._turn_s = turn_s
        self._statement_batches = statement_batches

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.take_turn)

    async def take_turn(self) -> None:
        """Count on every shard, for at most `turn_s`."""
        await on_each_shard(self._pools, "usage", self._count_on)

    async def _count_on(self, pool: ShardPool) -> int:
        end = time.monotonic() + self._turn_s
        own = self._times.get(pool.address.shard_id)
        async with pool.transaction() as connection:
            if not await has_schema(connection, pool):
                return 0
            await connection.execute(QUERIES["lock_usage"])
            await connection.execute(QUERIES["forget_usage"], KEPT_DAYS, FORGOTTEN_ROWS)
            taken = own.take() if own is not None else {}
            took_ms = {tenant_id: repr(1000 * took_s) for one in taken.values() for tenant_id, took_s in one.items()}
            if took_ms:
                await connection.execute(QUERIES["add_usage_time"], list(took_ms), list(took_ms.values()))
        while not await self._roll_up(pool) and time.monotonic() < end:
            pass
        async with pool.connection() as connection:
            is_due = await connection.fetchval(QUERIES["begin_usage_sample"])
        if is_due:  # apart: one that takes too long is not tried again today
            async with pool.transaction() as connection:
                await connection.execute(QUERIES["sample_usage"], SAMPLED_ROWS)
        return 0

    async def _roll_up(self, pool: ShardPool) -> bool:
        async with pool.transaction() as connection:
            await connection.execute(QUERIES["lock_usage"])
            return bool(await connection.fetchval(QUERIES["roll_up_usage"], self._statement_batches))


async def carry_usage(source: ShardPool, target: ShardPool, business_id: str, location_id: str) -> None:
    """Copy the hours of a tenant that has left *source*, all of them counted, to *target*. Idempotent."""
    end = utc_now() + timedelta(days=1)
    for days in range(0, KEPT_DAYS + 2, CARRIED_DAYS):
        times = end - timedelta(days=days + CARRIED_DAYS), end - timedelta(days=days)
        async with source.connection() as connection:
            rows = await connection.fetchval(QUERIES["read_usage_of_tenant"], business_id, location_id, *times)
        if rows is not None:
            async with target.transaction() as connection:
                await connection.execute(QUERIES["write_usage_of_tenant"], rows)
