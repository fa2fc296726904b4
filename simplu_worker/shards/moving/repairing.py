"""Write resources of a tenant that has moved as they were on its former shard, unless they have changed since."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from simplu_worker.errors import PermanentError
from simplu_worker.operations.admission import TenantState
from simplu_worker.shards.moving.changes import ResourceKey, read_changed_keys, read_resources, write_changes
from simplu_worker.shards.moving.rows import read_tenant
from simplu_worker.shards.postgres.pool import ShardPool


async def repair_resources(
    source: ShardPool, target: ShardPool, tenant_id: str, since: datetime, keys: Collection[ResourceKey]
) -> int:
    """Write the resources *keys* as *source* has them; return how many were written or deleted.

    The tenant's batches wait for it. Raises `PermanentError` if the home is not on *target*.
    """
    async with source.connection() as connection:
        wanted = await read_resources(connection, tenant_id, keys)
    async with target.transaction() as connection:
        tenant = await read_tenant(connection, tenant_id, locked=True)
        if tenant is None or tenant.state is not TenantState.ACTIVE:
            raise PermanentError(f"{tenant_id}: expected its home on shard {target.address.shard_id}, got none there")
        changed, _ = await read_changed_keys(connection, tenant_id, since)
        changes = wanted.without(changed)
        await write_changes(connection, tenant_id, changes)
    return changes.count
