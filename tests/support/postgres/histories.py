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

AGE = """
WITH aged AS (UPDATE tenants SET created_at = created_at - interval '200 days' WHERE id = $1 RETURNING number)
UPDATE resource_versions SET applied_at = applied_at - interval '100 days' FROM aged
WHERE tenant_no = number AND version > 0
"""
SIGN = """
UPDATE resource_versions AS own
SET digest = simplu_version_digest(
    (
        SELECT prior.digest
        FROM resource_versions AS prior
        WHERE
            prior.tenant_no = own.tenant_no AND prior.type_no = own.type_no AND prior.resource = own.resource
            AND prior.version = own.version - 1
    ),
    own.version, own.applied_at, own.resource, own.request, concat_ws(e'\x1f', tenant_id, resource_type, kind, source),
    document
)
FROM resource_history AS shown
WHERE
    shown.tenant_id = $1 AND shown.resource_key = own.resource AND shown.version = own.version
    AND own.type_no = $2 AND own.resource = $3 AND own.version = $4
"""

Version = tuple[int, str | None, str | None, Any]  # number, change, request id, document


async def keep_history(pool: ShardPool, *names: str, members: Any = "all", keep: str = "forever") -> TypesPlan:
    history = {"keep": keep, "members": members}
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


async def age_versions(pool: ShardPool, tenant_id: str) -> None:
    """Make all of a tenant's versions a hundred days older, with digests of then."""
    await fetch(pool, AGE, tenant_id)
    query = "SELECT type_no, resource, version FROM resource_versions ORDER BY type_no, resource, version"
    for row in await fetch(pool, query):
        await fetch(pool, SIGN, tenant_id, row["type_no"], row["resource"], row["version"])


async def versions(tenant: TenantCase, resource_id: str = "r1", resource_type: str = "patient") -> list[Version]:
    return (await history_of(tenant.pool, tenant.tenant_id)).get((resource_type, resource_id), [])


async def version_numbers(tenant: TenantCase) -> dict[str, list[int]]:
    """Return the numbers of a tenant's versions in the table, by resource."""
    query = "SELECT simplu_id(resource) AS name, version FROM resource_versions WHERE version > 0 ORDER BY version"
    found: dict[str, list[int]] = {}
    for row in await fetch(tenant.pool, query):
        found.setdefault(row["name"], []).append(row["version"])
    return found
