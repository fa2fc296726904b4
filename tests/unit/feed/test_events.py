"""The events of a row of the log, and those that tell of lost batches."""

from __future__ import annotations

from datetime import timedelta
from struct import pack
from typing import Any

import msgspec
from support.feed.events import AT, TENANT

from simplu_worker.feed.events import LogBatch, LogRow, ReadRow, gap_event, read_row
from simplu_worker.feed.types import Arrival, EventBounds, FeedEvent, FeedTenant, Place, Publication
from simplu_worker.shards.apply.durability import ReplicationFacts, Server
from simplu_worker.shards.log import BulkChange, BulkOrigin, MarkOrigin, key_of_id
from simplu_worker.vocabulary import FeedKind

PUBLICATION = Publication("shard-1", "one", "sender")
LATER = AT + timedelta(hours=1)
# Of a batch without rows.
BULK: dict[str, Any] = {
    "types": [],
    "positions": None,
    "row_tenant_nos": None,
    "kinds": None,
    "types_at": None,
    "origins_at": None,
    "resources": None,
    "requests": None,
}


def log_batch(**columns: Any) -> LogBatch:
    """Return a batch with the patch of a patient, but for *columns*."""
    usual: dict[str, Any] = {
        "timeline": "1",
        "started_at": AT,
        "log_position": 10,
        "synchronous_commit": "on",
        "synchronous_standby_names": "",
        "fsync": True,
        "standbys": "[]",
        "forgotten": None,
        "forgotten_at": None,
        "batch_id": 7,
        "completed_at": AT,
        "token": "token",
        "kind": "o",
        "epoch": 2,
        "tenant_no": 4,
        "types": ["patient"],
        "origins": ["simplu-changes"],
        "tenants": [["4", "smile-berlin", "smile", "berlin", "dental", "{}"]],
        "failed": [],
        "positions": pack(">h", 3),
        "row_tenant_nos": pack(">i", 4),
        "kinds": "p",
        "types_at": pack(">h", 1),
        "origins_at": pack(">h", 1),
        "resources": [key_of_id("p-1")],
        "requests": [key_of_id("request-3")],
    }
    return LogBatch(**(usual | columns))


def log_row(**columns: Any) -> LogRow:
    (row,) = log_batch(**columns).rows()
    return row


def test_row_of_an_operation_is_the_event_of_its_resource() -> None:
    event = FeedEvent(
        id="token-3",
        kind=FeedKind.RESOURCE_PATCHED,
        shard_id="shard-1",
        time=AT,
        position="7-3",
        incarnation="one",
        sender="sender",
        tenant=TENANT,
        resource_type="patient",
        resource_id="p-1",
        request_id="request-3",
    )
    assert read_row(log_row(), PUBLICATION) == ReadRow(Place(7, 3), (event,))
    assert read_row(log_row(tenants=[]), PUBLICATION) == ReadRow(Place(7, 3))  # unmade
    named = log_row(tenants=[["4", "smile-berlin", "smile", "berlin", "dental", '{"patients": "patient", "a": "b"}']])
    assert read_row(named, PUBLICATION).events == (msgspec.structs.replace(event, other_types=("patients",)),)
    of_before = log_row(tenants=named.batch.tenants, types=["patients", "room"])
    assert of_before.other_types == ("patient",)
    assert [one.resource_id for one in read_row(log_row(resources=[None]), PUBLICATION).events] == [None]
    assert log_batch().facts == ReplicationFacts(Server("1", AT), 10, "on", "", fsync=True)


