"""Rows of tenants and shards as JSON members, for the status page and for commands. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simplu_worker.bulkheads import Trouble
from simplu_worker.shards.health.all_shards import InspectedShard
from simplu_worker.shards.health.assessment import health_view


def trouble_view(trouble: Trouble) -> dict[str, Any]:
    """Return the unforeseen errors of a target as JSON members."""
    return {
        "target": trouble.target,
        "about": trouble.name,
        "loop": trouble.loop,
        "error": trouble.error,
        "count": trouble.count,
        "since": trouble.since.isoformat(timespec="seconds"),
        "at": trouble.last_at.isoformat(timespec="seconds"),
    }


def tenant_view(shard_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tenant's row as JSON members."""
    return {
        "businessId": row["business_id"],
        "locationId": row["location_id"],
        "businessType": row["business_type"],
        "state": row["state"],
        "shardId": shard_id,
        "movedTo": row["moved_to"],
        "createdAt": row["created_at"],
        "resources": row.get("resource_count"),
        "operations": row.get("operation_count"),
    }


def shard_view(shard: InspectedShard) -> dict[str, Any]:
    """Return a known shard as JSON members."""
    address = shard.address
    return {
        "shardId": address.shard_id,
        "place": address.place,
        "isActive": address.is_active,
        "tenants": address.tenant_count,
        "maxTenants": address.tenant_max,
    } | health_view(shard.health)
