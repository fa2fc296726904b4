"""Begin to destroy tenants: from then on their operations end `tenant_destroyed`; the rows go after the grace time.

Citrus is not told (contract §4): the tenant's row stays where it is, and says so to everybody who is sent there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime

import structlog

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.admission import TenantState
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.postgres.address import AddressRefusedError, ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.shards.tenants.control_rules import ControlledTenant, ControlStep, error_of, step_of_destruction
from simplu_worker.shards.types import DestructionResult, ShardNotAllowedError, ShardUnavailableError

log = structlog.get_logger(__name__)


RESULTS = {
    ControlStep.DESTROY: DestructionResult.DESTROYING,
    ControlStep.NOTE: DestructionResult.EXISTED,
    ControlStep.STALE: DestructionResult.STALE,
}


class Destroyer:
    """Marks tenants for the deletion of what they have."""

    def __init__(
        self, locator: Locator, directory: Directory, pools: Pools, *, commits: ReplicationWaiter | None = None
    ) -> None:
        self._locator = locator
        self._directory = directory
        self._pools = pools
        self._commits = commits or ReplicationWaiter(pools)

    async def destroy(self, business_id: str, location_id: str, requested_at: datetime) -> DestructionResult:
        """Destroy one tenant, where it lives now; idempotent. It then is as safe as its shard can make it.

        Raises `PermanentError` when another tenant has its id, and `RetryableError` while somebody who must be asked
        does not answer, or the tenant is being moved.
        """
        home = await self._find_home(tenant_id_of(business_id, location_id))
        if home is None:
            return DestructionResult.UNKNOWN
        return await self._destroy_on(home, business_id, location_id, requested_at)

    async def destroy_all(self, business_id: str, requested_at: datetime) -> dict[str, DestructionResult]:
        """Destroy every tenant of a business; return what became of each by location id.

        Nothing is begun before every shard has answered. Raises `RetryableError` as `destroy`, when all that can be
        destroyed is.
        """
        by_location = await self._find_locations(business_id)
        results: dict[str, DestructionResult] = {}
        troubles: list[WorkerError] = []

        async def destroy(location_id: str, shards: Mapping[str, ShardAddress]) -> None:
            for shard in shards.values():  # more than one only in the midst of a move, or after a destruction
                try:
                    result = await self._destroy_on(shard, business_id, location_id, requested_at)
                except WorkerError as exc:
                    troubles.append(exc)
                else:
                    is_better = result is DestructionResult.DESTROYING
                    results[location_id] = result if is_better else results.get(location_id, result)

        async with asyncio.TaskGroup() as tasks:
            for location_id, shards in by_location.items():
                tasks.create_task(destroy(location_id, shards), name=f"destroy:{location_id}")
        if troubles:
            raise troubles[0]
        return results

    async def _find_home(self, tenant_id: str) -> ShardAddress | None:
        try:
            named = await self._locator.locate(tenant_id)
        except AddressRefusedError as exc:
            raise ShardNotAllowedError(str(exc)) from exc
        if named is None:  # Citrus may have forgotten it; a shard has not
            shards = (await self._locator.list_possible_homes([tenant_id]))[tenant_id]
            if not shards:
                return None
            named = shards[0]
        elif not named.is_active:
            raise RetryableError(f"shard {named.shard_id} is not active")
        home = await self._directory.find_home(tenant_id, named)
        return None if home is None else home.address

    async def _find_locations(self, business_id: str) -> dict[str, dict[str, ShardAddress]]:
        """Return where the tenants of a business live, by location and shard id; every shard has to say so."""
        answers: dict[str, list[tuple[str, str]]] = {}
        troubles: list[WorkerError] = []

        async def ask(shard: ShardAddress) -> None:
            try:
                answers[shard.shard_id] = await self._fetch_locations(shard, business_id)
            except WorkerError as exc:
                troubles.append(exc)

        shards = {shard.shard_id: shard for shard in await self._locator.list_shards()}
        async with asyncio.TaskGroup() as tasks:
            for shard in shards.values():
                tasks.create_task(ask(shard), name=f"locations:{shard.shard_id}")
        if troubles:
            raise troubles[0]
        found: dict[str, dict[str, ShardAddress]] = {}
        for shard_id, locations in answers.items():
            for location_id, state in locations:
                homes = found.setdefault(location_id, {})
                if state != TenantState.MOVED:
                    homes[shard_id] = shards[shard_id]
        homeless = sum(1 for homes in found.values() if not homes)
        if homeless:
            raise ShardUnavailableError(f"{homeless} tenants of the business moved to shards that have no row of them")
        return found

    async def _fetch_locations(self, shard: ShardAddress, business_id: str) -> list[tuple[str, str]]:
        async with self._pools.ensure_pool(shard).connection() as connection:
            if await check_schema(connection, shard.shard_id) is SchemaState.EMPTY:
                return []
            rows = await connection.fetch(QUERIES["find_locations"], business_id)
        return [(row["location_id"], row["state"]) for row in rows]

    async def _destroy_on(
        self, shard: ShardAddress, business_id: str, location_id: str, requested_at: datetime
    ) -> DestructionResult:
        tenant_id = tenant_id_of(business_id, location_id)
        text_of_time = requested_at.isoformat()  # as text: asyncpg makes infinities of the extremes
        async with self._pools.ensure_pool(shard).transaction() as connection:
            row = await connection.fetchrow(QUERIES["lock_tenants_for_control"], [tenant_id])
            if row is None:
                raise RetryableError("the tenant's row went away")
            step = step_of_destruction(ControlledTenant.from_row(dict(row)), business_id, location_id, requested_at)
            if (trouble := error_of(step, tenant_id)) is not None:
                raise trouble
            if step is ControlStep.DESTROY:
                await connection.execute(QUERIES["destroy_tenant"], tenant_id, text_of_time)
            elif step is ControlStep.NOTE:
                await connection.execute(QUERIES["note_control"], [tenant_id], [text_of_time])
            server = await note_server(connection)
        if step is ControlStep.DESTROY:
            log.info("tenant.destroying", business_id=business_id, location_id=location_id, shard_id=shard.shard_id)
        await self._commits.wait_for_transaction(shard.shard_id, server)
        return RESULTS[step]
