"""Confirm tenants that nobody confirmed: who made them was killed and asks no more, or a shard did not answer."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Final

import structlog

from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.shards.tenants.home_confirmation import HomeConfirmer, PlacedTenant

SWEEP_INTERVAL_S: Final = 300.0
OVERDUE: Final = timedelta(minutes=2)  # whoever made the tenant has finished by then, or never will
SWEEP_MAX_TENANTS: Final = 500  # of one shard
SHARDS_AT_ONCE: Final = 8

log = structlog.get_logger(__name__)


class ConfirmationSweep:
    """Looks for such tenants, *overdue* after they were made, on the shards in use. Many replicas may do so at once."""

    def __init__(
        self,
        confirmer: HomeConfirmer,
        pools: Pools,
        *,
        interval_s: float = SWEEP_INTERVAL_S,
        overdue: timedelta = OVERDUE,
    ) -> None:
        self._confirmer = confirmer
        self._pools = pools
        self._interval_s = interval_s
        self._overdue = overdue

    def __repr__(self) -> str:
        return f"ConfirmationSweep(interval_s={self._interval_s:g}, overdue={self._overdue})"

    async def run(self) -> None:
        """Take turns until cancelled; one turn at a time, and none begins sooner than a turn's length after another."""
        while True:
            started = time.monotonic()
            await self.sweep()
            await asyncio.sleep(max(0.0, started + self._interval_s - time.monotonic()))

    async def sweep(self) -> int:
        """Confirm what is overdue; return how many of those found still are not."""
        pools = [pool for pool in self._pools.by_shard_id().values() if pool.is_healthy]
        places = asyncio.Semaphore(SHARDS_AT_ONCE)

        async def look(pool: ShardPool) -> list[PlacedTenant]:
            async with places:
                return await self._fetch_overdue(pool)

        async with asyncio.TaskGroup() as tasks:
            looks = [tasks.create_task(look(pool), name=f"unconfirmed:{pool.address.shard_id}") for pool in pools]
        # By tenant, once: of one that is unconfirmed on two shards, the other home is found from either.
        found = {placed.tenant_id: placed for look in looks for placed in look.result()}
        troubles = await self._confirmer.confirm(list(found.values())) if found else {}
        for trouble in troubles.values():
            log.debug("confirmation.deferred", count=len(troubles), error=str(trouble))
            break
        return len(troubles)

    async def _fetch_overdue(self, pool: ShardPool) -> list[PlacedTenant]:
        address = pool.address
        try:
            async with pool.connection() as connection:
                if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                    return []
                rows = await connection.fetch(
                    QUERIES["find_unconfirmed"], self._overdue.total_seconds(), SWEEP_MAX_TENANTS
                )
        except WorkerError as exc:
            log.debug("confirmation.deferred", shard_id=address.shard_id, error=str(exc))
            return []
        return [PlacedTenant(row["business_id"], row["location_id"], row["business_type"], address) for row in rows]
