from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from struct import pack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.feed.events import AT, TENANT, feed_event

from simplu_worker.feed.cloud_events import NOTIFICATION_TYPES, CloudEventMembers, encode_event, encode_notification
from simplu_worker.feed.events import (
    CLAIM_DELAY_MAX_S,
    LEASE_S,
    LogBatch,
    LogRow,
    ReadRow,
    WantedDocuments,
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
from simplu_worker.vocabulary import FeedData, FeedKind

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


ENOUGH = 100_000
OF_NO_TENANT: dict[str, Any] = {"tenant": None, "resource_type": None, "resource_id": None, "request_id": None}


def decoded(event: FeedEvent, max_bytes: int = ENOUGH) -> dict[str, Any]:
    encoded = encode_event(event, max_bytes)
    assert encoded is not None
    found: dict[str, Any] = json.loads(encoded)
    return found


def test_event_has_what_cloud_events_asks_for_and_what_a_receiver_decides_by() -> None:
    event = feed_event(3, data=b'{"a": 1}', incarnation="two", sender="token")
    assert decoded(event) == {
        "specversion": "1.0",
        "id": "token-7-3",
        "source": "/simplu/shards/shard-1",
        "type": "simplu.resource.patched",
        "subject": "smile-berlin/patient/p-1",
        "time": "2026-03-01T09:00:00.250000Z",
        "partitionkey": "smile-berlin/patient/p-1",
        "simplushard": "shard-1",
        "simpluposition": "7-3",
        "simpluincarnation": "two",
        "simplutenant": "smile-berlin",
        "simplubusiness": "smile",
        "simplulocation": "berlin",
        "simplubusinesstype": "dental",
        "simpluresourcetype": "patient",
        "simpluresourceid": "p-1",
        "simplurequest": "request-3",
        "simpludata": "current",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }


def test_event_without_data_has_no_member_about_data() -> None:
    assert decoded(feed_event()).keys() & {"simpludata", "datacontenttype", "data"} == set()


def test_event_of_a_tenant_is_about_it() -> None:
    found = decoded(feed_event(kind=FeedKind.TENANT_MOVED, resource_type=None, resource_id=None))
    assert (found["subject"], found["partitionkey"]) == ("smile-berlin", "smile-berlin")


def test_event_of_a_whole_shard_has_its_bounds_as_data() -> None:
    bounds = EventBounds(behind=3, through=9, to_time=AT + timedelta(hours=1))
    found = decoded(feed_event(kind=FeedKind.GAP, bounds=bounds, shard_id="a/b ü", **OF_NO_TENANT))
    assert found["data"] == {"behind": 3, "through": 9, "toTime": "2026-03-01T10:00:00.250000Z"}
    assert (found["type"], found["subject"], found["source"]) == (
        "simplu.gap",
        "a/b ü",
        "/simplu/shards/a%2Fb%20%C3%BC",
    )
    assert [name for name in found if name.startswith(("simplutenant", "simplubusiness", "simpluresource"))] == []
    assert decoded(feed_event(kind=FeedKind.RESET, bounds=EventBounds(behind=3), **OF_NO_TENANT))["data"] == {
        "behind": 3
    }


def test_event_leaves_its_data_out_where_the_destination_would_not_take_them() -> None:
    event = feed_event(data=b'"' + b"x" * 1000 + b'"')
    whole = len(encode_event(event, ENOUGH) or b"")
    bare = len(encode_event(event, whole - 1) or b"")
    assert decoded(event, whole)["simpludata"] == "current"
    omitted = decoded(event, whole - 1)
    assert (omitted["simpludata"], omitted.keys() & {"data", "datacontenttype"}) == ("omitted", set())
    assert encode_event(event, bare) is not None
    assert encode_event(event, bare - 1) is None
    too_large = decoded(feed_event(data=b""))
    assert (too_large["simpludata"], too_large.keys() & {"data", "datacontenttype"}) == ("omitted", set())


def test_names_of_members_are_those_that_cloud_events_allows() -> None:
    assert [name for name in CloudEventMembers.__struct_fields__ if not re.fullmatch("[a-z0-9]{1,20}", name)] == []


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_ids_come_as_they_are(text: str) -> None:
    found = decoded(feed_event(resource_id=text, request_id=text))
    assert (found["simpluresourceid"], found["simplurequest"]) == (text, text)
    assert found["subject"] == f"smile-berlin/patient/{text}"


def test_notification_is_that_of_the_typescript_worker() -> None:
    berlin = timezone(timedelta(hours=1))
    event = feed_event(kind=FeedKind.RESOURCE_CREATED, data=b'{"a":1}', time=AT.astimezone(berlin))
    assert encode_notification(event, ENOUGH) == (
        b'{"type":"resource_created","resourceType":"patient","businessId":"smile","locationId":"berlin",'
        b'"resourceId":"p-1","shardId":"shard-1","data":{"a":1},"timestamp":"2026-03-01T09:00:00.250Z"}'
    )
    whole = encode_notification(event, ENOUGH) or b""
    assert encode_notification(event, len(whole)) == whole
    assert b'"data":null' in (encode_notification(event, len(whole) - 1) or b"")
    assert b'"data":null' in (encode_notification(feed_event(data=b""), ENOUGH) or b"")


@pytest.mark.parametrize("kind", FeedKind)
def test_notification_is_about_resources_alone(kind: FeedKind) -> None:
    of_resource, of_tenant = feed_event(kind=kind), feed_event(kind=kind, resource_type=None, resource_id=None)
    assert (encode_notification(of_resource, ENOUGH) is not None) == (kind in NOTIFICATION_TYPES)
    assert encode_notification(of_tenant, ENOUGH) is None
    for missing in (OF_NO_TENANT, {"tenant": None}, {"resource_type": None}, {"resource_id": None}):
        assert encode_notification(feed_event(kind=kind, **missing), ENOUGH) is None


TERMS = [
    DestinationTerms("one", data=FeedData.CURRENT, resource_types=frozenset({"patient"})),
    DestinationTerms("two", data=FeedData.CURRENT, tenants=frozenset({"another"})),
    DestinationTerms("three"),
]


def row(number: int, resource_id: str, **members: Any) -> ReadRow:
    event = feed_event(id=f"e{number}", resource_id=resource_id, **members)
    return ReadRow(Place(number, 0), (event,))


READ_ROWS = [
    row(1, "a", kind=FeedKind.RESOURCE_DELETED),
    ReadRow(Place(2, 0)),
    row(3, "a"),
    row(4, "o", resource_type="order"),
    row(5, "b"),
    row(6, "a"),
    row(7, "c"),
]


def test_each_document_is_read_once_where_a_destination_wants_it() -> None:
    wanted = WantedDocuments(READ_ROWS, TERMS)
    assert [resource_id for _, _, resource_id in wanted.resources] == ["a", "b", "c"]
    assert wanted.by_event({0: b"A", 2: b""}) == {"e3": b"A", "e6": b"A", "e7": b""}
    assert not WantedDocuments(READ_ROWS, TERMS[1:]).resources
    odd = [feed_event(tenant=None), feed_event(resource_type=None), feed_event(resource_id=None)]
    deleted, last = feed_event(kind=FeedKind.RESOURCE_DELETED), feed_event(resource_id="last")
    several = ReadRow(Place(1, 0), (*odd, deleted, last))
    assert WantedDocuments([several], TERMS[:1]).resources == [("smile-berlin", "patient", "last")]


def test_rows_before_the_first_that_wants_a_document_that_is_left_need_no_other() -> None:
    wanted = WantedDocuments(READ_ROWS, TERMS)
    assert [wanted.row_count(left_at) for left_at in (1, 2)] == [4, 6]
