"""Events in the form in which receivers get them."""

from __future__ import annotations

import json
import re
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.feed.events import AT, feed_event

from simplu_worker.feed.cloud_events import NOTIFICATION_TYPES, CloudEventMembers, encode_event, encode_notification
from simplu_worker.feed.events import ReadRow, WantedDocuments
from simplu_worker.feed.types import DestinationTerms, EventBounds, FeedEvent, Place
from simplu_worker.vocabulary import FeedData, FeedKind

ENOUGH = 100_000
OF_SHARD: dict[str, Any] = {"tenant": None, "resource_type": None, "resource_id": None, "request_id": None}


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
    found = decoded(feed_event(kind=FeedKind.GAP, bounds=bounds, shard_id="a/b ü", **OF_SHARD))
    assert found["data"] == {"behind": 3, "through": 9, "toTime": "2026-03-01T10:00:00.250000Z"}
    assert (found["type"], found["subject"], found["source"]) == (
        "simplu.gap",
        "a/b ü",
        "/simplu/shards/a%2Fb%20%C3%BC",
    )
    assert [name for name in found if name.startswith(("simplutenant", "simplubusiness", "simpluresource"))] == []
    assert decoded(feed_event(kind=FeedKind.RESET, bounds=EventBounds(behind=3), **OF_SHARD))["data"] == {"behind": 3}


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
    for missing in (OF_SHARD, {"tenant": None}, {"resource_type": None}, {"resource_id": None}):
        assert encode_notification(feed_event(kind=kind, **missing), ENOUGH) is None


TERMS = [
    DestinationTerms("one", data=FeedData.CURRENT, resource_types=frozenset({"patient"})),
    DestinationTerms("two", data=FeedData.CURRENT, tenants=frozenset({"another"})),
    DestinationTerms("three"),
]


def row(number: int, resource_id: str, **members: Any) -> ReadRow:
    event = feed_event(id=f"e{number}", resource_id=resource_id, **members)
    return ReadRow(Place(number, 0), (event,))


ROWS = [
    row(1, "a", kind=FeedKind.RESOURCE_DELETED),
    ReadRow(Place(2, 0)),
    row(3, "a"),
    row(4, "o", resource_type="order"),
    row(5, "b"),
    row(6, "a"),
    row(7, "c"),
]


def test_each_document_is_read_once_where_a_destination_wants_it() -> None:
    wanted = WantedDocuments(ROWS, TERMS)
    assert [resource_id for _, _, resource_id in wanted.resources] == ["a", "b", "c"]
    assert wanted.by_event({0: b"A", 2: b""}) == {"e3": b"A", "e6": b"A", "e7": b""}
    assert not WantedDocuments(ROWS, TERMS[1:]).resources
    odd = [feed_event(tenant=None), feed_event(resource_type=None), feed_event(resource_id=None)]
    deleted, last = feed_event(kind=FeedKind.RESOURCE_DELETED), feed_event(resource_id="last")
    several = ReadRow(Place(1, 0), (*odd, deleted, last))
    assert WantedDocuments([several], TERMS[:1]).resources == [("smile-berlin", "patient", "last")]


def test_rows_before_the_first_that_wants_a_document_that_is_left_need_no_other() -> None:
    wanted = WantedDocuments(ROWS, TERMS)
    assert [wanted.row_count(left_at) for left_at in (1, 2)] == [4, 6]
