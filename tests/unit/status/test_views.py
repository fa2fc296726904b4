from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from simplu_worker.bulkheads import Trouble
from simplu_worker.feed.types import DestinationView
from simplu_worker.shards.health.assessment import Health, ShardObservation, health_view
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.status import views
from simplu_worker.vocabulary import Absence, TargetKind, TenantState

NOON = datetime(2026, 11, 27, 12, 0, 0, 250_000, tzinfo=UTC)
AT = "2026-11-27T12:00:00.250000Z"
ROW = {
    "business_id": "b",
    "location_id": "l",
    "business_type": "dental",
    "state": TenantState.ACTIVE,
    "moved_to": "shard-2",
    "created_at": NOON,
    "paused_until": NOON,
    "weight": 2.0,
}


def test_tenant_with_and_without_the_numbers_of_its_rows() -> None:
    members = {
        "businessId": "b",
        "locationId": "l",
        "businessType": "dental",
        "state": "active",
        "shardId": "shard-1",
        "movedTo": "shard-2",
        "createdAt": NOON,
        "pausedUntil": NOON,
        "weight": 2.0,
    }
    counted = ROW | {"resource_count": 3, "operation_count": 4}
    assert views.tenant_view("shard-1", counted) == members | {"resources": 3, "operations": 4}
    assert {name for name, value in views.tenant_view("shard-1", ROW).items() if value is not None} == set(members)


def test_refused_control_message_is_told_without_its_request_id() -> None:
    refused = RejectedRequest("r", "invalid", "no name", "letters", "control", NOON, "shard-1", message_id="m-1")
    assert views.refused_view(refused) == {
        "reason": "invalid",
        "error": "no name",
        "at": NOON,
        "queue": "control",
        "messageId": "m-1",
        "deadLetterQueue": "letters",
    }
    assert views.refused_view(None) is views.refused_view(Absence.MOVING) is None


def test_controls() -> None:
    assert views.controls_view("shard-1", ROW) == {"shardId": "shard-1", "pausedUntil": NOON, "weight": 2.0}
    is_moving = "expected an active tenant, got one that is moving; try again once its move has ended"
    assert views.controls_error(Absence.MOVING) == is_moving
    assert views.controls_error(TenantState.DESTROYED) == "expected an active tenant, got one that is destroyed"


def test_unforeseen_error() -> None:
    trouble = Trouble(TargetKind.QUEUE, "orders", "poll", "KeyError", 3, NOON, NOON, 0.0)
    assert views.trouble_view(trouble) == {
        "target": "queue",
        "about": "orders",
        "loop": "poll",
        "error": "KeyError",
        "count": 3,
        "since": "2026-11-27T12:00:00+00:00",
        "at": "2026-11-27T12:00:00+00:00",
    }


def test_feed_without_the_secrets_of_its_errors() -> None:
    error = "postgres://user:secret@host/db refused"
    found = views.feed_state(2, [DestinationView("a", 1.26, 3, 4, ("s-1",), error), DestinationView("b")])
    one, other = found.destinations
    assert (found.published_shards, one.name, one.lag_seconds, one.shards, one.waiting_shards) == (2, "a", 1.3, 3, 4)
    assert (one.stopped_shards, other.stopped_shards, other.error) == (["s-1"], [], None)
    assert ("refused" in str(one.error), "secret" in str(one.error)) == (True, False)


def test_shard_is_its_address_and_its_health() -> None:
    place = "postgres://db.internal/one"
    address = ShardAddress("shard-1", place, is_active=False, business_count=3, business_max=9, last_health_check="now")
    health = Health(ShardObservation(error="no answer"))
    shown: dict[str, Any] = views.shard_view(InspectedShard(address, health))
    own = {"shardId": "shard-1", "place": address.place, "isActive": False, "businesses": 3, "maxBusinesses": 9}
    assert shown == own | {"lastHealthCheck": address.last_health_check} | health_view(health)
