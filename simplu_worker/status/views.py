"""Rows of tenants and shards as JSON members, for the status page and for commands. Pure.

Why a replica is not ready: a word for all callers, and a text for operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from simplu_worker.bulkheads import Trouble
from simplu_worker.feed.types import DestinationView
from simplu_worker.shards.gateway import RejectedRequest
from simplu_worker.shards.health.assessment import health_view
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.types import Lever
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import Absence, TenantState, UnreadyReason


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


def feed_view(published_count: int, destinations: Iterable[DestinationView]) -> dict[str, Any]:
    """Return the feed as JSON members: how many shards this replica publishes, and the destinations over all shards."""
    return {
        "publishedShards": published_count,
        "destinations": [
            {
                "name": one.name,
                "lagSeconds": round(one.lag_s, 1),
                "shards": one.shard_count,
                "heldTenants": one.held_count,
                "stoppedShards": one.stopped_shards,
                "error": None if one.error is None else scrub_text(one.error),
            }
            for one in destinations
        ],
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
        "pausedUntil": row["paused_until"],
        "weight": row["weight"],
        "resources": row.get("resource_count"),
        "operations": row.get("operation_count"),
    }


def refused_view(found: RejectedRequest | Absence | None) -> dict[str, Any] | None:
    """Return the last refused control message of a tenant as JSON members; None without one."""
    if not isinstance(found, RejectedRequest):
        return None
    return {
        "reason": found.reason,
        "error": found.error,
        "at": found.rejected_at,
        "queue": found.source,
        "messageId": found.message_id,
        "deadLetterQueue": found.dead_letter_queue,
    }


def resource_view(resource_type: str, resource_id: str, shard_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a resource as JSON members; *exists* is false without a row."""
    return {
        "resourceType": resource_type,
        "resourceId": resource_id,
        "shardId": shard_id,
        "exists": row["is_there"],
        "sizeBytes": row["size_bytes"],
        "date": row["date"],
        "lastUpdated": row["last_updated"],
        "data": None if row["data"] is None else msgspec.Raw(row["data"].encode()),
    }


def levers_view(shard_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people have set for a tenant as JSON members."""
    return {"shardId": shard_id, "pausedUntil": row["paused_until"], "weight": row["weight"]}


def lever_action(lever: Lever) -> str:
    """Return the name of the action in the log of operators."""
    if lever.pause_s is None:
        return "weigh_tenant"
    return "pause_tenant" if lever.pause_s else "resume_tenant"


def lever_members(lever: Lever) -> dict[str, float]:
    """Return what is set, as the log of operators has it."""
    members = {"seconds": lever.pause_s, "weight": lever.weight}
    return {name: value for name, value in members.items() if value}


def not_steered_error(found: TenantState | Absence) -> str:
    """Return the error for a tenant for which nothing was set."""
    remedy = "; try again once its move has ended" if found is Absence.MOVING else ""
    return f"expected an active tenant, got one that is {found}{remedy}"


def shard_view(shard: InspectedShard) -> dict[str, Any]:
    """Return a known shard as JSON members."""
    address = shard.address
    return {
        "shardId": address.shard_id,
        "place": address.place,
        "isActive": address.is_active,
        "businesses": address.business_count,
        "maxBusinesses": address.business_max,
        "lastHealthCheck": address.last_health_check,
    } | health_view(shard.health)


class Unreadiness(NamedTuple):
    """A reason, and what a person should know beside it: *text* may be an error of a dependency."""

    reason: UnreadyReason
    text: str | None = None
