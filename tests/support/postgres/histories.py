"""Histories of resources: switched on for a shard, and read."""

from __future__ import annotations

import json
from typing import Any

from support.postgres.tenant_cases import TenantCase, fetch

from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import write_types
from simplu_worker.shards.schema.type_files import TypesPlan, read_type

READ = """
SELECT resource_type, resource_id, version, change, request_id, source, applied_at, replaced_at, document::text
FROM public.resource_history
WHERE tenant_id = $1
ORDER BY resource_type, resource_id, version
"""

Version = tuple[int, str | None, str | None, Any]  # number, change, request id, document


async def keep_history(pool: ShardPool, *names: str, members: Any = "all") -> TypesPlan:
    history = {"keep": "forever", "members": members}
    types = [{"name": name, "history": history} for name in names]
    definition = {"name": "dental", "defaultSettings": {}, "staffResourceType": "medic", "resourceTypes": types}
    async with pool.transaction() as connection:
        return await write_types(connection, {"dental": read_type(json.dumps(definition))})


async def history_of(pool: ShardPool, tenant_id: str) -> dict[tuple[str, str], list[Version]]:
    """Return the versions of each resource by type and id."""
    found: dict[tuple[str, str], list[Version]] = {}
    for row in await fetch(pool, READ, tenant_id):
        document = None if row["document"] is None else json.loads(row["document"])
        version = (row["version"], row["change"], row["request_id"], document)
        found.setdefault((row["resource_type"], row["resource_id"]), []).append(version)
    return found


async def versions(tenant: TenantCase, resource_id: str = "r1", resource_type: str = "patient") -> list[Version]:
    return (await history_of(tenant.pool, tenant.tenant_id)).get((resource_type, resource_id), [])
