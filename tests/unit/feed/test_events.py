"""The events of a row of the log, and those that tell of lost batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from struct import pack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.feed.events import AT, TENANT, feed_event

from simplu_worker.feed.events import (
    CLAIM_DELAY_MAX_S,
    LEASE_S,
    LogBatch,
    LogRow,
    ReadRow,
    claim_delay_s,
    gap_event,
    incarnation_id,
    lets_through,
    read_row,
    run_of_server,
)
from simplu_worker.feed.types import Arrival, DestinationTerms, EventBounds, FeedEvent, FeedTenant, Place, Publication
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


OF_RESOURCE = feed_event(other_types=("patients",))
OF_TENANT = feed_event(kind=FeedKind.TENANT_MOVED, resource_type=None, resource_id=None)
OF_SHARD = tuple(
    feed_event(kind=kind, tenant=None, resource_type=None, resource_id=None) for kind in (FeedKind.RESET, FeedKind.GAP)
)
ALL = (OF_RESOURCE, OF_TENANT, *OF_SHARD)
CASES: list[tuple[DestinationTerms, tuple[FeedEvent, ...]]] = [
    (DestinationTerms("d"), ALL),
    (DestinationTerms("d", tenants=frozenset({"smile-berlin", "other"})), ALL),
    (DestinationTerms("d", tenants=frozenset({"other"})), OF_SHARD),
    (DestinationTerms("d", business_types=frozenset({"dental"})), ALL),
    (DestinationTerms("d", business_types=frozenset({"gym"})), OF_SHARD),
    (DestinationTerms("d", resource_types=frozenset({"patient"})), ALL),
    (DestinationTerms("d", resource_types=frozenset({"patients"})), ALL),
    (DestinationTerms("d", resource_types=frozenset({"order"})), ALL[1:]),
    (DestinationTerms("d", kinds=frozenset({FeedKind.RESOURCE_PATCHED})), (OF_RESOURCE, *OF_SHARD)),
    (DestinationTerms("d", kinds=frozenset({FeedKind.TENANT_MOVED})), ALL[1:]),
    (DestinationTerms("d", tenants=frozenset({"other"}), kinds=frozenset({FeedKind.RESET})), OF_SHARD),
]


@pytest.mark.parametrize(("chosen", "expected"), CASES)
def test_filter_lets_through_what_all_of_its_parts_do(
    chosen: DestinationTerms, expected: tuple[FeedEvent, ...]
) -> None:
    assert expected == tuple(one for one in ALL if lets_through(chosen, one))


@given(first=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), later_ms=st.integers(1, 10**12))  # noqa: DTZ001
def test_id_of_a_newer_incarnation_is_greater(first: datetime, later_ms: int) -> None:
    at = first.replace(tzinfo=UTC)
    assert incarnation_id(at, "ffff") < incarnation_id(at + timedelta(milliseconds=later_ms), "0000")


def test_id_of_an_incarnation_is_greater_than_all_that_are_known() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    before = [incarnation_id(at + timedelta(seconds=later_s), "ffff") for later_s in (5, 60, 0)]
    assert incarnation_id(at, "0000", [*before, ""]) == incarnation_id(
        at + timedelta(seconds=60, milliseconds=1), "0000"
    )
    assert incarnation_id(at, "0000", [""]) == incarnation_id(at, "0000")
    assert incarnation_id(datetime(1970, 1, 1, tzinfo=UTC), "ffff") == "000000000000ffff"


def test_replica_waits_longer_the_more_shards_it_publishes() -> None:
    delays = [claim_delay_s(count, draw) for count in (0, 1, 8, 100, 10_000) for draw in (0.0, 1.0)]
    assert [claim_delay_s(count, 0.5) for count in (0, 8)] == pytest.approx([0.05, 0.56])
    assert claim_delay_s(0, 1) < claim_delay_s(8, 0) < claim_delay_s(100, 0)
    assert all(0 < delay <= CLAIM_DELAY_MAX_S for delay in delays)
    assert LEASE_S + CLAIM_DELAY_MAX_S < 10


def test_run_of_a_server_is_another_after_a_promotion_a_restore_and_new_numbers() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    runs = [("1", at, 0), ("2", at, 0), ("1", at + timedelta(microseconds=1), 0), ("1", at, 1000)]
    assert run_of_server(*runs[0]) == "1/1772323200.000000/0"
    assert len({run_of_server(*one) for one in runs}) == len(runs)
