"""Confirm tenants left unconfirmed: the replica that made them was killed, or a shard did not answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_shard
from simplu_worker.shards.tenants.home_confirmation import HomeConfirmer, PlacedTenant
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.periodic import repeat_every
from simplu_worker.vocabulary import TargetKind

SWEEP_INTERVAL_S: Final = 300.0
OVERDUE: Final = timedelta(minutes=2)  # by then the replica that made the tenant has confirmed it, or never will
SWEEP_MAX_TENANTS: Final = 500  # of one shard
SHARDS_AT_ONCE: Final = 8

log = structlog.get_logger(__name__)


class ConfirmationSweep:
    """Confirms tenants on the shards in use, *overdue* after they were made. Safe on many replicas at once."""

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
        """Sweep until cancelled, one sweep at a time; each begins at least `interval_s` after the one before."""
        await repeat_every(self._interval_s, self.sweep)

    async def sweep(self) -> int:
        """Confirm the overdue tenants; return the number that could not be confirmed."""
        began_at = loop_time()
        in_use = list(self._pools.by_shard_id().values())
        pools = [pool for pool in in_use if pool.is_healthy]
        slots = asyncio.Semaphore(SHARDS_AT_ONCE)

        async def fetch(pool: ShardPool) -> list[PlacedTenant] | None:
            async with slots:
                return await self._fetch_overdue(pool)

        async with asyncio.TaskGroup() as tasks:
            fetches = [tasks.create_task(fetch(pool), name=f"unconfirmed:{pool.address.shard_id}") for pool in pools]
        # Each tenant once: if it is unconfirmed on two shards, the confirmation of one home finds the other.
        answers = [task.result() for task in fetches]
        overdue = {placed.tenant_id: placed for answer in answers for placed in answer or ()}
        errors = await self._confirmer.confirm(list(overdue.values())) if overdue else {}
        are_all_answers_whole = all(answer is not None and len(answer) < SWEEP_MAX_TENANTS for answer in answers)
        if are_all_answers_whole and len(pools) == len(in_use):
            self._confirmer.forget_splits(overdue, found_before=began_at - self._overdue.total_seconds())
        for error in errors.values():
            log.debug("confirmation.deferred", shard_id=None, count=len(errors), error=str(error))
            break
        return len(errors)

    async def _fetch_overdue(self, pool: ShardPool) -> list[PlacedTenant] | None:
        """Return the overdue tenants of a shard; None if it does not answer."""
        address = pool.address
        try:
            rows = await fetch_from_shard(
                pool, QUERIES["find_unconfirmed"], self._overdue.total_seconds(), SWEEP_MAX_TENANTS
            )
        except Exception as exc:  # noqa: BLE001  # of this shard; the others continue
            if not isinstance(exc, WorkerError):
                exc = note_trouble(TargetKind.SHARD, address.shard_id, "confirmation", exc)
            log.debug("confirmation.deferred", shard_id=address.shard_id, count=None, error=str(exc))
            return None
        return [PlacedTenant(row["business_id"], row["location_id"], row["business_type"], address) for row in rows]
