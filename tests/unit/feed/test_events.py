"""The events of a row of the log, and those that take events back or tell of lost batches."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from support.feed.events import AT, TENANT, feed_event

from simplu_worker.feed.events import (
    NO_INCARNATION,
    LogRow,
    ReadRow,
    gap_event,
    read_row,
    undone_bounds_event,
    undone_event,
)
from simplu_worker.feed.places import HeldTenant, Place
from simplu_worker.feed.types import EventBounds, FeedEvent, Incarnation
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log.marks import BulkChange, BulkOrigin, MarkOrigin
from simplu_worker.vocabulary import FeedKind

NEWER = Incarnation("two", "two:5")
LATER = AT + timedelta(hours=1)
# Of a batch without rows: its tenant, and no resource.
BULK: dict[str, Any] = {
    "kind": None,
    "is_failed": None,
    "resource_type": None,
    "resource_key": None,
    "request_key": None,
}


def log_row(**columns: Any) -> LogRow:
    """Return the row of a patch of a patient, but for *columns*."""
    usual: dict[str, Any] = {
        "timeline": "1",
        "started_at": AT,
        "forgotten": None,
        "forgotten_at": None,
        "batch_id": 7,
        "position": 3,
        "completed_at": AT,
        "token": "token",
        "batch_kind": "o",
        "epoch": 2,
        "origin": None,
        "kind": "p",
        "resource_type": "patient",
        "resource_key": b"\x02p-1",
        "request_key": b"\x02request-3",
        "is_failed": False,
        "tenant_no": 4,
        "tenant_id": "smile-berlin",
        "business_id": "smile",
        "location_id": "berlin",
        "business_type": "dental",
    }
    return LogRow(**(usual | columns))


def test_row_of_an_operation_is_the_event_of_its_resource() -> None:
    """With the place and the time of its row."""
    event = FeedEvent(
        id="token-3",
        kind=FeedKind.RESOURCE_PATCHED,
        shard_id="shard-1",
        time=AT,
        position="7-3",
        incarnation=NO_INCARNATION,
        tenant=TENANT,
        resource_type="patient",
        resource_id="p-1",
        request_id="request-3",
    )
    assert read_row(log_row(), "shard-1") == ReadRow(Place(7, 3), "token", 4, (event,))
    assert read_row(log_row(tenant_id=None), "shard-1") == ReadRow(Place(7, 3), "token", 4)  # unmade
    assert log_row().server == Server("1", AT)


CREATED = [("token-3-tenant", FeedKind.TENANT_CREATED), ("token-3", FeedKind.RESOURCE_CREATED)]
ROWS: list[tuple[dict[str, Any], list[tuple[str, FeedKind]]]] = [
    ({"kind": "c"}, [("token-3", FeedKind.RESOURCE_CREATED)]),
    ({"kind": "u"}, [("token-3", FeedKind.RESOURCE_UPDATED)]),
    ({"kind": "d"}, [("token-3", FeedKind.RESOURCE_DELETED)]),
    ({"kind": "C"}, [("token-3", FeedKind.RESOURCE_CREATED)]),  # another operation took its key
    ({"kind": "r"}, []),
    ({"is_failed": True}, []),
    ({"kind": "m", "origin": MarkOrigin.CREATION}, CREATED),
    ({"kind": "m", "origin": MarkOrigin.CONTROL}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    ({"kind": "m", "origin": MarkOrigin.RENAME}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    ({"kind": "m", "origin": MarkOrigin.ERASURE}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    (BULK | {"batch_kind": BulkChange.COPIED}, []),  # by a move
    (BULK | {"batch_kind": BulkChange.COPIED, "origin": BulkOrigin.RESTORE}, [("token-3", FeedKind.TENANT_REPLACED)]),
    (BULK | {"batch_kind": BulkChange.COPIED, "origin": BulkOrigin.UNREAD}, [("token-3", FeedKind.TENANT_REPLACED)]),
    (BULK | {"batch_kind": BulkChange.IMPORTED}, [("token-3", FeedKind.TENANT_REPLACED)]),
    (BULK | {"batch_kind": BulkChange.DESTROYED}, []),
    (BULK | {"batch_kind": BulkChange.DESTROYED, "origin": BulkOrigin.END}, [("token-3", FeedKind.TENANT_DESTROYED)]),
    (BULK | {"batch_kind": "a", "origin": "shard-2"}, [("token-3", FeedKind.TENANT_MOVED)]),
    (BULK | {"batch_kind": "l"}, []),  # a departure
]


def test_row_gives_the_events_of_its_kind() -> None:
    """Nothing of what only reads, has failed, or is the copy of a move; resources in those of a resource alone."""
    for columns, expected in ROWS:
        events = read_row(log_row(**columns), "shard-1").events
        assert [(one.id, one.kind) for one in events] == expected, columns
        for one in events:
            assert one.shard_id == "shard-1"
            assert (one.resource_type is None) == (one.resource_id is None) == one.kind.value.startswith("tenant.")


def test_arrival_of_a_tenant_is_held_behind_the_row_before_it() -> None:
    """Until the feed of its source has passed its departure; a batch that lacks one of these is no arrival."""
    arrival = {"batch_kind": "a", "origin": "shard-2", "position": 0} | BULK
    assert read_row(log_row(**arrival), "shard-1").arrival == HeldTenant(4, "smile-berlin", 2, "shard-2", 7, -1)
    for missing in ({"batch_kind": "r"}, {"origin": None}, {"tenant_no": None}, {"epoch": None}):
        assert read_row(log_row(**arrival | missing), "shard-1").arrival is None


def test_undone_event_is_that_of_its_change_but_for_what_it_takes_back() -> None:
    """Under the same key, without the data."""
    event = feed_event(data=b"{}", reapplies="old-1-1")
    expected = feed_event(
        id="token-7-0-undone-two", kind=FeedKind.UNDONE, time=LATER, incarnation=NEWER, undoes="token-7-0"
    )
    assert undone_event(event, NEWER, LATER) == expected
    of_shard = FeedEvent(
        id="shard-1-undone-two",
        kind=FeedKind.UNDONE,
        shard_id="shard-1",
        time=LATER,
        position="5-0",
        incarnation=NEWER,
        bounds=EventBounds(behind=5, to_time=LATER),
    )
    assert undone_bounds_event("shard-1", Place(5, -1), NEWER, LATER) == of_shard


def test_gap_is_of_the_shard_or_of_one_tenant() -> None:
    """Its id is the same when it is made again, and another for each tenant."""
    gap = FeedEvent(
        id="shard-1-gap-5-9",
        kind=FeedKind.GAP,
        shard_id="shard-1",
        time=LATER,
        position="5-2",
        incarnation=NEWER,
        bounds=EventBounds(behind=5, through=9, to_time=AT),
    )
    assert gap_event("shard-1", Place(5, 2), 9, AT, NEWER, LATER) == gap
    of_tenant = gap_event("shard-1", Place(5, 2), 9, AT, NEWER, LATER, tenant=TENANT)
    assert of_tenant == msgspec.structs.replace(gap, id="shard-1-gap-smile-berlin-5-9", tenant=TENANT)