CREATED = [("token-3-tenant", FeedKind.TENANT_CREATED), ("token-3", FeedKind.RESOURCE_CREATED)]
ROWS: list[tuple[dict[str, Any], list[tuple[str, FeedKind]]]] = [
    ({"kinds": "c"}, [("token-3", FeedKind.RESOURCE_CREATED)]),
    ({"kinds": "u"}, [("token-3", FeedKind.RESOURCE_UPDATED)]),
    ({"kinds": "d"}, [("token-3", FeedKind.RESOURCE_DELETED)]),
    ({"kinds": "C"}, [("token-3", FeedKind.RESOURCE_CREATED)]),  # another operation took its key
    ({"kinds": "r"}, []),
    ({"failed": ["2", "3"]}, []),
    ({"kinds": "m", "origins": [MarkOrigin.CREATION]}, CREATED),
    ({"kinds": "m", "origins": [MarkOrigin.CONTROL]}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    ({"kinds": "m", "origins": [MarkOrigin.RENAME]}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    ({"kinds": "m", "origins": [MarkOrigin.ERASURE]}, [("token-3", FeedKind.RESOURCE_CHANGED)]),
    (BULK | {"kind": BulkChange.COPIED}, []),  # by a move
    (BULK | {"kind": BulkChange.COPIED, "origins": [BulkOrigin.RESTORE]}, [("token-0", FeedKind.TENANT_REPLACED)]),
    (BULK | {"kind": BulkChange.COPIED, "origins": [BulkOrigin.UNREAD]}, [("token-0", FeedKind.TENANT_REPLACED)]),
    (BULK | {"kind": BulkChange.IMPORTED}, [("token-0", FeedKind.TENANT_REPLACED)]),
    (BULK | {"kind": BulkChange.DESTROYED}, []),
    (BULK | {"kind": BulkChange.DESTROYED, "origins": [BulkOrigin.END]}, [("token-0", FeedKind.TENANT_DESTROYED)]),
    (BULK | {"kind": "a", "origins": ["shard-2"]}, [("token-0", FeedKind.TENANT_MOVED)]),
    (BULK | {"kind": "l"}, []),  # a departure
]


def test_row_gives_the_events_of_its_kind() -> None:
    for columns, expected in ROWS:
        events = read_row(log_row(**columns), PUBLICATION).events
        assert [(one.id, one.kind) for one in events] == expected, columns
        for one in events:
            assert one.shard_id == "shard-1"
            assert (one.resource_type is None) == (one.resource_id is None) == one.kind.value.startswith("tenant.")
            assert (one.other_types, one.request_id is None) == ((), columns.get("kinds", "m") in {"m", None})


def test_rows_of_a_batch_are_each_of_its_own_tenant_type_and_origin() -> None:
    batch = log_batch(
        types=["patient", "invoice"],
        origins=["queue", "stream/shard-7"],
        tenants=[
            ["5", "gym-main", "gym", "main", "sports", "{}"],
            ["4", "smile-berlin", "smile", "berlin", "dental", "{}"],
        ],
        failed=["2"],
        positions=pack(">3h", 0, 2, 9),
        row_tenant_nos=pack(">3i", 5, 6, 4),
        kinds="cdr",
        types_at=pack(">3h", 2, 1, 1),
        origins_at=pack(">3h", 1, 2, 2),
        resources=[key_of_id("i"), key_of_id("p"), None],
        requests=[key_of_id("r0"), key_of_id("r2"), key_of_id("r9")],
    )
    gym = FeedTenant("gym-main", "gym", "main", "sports")
    assert batch.rows() == [
        LogRow(batch, Place(7, 0), 5, gym, "c", "invoice", "queue", key_of_id("i"), key_of_id("r0"), is_failed=False),
        LogRow(
            batch,
            Place(7, 2),
            6,
            None,
            "d",
            "patient",
            "stream/shard-7",
            key_of_id("p"),
            key_of_id("r2"),
            is_failed=True,
        ),
        LogRow(batch, Place(7, 9), 4, TENANT, "r", "patient", "stream/shard-7", None, key_of_id("r9"), is_failed=False),
    ]


def test_arrival_of_a_tenant_names_its_source_and_epoch() -> None:
    arrival = BULK | {"kind": "a", "origins": ["shard-2"]}
    assert (log_row(**arrival).place, log_row(**arrival).tenant_no) == (Place(7, 0), 4)
    assert read_row(log_row(**arrival), PUBLICATION).arrival == Arrival("smile-berlin", 2, "shard-2")
    without: list[dict[str, Any]] = [{"kind": "r"}, {"origins": []}, {"tenants": []}, {"epoch": None}]
    for missing in without:
        assert read_row(log_row(**arrival | missing), PUBLICATION).arrival is None


def test_gap_has_its_bounds() -> None:
    gap = FeedEvent(
        id="shard-1-gap-5-9",
        kind=FeedKind.GAP,
        shard_id="shard-1",
        time=LATER,
        position="5-2",
        incarnation="one",
        sender="sender",
        bounds=EventBounds(behind=5, through=9, to_time=AT),
    )
    assert gap_event(PUBLICATION, Place(5, 2), 9, AT, LATER) == gap
