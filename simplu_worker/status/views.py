"""Rows of tenants and shards as JSON members, for HTTP and commands. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from simplu_worker.bulkheads import Trouble
from simplu_worker.feed.types import DestinationView
from simplu_worker.shards.health.assessment import health_view
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.shards.routing.shard_query import ShardRows
from simplu_worker.status.answers import (
    BusinessControls,
    BusinessShare,
    Controls,
    FeedDestination,
    FeedState,
    Json,
    Refusal,
    Tenant,
)
from simplu_worker.status.words import UnreadyReason
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import Absence, TenantState


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


def feed_state(published_count: int, destinations: Iterable[DestinationView]) -> FeedState:
    """Return the feed: the shards published here, and all destinations."""
    return FeedState(
        published_count,
        [
            FeedDestination(
                name=one.name,
                lag_seconds=round(one.lag_s, 1),
                shards=one.shard_count,
                waiting_shards=one.waiting_count,
                stopped_shards=list(one.stopped_shards),
                error=None if one.error is None else scrub_text(one.error),
            )
            for one in destinations
        ],
    )


TENANT_COLUMNS: Final = (
    *("business_id", "location_id", "business_type", "state", "moved_to", "created_at", "paused_until", "weight"),
)
LIMIT_COLUMNS: Final = {"operations_per_s": "operations_per_second", "bytes_per_s": "bytes_per_second"}


def tenant_view(shard_id: str, row: Mapping[str, Any]) -> Json:
    """Return a tenant's row as JSON members."""
    counts: dict[str, Any] = {"resources": row.get("resource_count"), "operations": row.get("operation_count")}
    limits = {shown: row[name] for name, shown in LIMIT_COLUMNS.items()}
    return Tenant(
        shard_id=shard_id,
        **{name: row[name] for name in TENANT_COLUMNS},
        **limits,
        **counts,
        business=_of_business(row),
    ).json()


def _of_business(row: Mapping[str, Any]) -> BusinessShare | None:
    limits = row["business_operations_per_s"], row["business_bytes_per_s"]
    return (
        None
        if row["business_weight"] == 1.0 and limits == (None, None)
        else BusinessShare(row["business_weight"], *limits)
    )


def limit_text(view: Mapping[str, Any]) -> str:
    """Return what a tenant, with its business, or a business may send, for people."""
    rates = (("operationsPerSecond", "operations/s"), ("bytesPerSecond", "bytes/s"))
    of_business = view.get("business") or {}
    texts = [f"{view[name]:g} {unit}" for name, unit in rates if view.get(name)]
    texts += [f"{of_business[name]:g} {unit} of its business" for name, unit in rates if of_business.get(name)]
    return " and ".join(texts) or "none"


def refused_view(found: RejectedRequest | Absence | None) -> Json | None:
    """Return the last refused control message of a tenant, if any."""
    if not isinstance(found, RejectedRequest):
        return None
    return Refusal(
        reason=found.reason,
        error=found.error,
        at=found.rejected_at,
        queue=found.source,
        message_id=found.message_id,
        dead_letter_queue=found.dead_letter_queue,
    ).json()


def controls_view(shard_id: str, row: Mapping[str, Any]) -> Json:
    """Return what people have set for a tenant as JSON members."""
    names = ("paused_until", "weight", *LIMIT_COLUMNS)
    return Controls(shard_id, *(row[name] for name in names)).json()


def business_controls_view(found: ShardRows) -> Json:
    """Return what people have set for a business on each shard as JSON members."""
    shards = [controls_view(shard_id, row) for shard_id, row in found.rows]
    return BusinessControls(shards, list(found.silent_shard_ids)).json()


def controls_error(found: TenantState | Absence) -> str:
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
    """A reason for all callers, and a *text* for operators."""

    reason: UnreadyReason
    text: str | None = None
