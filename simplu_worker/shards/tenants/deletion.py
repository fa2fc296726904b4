"""Delete the resources of destroyed tenants after their grace time, in small batches, never on an unhealthy shard.

Safe because the shard's clock counts only while it agrees with ours, and because each step locks the tenant's row and
checks its state: a tenant that was restored, or made again after another replica had ended its deletion, loses nothing.
A step waits only shortly for a locked row, and leaves its tenant to the next turn: the other tenants keep their time.
After the first deletion the tenant cannot be restored any more (`deletion_began_at`). The tenant's log is deleted by
the log's own retention, and its row stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import Any, Final

import structlog

from simplu_worker.bulkheads import note_trouble
from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.retention_rules import deletion_pause_s
from simplu_worker.shards.log.marks import BulkChange, BulkOrigin, mark_bulk_change
from simplu_worker.shards.log.message_failures import forget_failures_of_tenant
from simplu_worker.shards.log.rejections import forget_rejections_of_tenant
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError, fewer_after
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.clock_check import check_clocks
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.timing.periodic import repeat_every
from simplu_worker.vocabulary import TargetKind

TURN_S: Final = 60.0
ALL_SHARDS_INTERVAL_S: Final = 900.0  # between two queries of shards that are not in use: each takes a connection
STATEMENT_MAX_ROWS: Final = 1000
SHARDS_AT_ONCE: Final = 8

log = structlog.get_logger(__name__)


class TenantDeleter:
    """Deletes the resources of `destroying` tenants on every shard, *grace* after their destruction began."""

    def __init__(
        self,
        locator: Locator,
        pools: Pools,
        grace: timedelta,
        *,
        turn_s: float = TURN_S,
        statement_max_rows: int = STATEMENT_MAX_ROWS,
        on_change: OnChange = ignore_changes,
    ) -> None:
        self._locator = locator
        self._pools = pools
        self._grace = grace
        self._turn_s = turn_s
        self._statement_max_rows = statement_max_rows
        self._on_change = on_change
        self._slots = asyncio.Semaphore(SHARDS_AT_ONCE)
        self._all_shards_listed_at: float | None = None

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.delete_due)

    async def delete_due(self) -> int:
        """Delete due resources; return the number of tenants with a complete deletion.

        Each shard has `turn_s` to begin deletions, and then as long to delete.
        """
        pools = await self._list_pools()
        async with asyncio.TaskGroup() as tasks:
            turns = [
                tasks.create_task(self._delete_on(pool), name=f"deletion:{pool.address.shard_id}") for pool in pools
            ]
        return sum(turn.result() for turn in turns)

    async def _list_pools(self) -> list[ShardPool]:
        """Return the pools in use, and at intervals those of all shards: one may have only destroyed tenants."""
        now = time.monotonic()
        if self._all_shards_listed_at is None or now >= self._all_shards_listed_at + ALL_SHARDS_INTERVAL_S:
            try:
                shards = await self._locator.list_shards()
            except (RetryableError, PermanentError) as exc:
                log.debug("deletion.shards_unknown", error=str(exc))
            else:
                self._all_shards_listed_at = now
                for shard in shards:
                    if shard.refusal is None:
                        self._pools.ensure_pool(shard)
        return [pool for pool in self._pools.by_shard_id().values() if pool.is_healthy]

    async def _delete_on(self, pool: ShardPool) -> int:
        count = 0
        try:
            async with self._slots:
                tenants = await self._begin_due(pool)
            end = time.monotonic() + self._turn_s  # only now: waits for a slot and for locked rows delete nothing
            for number, tenant in enumerate(tenants):
                left_s = max(end - time.monotonic(), 0.0)  # shared, as a large one would keep all others waiting
                try:
                    count += await self._delete(pool, tenant, within_s=left_s / (len(tenants) - number))
                except (LostRaceError, StatementFailedError) as exc:  # of this tenant; the others continue
                    log.warning(
                        "tenant.not_deleted",
                        business_id=tenant["business_id"],
                        location_id=tenant["location_id"],
                        shard_id=pool.address.shard_id,
                        error=str(exc),
                    )
        except RetryableError as exc:
            log.debug("deletion.deferred", shard_id=pool.address.shard_id, error=str(exc))
        except Exception as exc:  # noqa: BLE001  # of this shard; the others continue
            note_trouble(TargetKind.SHARD, pool.address.shard_id, "deletion", exc)
        return count

    async def _begin_due(self, pool: ShardPool) -> list[dict[str, Any]]:
        """Return the tenants to delete from, all marked as begun; the next turn has those that could not be marked."""
        grace_s = self._grace.total_seconds()
        async with pool.transaction() as connection:
            if not await has_schema(connection, pool):
                return []
            await check_clocks(connection, pool)
            tenants = [dict(row) for row in await connection.fetch(QUERIES["find_deletions"], grace_s)]
        begun = [tenant for tenant in tenants if tenant["is_begun"]]
        end = time.monotonic() + self._turn_s
        for tenant in tenants:
            if tenant["is_begun"]:
                continue
            with contextlib.suppress(LostRaceError):
                async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
                    await connection.execute(QUERIES["begin_deletion"], tenant["id"], grace_s)
                begun.append(tenant)
            if time.monotonic() >= end:
                break
        return begun

    async def _delete(self, pool: ShardPool, tenant: dict[str, Any], *, within_s: float) -> bool:
        """Delete a tenant's resources; return whether all are deleted, and the tenant is destroyed, by this call."""
        end = time.monotonic() + within_s
        row_count = 0
        limit = self._statement_max_rows
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                async with self._slots:
                    deleted = await self._delete_rows(pool, tenant["id"], limit)
                    is_last = deleted is not None and deleted < limit and await self._end(pool, tenant["id"])
            except StatementFailedError as exc:
                limit = fewer_after(exc, limit)
                continue
            if deleted is None:
                return False
            row_count += deleted
            if is_last:
                log.info(
                    "tenant.destroyed",
                    business_id=tenant["business_id"],
                    location_id=tenant["location_id"],
                    shard_id=pool.address.shard_id,
                    resource_count=row_count,
                )
                return True
            if not deleted:
                return False  # another replica is deleting the rest
            await asyncio.sleep(deletion_pause_s(time.monotonic() - started))
        return False

    async def _delete_rows(self, pool: ShardPool, tenant_id: str, limit: int) -> int | None:
        """Delete up to *limit* rows, and return their number; None if the tenant's deletion is over or cancelled."""
        keys: list[ResourceKey] = []
        try:
            async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
                if await connection.fetchrow(QUERIES["lock_deletion"], tenant_id) is None:
                    return None
                rows = await connection.fetch(QUERIES["delete_resources"], tenant_id, limit)
                if rows:
                    await mark_bulk_change(connection, BulkChange.DESTROYED, tenant_id)
                keys += (ResourceKey(tenant_id, row["resource_type"], row["resource_id"]) for row in rows)
        finally:  # after an unknown outcome too: if the commit succeeded, no later turn finds these rows
            self._on_change(keys)
        return len(keys)

    async def _end(self, pool: ShardPool, tenant_id: str) -> bool:
        # In a transaction of its own: two replicas that share the lock of `lock_deletion` would block each other.
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            status: str = await connection.execute(QUERIES["end_deletion"], tenant_id)
            if status == "UPDATE 1":
                await mark_bulk_change(connection, BulkChange.DESTROYED, tenant_id, BulkOrigin.END)
                await forget_failures_of_tenant(connection, tenant_id)
                await forget_rejections_of_tenant(connection, tenant_id, self._statement_max_rows)
        return status == "UPDATE 1"
