"""Write resources of a tenant that has moved as they were on its former shard, unless they have changed since."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.log.marks import mark_changes
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.settling.rows import Arrival, MovingTenant, read_tenant
from simplu_worker.transfers.moving.changes import (
    ResourceKey,
    find_written_since_ready,
    read_changed_keys,
    read_resources,
    write_changes,
)
from simplu_worker.transfers.sql_files import QUERIES
from simplu_worker.vocabulary import TenantState


class Repair(msgspec.Struct, frozen=True):
    """How many resources are written or deleted, and those *refused*: somebody has written them since the move."""

    count: int
    refused: AbstractSet[ResourceKey] = frozenset()


async def check_former_rows(source: ShardPool, target: ShardPool, tenant_id: str, arrival: Arrival) -> None:
    """Raise `PermanentError` if *source*, which the tenant has left, does not have its rows as of the move any more."""
    async with target.connection() as connection:
        home = await read_tenant(connection, tenant_id)
    async with source.transaction() as connection:
        await _lock_former_rows(connection, tenant_id, arrival, None if home is None else home.epoch)


async def repair_resources(
    source: ShardPool,
    target: ShardPool,
    tenant_id: str,
    arrival: Arrival,
    keys: Collection[ResourceKey],
    *,
    apply: bool = True,
) -> Repair:
    """Write the resources *keys* as *source* has them, but for those that were written since the fence.

    Without *apply* only return what would be written. The tenant's batches wait for it. Raises `PermanentError` if the
    home is not on *target*, or as `check_former_rows`.
    """
    async with target.transaction() as connection:
        before = await _lock_home(connection, target, tenant_id)  # behind all batches in flight
    # All of a shard's log since the move may be long: only the rest of it is read while batches wait.
    async with target.connection() as connection:
        changed, _ = await read_changed_keys(connection, tenant_id, arrival.ready_at or arrival.read_at)
    async with target.transaction() as connection:
        tenant = await _lock_home(connection, target, tenant_id)
        async with source.transaction() as former:
            await _lock_former_rows(former, tenant_id, arrival, tenant.epoch)
            wanted = await read_resources(former, tenant_id, keys)
        lately, _ = await read_changed_keys(connection, tenant_id, before.read_at)
        changed |= lately
        newer = await find_written_since_ready(connection, tenant_id, set(keys) - changed)
        changes = wanted.without(changed | newer)
        if not apply:
            return Repair(changes.count, newer)
        await write_changes(connection, tenant_id, changes)
        await mark_changes(connection, [(tenant_id, *key) for key in sorted(changes.keys)])
    return Repair(changes.count, newer)


async def _lock_home(connection: Connection, target: ShardPool, tenant_id: str) -> MovingTenant:
    """Return the tenant's row, locked, once no batch of it is in flight."""
    tenant = await read_tenant(connection, tenant_id, locked=True)
    if tenant is None or tenant.state is not TenantState.ACTIVE:
        raise PermanentError(f"{tenant_id}: expected its home on shard {target.address.shard_id}, got none there")
    return tenant


async def _lock_former_rows(former: Connection, tenant_id: str, arrival: Arrival, epoch: int | None) -> None:
    """Keep cleanups and movers from the rows until the end of the transaction; both take a token before they begin."""
    is_whole = await former.fetchval(QUERIES["lock_left"], tenant_id, arrival.move_token)
    left = await read_tenant(former, tenant_id)
    if not is_whole or left is None or left.epoch != epoch:
        raise PermanentError(
            f"{tenant_id}: expected its rows on shard {arrival.source_shard_id} as of the move, got other ones: a "
            "cleanup or a move back has begun, or the tenant was made again since; compare with a backup"
        )
