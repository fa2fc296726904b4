"""Begin the destruction of tenants, and delete their resources after the grace time, in small batches.

Operations fail as `tenant_destroyed` at once. Safe because each step locks the tenant's row and checks its state: a
tenant that was restored or made again loses nothing. A step leaves a locked row to the next turn. After the first
deletion the tenant cannot be restored (`deletion_began_at`). Its log is deleted by the log's retention; its row stays.
Citrus gets no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.operations.retention_rules import deletion_pause_s
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import (
    BulkChange,
    BulkOrigin,
    forget_rejections_of_tenant,
    mark_bulk_change,
    on_each_shard,
)
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError, fewer_after
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards, group_by_shard
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.tenants import control_rules
from simplu_worker.shards.tenants.provisioning import SAFE_WITHIN_S, ShardSlots
from simplu_worker.shards.types import DestructionResult, FailedOnShardError, ShardUnavailableError
from simplu_worker.timing.waits import repeat_every
from simplu_worker.vocabulary import TenantState

TURN_S: Final = 60.0
STATEMENT_MAX_ROWS: Final = 1000
SHARDS_AT_ONCE: Final = 8

log = structlog.get_logger(__name__)


class TenantDeleter:
    """Deletes the resources of `destroying` tenants on every shard, *grace* after their destruction began."""

    def __init__(
        self,
        pools: Pools,
        grace: timedelta,
        *,
        turn_s: float = TURN_S,
        statement_max_rows: int = STATEMENT_MAX_ROWS,
        on_change: OnChange = ignore_changes,
    ) -> None:
        self._pools = pools
        self._grace = grace
        self._turn_s = turn_s
        self._statement_max_rows = statement_max_rows
        self._on_change = on_change
        self._slots = asyncio.Semaphore(SHARDS_AT_ONCE)

    async def run(self) -> None:
        """Take turns until cancelled, one at a time; each begins at least `turn_s` after the one before."""
        await repeat_every(self._turn_s, self.delete_due)

    async def delete_due(self) -> int:
        """Delete due resources, for at most `turn_s` a shard; return the number of tenants with a complete deletion."""
        return sum((await on_each_shard(self._pools, "deletion", self._delete_on)).values())

    async def _delete_on(self, pool: ShardPool) -> int:
        count = 0
        async with self._slots:
            tenants = await self._begin_due(pool)
        end = time.monotonic() + self._turn_s  # only now: waits for a slot and for locked rows delete nothing
        for tenant in tenants:  # in a random order: a large one keeps the others waiting for one turn
            try:
                count += await self._delete(pool, tenant, until=end)
            except (LostRaceError, StatementFailedError) as exc:  # of this tenant; the others continue
                log.warning("tenant.not_deleted", **_names_of(pool, tenant), error=str(exc))
        return count

    async def _begin_due(self, pool: ShardPool) -> list[dict[str, Any]]:
        grace_s = self._grace.total_seconds()
        async with pool.transaction() as connection:
            if not await has_schema(connection, pool):
                return []
            await connection.execute(QUERIES["forget_controls"])
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

    async def _delete(self, pool: ShardPool, tenant: dict[str, Any], *, until: float) -> bool:
        row_count = 0
        limit = self._statement_max_rows
        while time.monotonic() < until:
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
                log.info("tenant.destroyed", **_names_of(pool, tenant), resource_count=row_count)
                return True
            if not deleted:
                return False  # another replica is deleting the rest
            await asyncio.sleep(deletion_pause_s(time.monotonic() - started))
        return False

    async def _delete_rows(self, pool: ShardPool, tenant_id: str, limit: int) -> int | None:
        keys: list[ResourceKey] = []
        try:
            async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
                if await connection.fetchrow(QUERIES["lock_deletion"], tenant_id) is None:
                    return None
                rows = await connection.fetch(QUERIES["delete_resources"], tenant_id, limit)
                if rows:
                    await mark_bulk_change(connection, BulkChange.DESTROYED, tenant_id)
                keys += (ResourceKey(tenant_id, row["resource_type"], row["resource_id"]) for row in rows)
                status = await connection.execute(QUERIES["delete_versions"], tenant_id, limit - len(rows))
        finally:  # after an unknown outcome too: if the commit succeeded, no later turn finds these rows
            self._on_change(keys)
        return len(keys) + affected_count(status)

    async def _end(self, pool: ShardPool, tenant_id: str) -> bool:
        # In a transaction of its own: two replicas that share the lock of `lock_deletion` would block each other.
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            status: str = await connection.execute(QUERIES["end_deletion"], tenant_id)
            if status == "UPDATE 1":
                await mark_bulk_change(connection, BulkChange.DESTROYED, tenant_id, BulkOrigin.END)
                await forget_rejections_of_tenant(connection, tenant_id, self._statement_max_rows)
        return status == "UPDATE 1"


def _names_of(pool: ShardPool, tenant: Mapping[str, Any]) -> dict[str, str]:
    return {
        "business_id": tenant["business_id"],
        "location_id": tenant["location_id"],
        "shard_id": pool.address.shard_id,
    }


RESULTS: Final = {
    control_rules.ControlStep.DESTROY: DestructionResult.DESTROYING,
    control_rules.ControlStep.NOTE: DestructionResult.EXISTED,
    control_rules.ControlStep.STALE: DestructionResult.STALE,
}


class Destroyer:
    """Marks tenants as `destroying`; `TenantDeleter` deletes their resources after the grace time."""

    def __init__(
        self, locator: Locator, directory: Directory, pools: Pools, *, commits: ReplicationWaiter | None = None
    ) -> None:
        self._locator = locator
        self._directory = directory
        self._pools = pools
        self._commits = commits or ReplicationWaiter(pools)
        self._slots = ShardSlots()

    async def destroy(self, business_id: str, location_id: str, requested_at: datetime) -> DestructionResult:
        """Destroy one tenant on its present shard, and wait until that is safe; idempotent.

        Raises `PermanentError` if another tenant has its id, `RetryableError` without an answer, or while it is being
        moved.
        """
        home = await self._find_home(tenant_id_of(business_id, location_id))
        if home is None:
            return DestructionResult.UNKNOWN
        return await self._destroy_on(home, business_id, location_id, requested_at)

    async def destroy_all(self, business_id: str, requested_at: datetime) -> dict[str, DestructionResult]:
        """Destroy every tenant of a business once every shard has answered; return the results by location id."""
        homes = group_by_shard(await self._find_locations(business_id))
        results: dict[str, DestructionResult] = {}
        errors: list[Exception] = []

        async def destroy_on(shard: ShardAddress, location_ids: Sequence[str]) -> None:
            for location_id in location_ids:
                try:
                    result = await self._destroy_on(shard, business_id, location_id, requested_at)
                except (WorkerError, FailedOnShardError) as exc:
                    errors.append(exc)
                    if isinstance(exc, ShardUnavailableError):
                        return  # nor does it answer for the others
                else:
                    is_better = result is DestructionResult.DESTROYING
                    results[location_id] = result if is_better else results.get(location_id, result)

        async with asyncio.TaskGroup() as tasks:
            for shard, location_ids in homes:
                tasks.create_task(destroy_on(shard, location_ids), name=f"destroy:{shard.shard_id}")
        if errors:
            raise errors[0]
        return results

    async def _find_home(self, tenant_id: str) -> ShardAddress | None:
        with control_rules.refused_address_as_retryable():
            named = await self._locator.locate(tenant_id)
        if named is None:  # Citrus may have lost the registration; a shard still has the row
            shards = (await self._locator.list_possible_homes([tenant_id]))[tenant_id]
            if not shards:
                return None
            named = shards[0]
        elif not named.is_active:
            raise RetryableError(f"shard {named.shard_id} is not active")
        home = await self._directory.find_home(tenant_id, named)
        return None if home is None else home.address

    async def _find_locations(self, business_id: str) -> list[tuple[ShardAddress, str]]:
        answers = await fetch_from_all_shards(self._locator, self._pools, QUERIES["find_locations"], business_id)
        if silent := answers.silent_shard_ids:
            raise ShardUnavailableError(f"shard {silent[0]}: no answer; it may have locations of the business")
        states: dict[str, dict[str, TenantState]] = {}
        for shard_id, row in answers.rows:
            states.setdefault(row["location_id"], {})[shard_id] = TenantState(row["state"])
        found = {location_id: control_rules.homes_to_destroy(by_shard) for location_id, by_shard in states.items()}
        homeless_count = sum(1 for homes in found.values() if not homes)
        if homeless_count:
            raise ShardUnavailableError(
                f"{homeless_count} tenants of the business moved: expected their rows on the target shards, got none"
            )
        pools = self._pools.by_shard_id()
        return [(pools[shard_id].address, location_id) for location_id, homes in found.items() for shard_id in homes]

    async def _destroy_on(
        self, shard: ShardAddress, business_id: str, location_id: str, requested_at: datetime
    ) -> DestructionResult:
        with control_rules.unforeseen_with_shard(shard.shard_id, tenant_id_of(business_id, location_id)):
            async with self._slots.take(shard.shard_id):
                step, server = await self._mark_destroying(shard, business_id, location_id, requested_at)
            if step is control_rules.ControlStep.DESTROY:
                log.info("tenant.destroying", business_id=business_id, location_id=location_id, shard_id=shard.shard_id)
            await self._commits.wait_for_transaction(shard.shard_id, server, within_s=SAFE_WITHIN_S)
        return RESULTS[step]

    async def _mark_destroying(
        self, shard: ShardAddress, business_id: str, location_id: str, requested_at: datetime
    ) -> tuple[control_rules.ControlStep, Server]:
        tenant_id = tenant_id_of(business_id, location_id)
        time_text = control_rules.timestamp_text(requested_at)
        pool = self._pools.ensure_pool(shard)
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            row = await connection.fetchrow(QUERIES["lock_tenants_for_control"], [tenant_id])
            if row is None:
                raise RetryableError("the tenant's row was deleted since it was found")
            step = control_rules.step_of_destruction(
                control_rules.tenant_of(row), business_id, location_id, requested_at
            )
            if (error := control_rules.error_of(step, tenant_id)) is not None:
                raise error
            if step is control_rules.ControlStep.DESTROY:
                await connection.execute(QUERIES["destroy_tenant"], tenant_id, time_text)
            elif step is control_rules.ControlStep.NOTE:
                await connection.execute(QUERIES["note_control"], [tenant_id], [time_text])
            return step, await note_server(connection)
