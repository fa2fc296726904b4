"""Begin the destruction of tenants: their operations then fail as `tenant_destroyed`, and the grace time runs.

Citrus gets no message: the tenant's row stays on its shard, and decides the operations that are routed there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import structlog

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_shard, group_by_shard
from simplu_worker.shards.schema.clock_check import check_clocks
from simplu_worker.shards.tenants.control_rules import (
    ControlledTenant,
    ControlStep,
    error_of,
    homes_to_destroy,
    refused_address_as_retryable,
    step_of_destruction,
    timestamp_text,
    unforeseen_with_shard,
)
from simplu_worker.shards.tenants.shard_slots import AT_ONCE, SAFE_WITHIN_S, ShardSlots
from simplu_worker.shards.types import DestructionResult, FailedOnShardError, ShardUnavailableError
from simplu_worker.vocabulary import TenantState

log = structlog.get_logger(__name__)

RESULTS: Final = {
    ControlStep.DESTROY: DestructionResult.DESTROYING,
    ControlStep.NOTE: DestructionResult.EXISTED,
    ControlStep.STALE: DestructionResult.STALE,
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
        """Destroy one tenant on its present shard, and wait until that is as safe as the shard can make it; idempotent.

        Raises `PermanentError` if another tenant has its id, and `RetryableError` while Citrus or a shard does not
        answer, or the tenant is being moved.
        """
        home = await self._find_home(tenant_id_of(business_id, location_id))
        if home is None:
            return DestructionResult.UNKNOWN
        with unforeseen_with_shard(home.shard_id, tenant_id_of(business_id, location_id)):
            async with self._slots.take(home.shard_id):
                result, server = await self._destroy_on(home, business_id, location_id, requested_at)
            await self._commits.wait_for_transaction(home.shard_id, server, within_s=SAFE_WITHIN_S)
        return result

    async def destroy_all(self, business_id: str, requested_at: datetime) -> dict[str, DestructionResult]:
        """Destroy every tenant of a business; return the results by location id.

        Begins only once every shard has answered. Raises the errors of `destroy`, once the other tenants are destroyed.
        """
        homes = group_by_shard(await self._find_locations(business_id))
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(
                    self._destroy_all_on(shard, business_id, location_ids, requested_at),
                    name=f"destroy:{shard.shard_id}",
                )
                for shard, location_ids in homes
            ]
        results: dict[str, DestructionResult] = {}
        for done in running:
            own, errors = done.result()
            if errors:
                raise errors[0]
            for location_id, result in own.items():
                is_better = result is DestructionResult.DESTROYING
                results[location_id] = result if is_better else results.get(location_id, result)
        return results

    async def _destroy_all_on(
        self, shard: ShardAddress, business_id: str, location_ids: Sequence[str], requested_at: datetime
    ) -> tuple[dict[str, DestructionResult], list[Exception]]:
        """Destroy tenants on one shard, a few at a time; return the results by location, and what failed."""
        results: dict[str, DestructionResult] = {}
        servers: dict[Server, str] = {}  # each with the last location of which the commit is on it
        errors: list[Exception] = []
        left = iter(location_ids)

        async def destroy_some() -> None:
            for location_id in left:
                try:
                    with unforeseen_with_shard(shard.shard_id, tenant_id_of(business_id, location_id)):
                        found = await self._destroy_on(shard, business_id, location_id, requested_at)
                except (WorkerError, FailedOnShardError) as exc:
                    errors.append(exc)
                    if isinstance(exc, ShardUnavailableError):
                        return  # nor does it answer for the others
                else:
                    results[location_id], server = found
                    servers[server] = location_id

        await asyncio.gather(*(destroy_some() for _ in range(AT_ONCE)))
        for server, location_id in servers.items():
            try:
                with unforeseen_with_shard(shard.shard_id, tenant_id_of(business_id, location_id)):
                    await self._commits.wait_for_transaction(shard.shard_id, server, within_s=SAFE_WITHIN_S)
            except (WorkerError, FailedOnShardError) as exc:
                errors.append(exc)
        return results, errors

    async def _find_home(self, tenant_id: str) -> ShardAddress | None:
        with refused_address_as_retryable():
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
        """Return each home of each of a business's tenants, with its location. Raises an error of any shard.

        A tenant has more than one only during a move, or after a destruction.
        """
        answers: dict[str, list[dict[str, Any]]] = {}
        errors: list[WorkerError] = []

        async def fetch(shard: ShardAddress) -> None:
            try:
                pool = self._pools.ensure_pool(shard)
                answers[shard.shard_id] = await fetch_from_shard(pool, QUERIES["find_locations"], business_id)
            except WorkerError as exc:
                errors.append(exc)

        shards = {shard.shard_id: shard for shard in await self._locator.list_shards()}
        async with asyncio.TaskGroup() as tasks:
            for shard in shards.values():
                tasks.create_task(fetch(shard), name=f"locations:{shard.shard_id}")
        if errors:
            raise errors[0]
        states: dict[str, dict[str, TenantState]] = {}
        for shard_id, rows in answers.items():
            for row in rows:
                states.setdefault(row["location_id"], {})[shard_id] = TenantState(row["state"])
        found = {location_id: homes_to_destroy(by_shard) for location_id, by_shard in states.items()}
        homeless_count = sum(1 for homes in found.values() if not homes)
        if homeless_count:
            raise ShardUnavailableError(
                f"{homeless_count} tenants of the business moved: expected their rows on the target shards, got none"
            )
        return [(shards[shard_id], location_id) for location_id, homes in found.items() for shard_id in homes]

    async def _destroy_on(
        self, shard: ShardAddress, business_id: str, location_id: str, requested_at: datetime
    ) -> tuple[DestructionResult, Server]:
        """Destroy a tenant on a shard; return the server on which that was committed, too."""
        step, server = await self._mark_destroying(shard, business_id, location_id, requested_at)
        if step is ControlStep.DESTROY:
            log.info("tenant.destroying", business_id=business_id, location_id=location_id, shard_id=shard.shard_id)
        return RESULTS[step], server

    async def _mark_destroying(
        self, shard: ShardAddress, business_id: str, location_id: str, requested_at: datetime
    ) -> tuple[ControlStep, Server]:
        tenant_id = tenant_id_of(business_id, location_id)
        time_text = timestamp_text(requested_at)
        pool = self._pools.ensure_pool(shard)
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            row = await connection.fetchrow(QUERIES["lock_tenants_for_control"], [tenant_id])
            if row is None:
                raise RetryableError("the tenant's row was deleted since it was found")
            step = step_of_destruction(ControlledTenant.from_row(dict(row)), business_id, location_id, requested_at)
            if (error := error_of(step, tenant_id)) is not None:
                raise error
            if step is ControlStep.DESTROY:
                await check_clocks(connection, pool)  # the grace time begins by the shard's clock
                await connection.execute(QUERIES["destroy_tenant"], tenant_id, time_text)
            elif step is ControlStep.NOTE:
                await connection.execute(QUERIES["note_control"], [tenant_id], [time_text])
            return step, await note_server(connection)
