"""Whether two shards are ready for a move, and what it would take; nothing is written."""

from __future__ import annotations

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.locator import Locator, StaticMap
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.settling import read_tenant
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.types import Move


async def time_standbys(pools: Pools, commits: ReplicationWaiter, move: Move) -> float:
    """Wait, not for long, for the standbys of both shards, as the switch will; return how long that took."""
    began_at = loop_time()
    for shard_id in (move.target_id, move.source_id):
        async with pools.pool_of(shard_id).transaction() as connection:
            server = await note_server(connection)
        await commits.wait_for_transaction(shard_id, server)
    return loop_time() - began_at


class MovePlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a move would copy; *byte_count* is of documents. None if the rows take long to count."""

    tenant: str
    source_shard: str
    target_shard: str
    goes_on: bool = False
    resources: int | None = None
    byte_count: int | None = None
    operations: int | None = None


async def check_shards(locator: Locator, pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    """Raise `PermanentError` if a tenant cannot move between the shards, `RetryableError` if one is silent."""
    known = {shard.shard_id: shard for shard in await locator.list_shards()}
    for shard_id in (source_id, target_id):
        if shard_id not in known:
            names = ", ".join(sorted(known))
            raise PermanentError(f"shard {shard_id} is unknown; choose one of {names}")
        await require_schema(pools.ensure_pool(known[shard_id]))
    target = known[target_id]
    if not target.is_active:
        raise PermanentError(f"shard {target_id} is marked inactive; choose another, or have it activated")
    if isinstance(locator, StaticMap) and target_id in locator.map.retired_ids:
        raise PermanentError(f"shard {target_id} is retired in the map, and takes no tenants; take that back first")
    await check_copy(pools.pool_of(target_id))
    await _check_type(pools, tenant_id, source_id, target_id)


async def _check_type(pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
    async with pools.pool_of(source_id).connection() as connection:
        tenant = await read_tenant(connection, tenant_id)
    if tenant is None:
        return  # the move finds out why
    async with pools.pool_of(target_id).connection() as connection:
        missing = await connection.fetch(QUERIES["find_missing_types"], [tenant.business_type])
    if missing:
        raise PermanentError(
            f"shard {target_id} lacks the tenant's business type {tenant.business_type}; write it there with "
            "`simplu-worker types apply`, then move the tenant"
        )


async def check_copy(pool: ShardPool) -> None:
    """Raise `PermanentError` if the role may not write the tables of a shard by COPY."""
    async with pool.connection() as connection:
        if not await connection.fetchval(QUERIES["may_copy_into"]):
            raise PermanentError(
                f"shard {pool.address.shard_id}: COPY needs the role that owns the tables, or one with BYPASSRLS; run "
                "the command with the connection strings of that role"
            )


async def require_schema(pool: ShardPool) -> None:
    """Raise `PermanentError` if a shard is empty, `RetryableError` if it does not answer."""
    shard_id = pool.address.shard_id
    await pool.probe()
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            raise PermanentError(
                f"shard {shard_id} is an empty database; run: simplu-worker shards upgrade {shard_id} --apply"
            )


async def plan_move(pools: Pools, move: Move, *, goes_on: bool = False) -> MovePlan:
    """Return what *move* would copy. Raises `RetryableError` without an answer."""
    sizes = await pools.pool_of(move.source_id).count(QUERIES["describe_tenant_size"], move.tenant_id)
    size = {} if sizes is None else dict(sizes[0])
    return MovePlan(move.tenant_id, move.source_id, move.target_id, goes_on, **size)
