"""Records sent again and records decoded together: each is the operation that it was, or is alone, and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.decode import decode_operation, decode_operations
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord, derived_request_id, with_request_id
from simplu_worker.vocabulary import DeadLetterReason, OperationKind, Source

FIRST = Origin(
    source=Source.KINESIS,
    name="operations",
    arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    stream_shard_id="shardId-000000000001",
    sequence_number="4959",
    sub_sequence_number=2,
    partition_key="key",
)
AGAIN = msgspec.structs.replace(FIRST, stream_shard_id="shardId-000000000007", sequence_number="5000")
DERIVED = derived_request_id(FIRST)
PLACE = {
    "stream": "operations",
    "streamShard": "shardId-000000000001",
    "sequenceNumber": "4959",
    "subSequenceNumber": 2,
}


PART = msgspec.structs.replace(FIRST, part_index=3, parts_behind=6)


def record(**members: Any) -> bytes:
    whole = {
        "operation": "create",
        "businessId": "b",
        "locationId": "l",
        "resourceType": "patient",
        "timestamp": "2026-01-01T00:00:00Z",
        "data": {"n": 1},
    }
    return json.dumps(whole | members).encode()


def decoded(data: bytes, origin: Origin = AGAIN) -> Operation | RejectedRecord:
    return decode_operation(data, origin, max_bytes=2**20, list_limit=1000)


def same_but_origin(one: Operation | RejectedRecord, other: Operation | RejectedRecord) -> bool:
    assert isinstance(one, Operation)
    assert isinstance(other, Operation)
    return msgspec.structs.replace(one, origin=other.origin, size_bytes=other.size_bytes) == other


MANY = [
    {},
    {"requestId": None},
    {"resourceId": "r-1", "operation": "patch"},
    {"resourceId": None},
    {"operation": "list", "data": None, "filters": {"a": 1.50}, "pagination": {"page": 2}},
    {"data": {"lone": "\ud800", "u": "ż", "deep": [{"a": "}"}]}},
    {"simpluReplay": "the client's own"},
]


@pytest.mark.parametrize("members", MANY)
def test_replayed_record_is_the_operation_that_it_was(members: dict[str, Any]) -> None:
    data = record(**members)
    assert same_but_origin(decoded(with_request_id(data, FIRST)), decoded(data, FIRST))


def test_replayed_create_gets_no_resource_id() -> None:
    sent = with_request_id(record() + b" \n", FIRST)
    assert "resourceId" not in json.loads(sent)
    operation = decoded(sent)
    assert isinstance(operation, Operation)
    assert (operation.request_id, operation.resource_id) == (DERIVED, DERIVED)
    put_in = decoded(record(requestId=DERIVED, simpluReplay=PLACE, resourceId=DERIVED))
    assert isinstance(put_in, Operation)
    assert put_in.digest != operation.digest


@pytest.mark.parametrize(
    "replay",
    [
        None,
        {},
        [],
        "operations",
        7,
        PLACE | {"stream": "others"},
        PLACE | {"streamShard": "shardId-000000000002"},
        PLACE | {"sequenceNumber": "4960"},
        PLACE | {"subSequenceNumber": 3},
        PLACE | {"subSequenceNumber": "2"},
        PLACE | {"subSequenceNumber": 2.5},
        PLACE | {"stream": "operations\0shardId-000000000001", "streamShard": "4959", "sequenceNumber": ""},
        PLACE | {"stream": "\ud800"},
        {name: value for name, value in PLACE.items() if name != "sequenceNumber"},
    ],
)
def test_derived_id_of_another_place_is_refused(replay: Any) -> None:
    refused = decoded(record(requestId=DERIVED, simpluReplay=replay))
    assert isinstance(refused, RejectedRecord)
    assert refused.reason is DeadLetterReason.INVALID_MESSAGE
    assert "expected an id without the prefix 'simplu:'" in refused.error


@pytest.mark.parametrize("request_id", ["simplu:", "simplu:mine", DERIVED + "0", DERIVED[:-1], DERIVED.upper()])
def test_other_ids_with_the_prefix_are_refused_beside_any_place(request_id: str) -> None:
    outcome = decoded(record(requestId=request_id, simpluReplay=PLACE))
    assert isinstance(outcome, RejectedRecord) == request_id.startswith("simplu:")


@given(stream=st.text(max_size=8), shard=st.text(max_size=8), number=st.text(max_size=8), sub=st.integers(0, 9))
def test_derived_id_passes_wherever_its_record_was(stream: str, shard: str, number: str, sub: int) -> None:
    origin = msgspec.structs.replace(
        FIRST, name=stream, stream_shard_id=shard, sequence_number=number, sub_sequence_number=sub
    )
    assert same_but_origin(decoded(with_request_id(record(), origin)), decoded(record(), origin))


def test_part_of_a_record_keeps_its_id_when_sent_alone() -> None:
    sent = with_request_id(record(), PART)
    operation, again = decoded(record(), PART), decoded(sent)

    assert json.loads(sent)["simpluReplay"] == PLACE | {"partIndex": 3}
    assert same_but_origin(again, operation)
    assert derived_request_id(PART) == derived_request_id(msgspec.structs.replace(PART, parts_behind=0))
    others = {
        derived_request_id(msgspec.structs.replace(PART, **{name: 2})) for name in ("part_index", "sequence_number")
    }
    assert derived_request_id(PART) not in {DERIVED, *others}
    for index in (None, 2):
        forged = json.loads(sent) | {"simpluReplay": PLACE | {"partIndex": index}}
        assert isinstance(decoded(json.dumps(forged).encode()), RejectedRecord)


MAX_BYTES: Final = 5000
LIST_LIMIT: Final = 50
POSITION: Final = Origin(
    source=Source.KINESIS,
    name="operations",
    arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    stream_shard_id="shardId-000000000001",
    sequence_number="4959",
)


def record_with_ids(kind: str = "create", **members: Any) -> bytes:
    whole: dict[str, Any] = {
        "operation": kind,
        "businessId": "clinic",
        "locationId": "main",
        "resourceType": "patient",
        "resourceId": f"{kind}-1",
        "requestId": f"{kind}-request",
        "timestamp": "2026-01-01T00:00:00.5Z",
    }
    if kind in {"create", "update", "patch"}:
        whole["data"] = {"name": "Ada", "rank": 1}
    return json.dumps({name: value for name, value in (whole | members).items() if value is not ...}).encode()


NAMELESS = record_with_ids(requestId=..., resourceId=...)
RECORDS: Final = {
    **{kind.value: record_with_ids(kind) for kind in OperationKind},
    "list with a query": record_with_ids(
        "list", filters={"date": "2026-01-31", "a": 1}, pagination={"page": 2, "limit": 99}
    ),
    "list with a resource": record_with_ids("list", resourceId="r"),
    "list of a wrong day": record_with_ids("list", filters={"date": "today"}),
    "list of a wrong page": record_with_ids("list", pagination={"page": 0}),
    "list with deep filters": record_with_ids("list", filters={}).replace(b"{}", b'{"a":' * 600 + b"1" + b"}" * 600),
    "filters of a create": record_with_ids(filters={"a": 1}),
    "filters that are no object": record_with_ids("list", filters=[1]),
    "pagination that is no object": record_with_ids(pagination=7),
    "data of a delete": record_with_ids("delete", data={"a": 1}),
    "huge number in the data of a delete": record_with_ids("delete", data={}).replace(b"{}", b'{"a": 1e5000}'),
    "data of a list": record_with_ids("list", data={"a": 1}),
    "no data": record_with_ids("patch", data=...),
    "null for data": record_with_ids("delete", data=None),
    "data that is no object": record_with_ids("update", data=[1]),
    "huge number": record_with_ids(data={}).replace(b"{}", b'{"a": 1e5000}'),
    "sign of a number": record_with_ids(data={"id": "a0e00b"}),
    "long document": record_with_ids(data={"text": "x" * 3000}),
    "deep document": record_with_ids(data={}).replace(b"{}", b'{"a":' * 600 + b"1" + b"}" * 600),
    "no ids": NAMELESS,
    "no request id": record_with_ids("update", requestId=...),
    "no resource id": record_with_ids("create", resourceId=...),
    "read without an id": record_with_ids("read", resourceId=...),
    "reserved request id": record_with_ids(requestId="simplu:1"),
    "replayed": with_request_id(NAMELESS, POSITION),
    "replayed as another": with_request_id(NAMELESS, POSITION).replace(b"4959", b"4960"),
    "zero in an id": record_with_ids(resourceId="a\0"),
    "zero in the data": record_with_ids(data={"a": "\0"}),
    "escapes": record_with_ids(data={"a": "ä\n\\"}),
    "other letters": record_with_ids(data={"a": "ä"}, resourceId="ö").decode("unicode_escape").encode(),
    "other bytes": record_with_ids(data={"a": "?"}).replace(b"?", b"\xff"),
    "cut character": record_with_ids(data={"a": "?"}).replace(b"?", b"\xc3"),
    "lone surrogate": record_with_ids(data={"a": "\ud800"}),
    "unknown kind": record_with_ids("upsert"),
    "prefix of a kind": record_with_ids("creat"),
    "no kind": record_with_ids(operation=...),
    "wrong member": record_with_ids(businessId=7),
    "long id": record_with_ids(locationId="x" * 129),
    "time with an offset": record_with_ids(timestamp="2026-01-01T01:00:00+01:00"),
    "day": record_with_ids(timestamp="2026-01-01"),
    "no time": record_with_ids(timestamp=""),
    "wrong time": record_with_ids(timestamp="2026-13-01T00:00:00Z"),
    "too large": record_with_ids(data={"text": "x" * MAX_BYTES}),
    "no JSON": b'{"operation": "create"',
    "array": b"[]",
    "nothing": b"",
}


def origins_of(count: int) -> list[Origin]:
    return [msgspec.structs.replace(POSITION, sequence_number=str(5000 + number)) for number in range(count)]


def decode_together(records: Sequence[bytes]) -> list[Operation | RejectedRecord]:
    return decode_operations(records, origins_of(len(records)), MAX_BYTES, LIST_LIMIT)


def decode_alone(records: Sequence[bytes]) -> list[Operation | RejectedRecord]:
    origins = origins_of(len(records))
    return [decode_operation(one, origin, MAX_BYTES, LIST_LIMIT) for one, origin in zip(records, origins, strict=True)]


@given(st.lists(st.sampled_from(list(RECORDS.values())), min_size=1, max_size=12))
def test_a_record_is_the_same_beside_any_others(records: list[bytes]) -> None:
    assert decode_together(records) == decode_alone(records)


def test_all_records_at_once_are_what_they_are_alone() -> None:
    records = list(RECORDS.values())

    assert decode_together(records) == decode_alone(records)


def test_each_record_without_ids_gets_those_of_its_own_position() -> None:
    decoded = decode_together([NAMELESS, RECORDS["create"], NAMELESS])

    ids = [(one.request_id, one.resource_id) for one in decoded if isinstance(one, Operation)]
    first, _, last = (derived_request_id(origin) for origin in origins_of(3))
    assert ids == [(first, first), ("create-request", "create-1"), (last, last)]


def test_of_several_faults_the_first_rule_is_named() -> None:
    faulty = record_with_ids("upsert", requestId="simplu:1", data=[1], filters=7)
    second = record_with_ids("update", requestId="simplu:1", resourceId=..., data=[1])
    third = record_with_ids("update", resourceId=..., data=[1])
    fourth = record_with_ids("update", data=[1], filters=7)
    fifth = record_with_ids("update", filters=7, pagination=7)

    decoded = decode_together([faulty, second, third, fourth, fifth, record_with_ids("update", pagination=7)])

    errors = [one.error.split(":")[0] for one in decoded if isinstance(one, RejectedRecord)]
    assert errors == ["operation", "requestId", "resourceId", "data", "filters", "pagination"]


def test_bounds_are_those_of_what_a_kind_uses() -> None:
    huge = record_with_ids("list", filters={}).replace(b"{}", b'{"a": 1e5000}')
    records = [
        huge,
        RECORDS["huge number"],
        RECORDS["huge number in the data of a delete"],
        RECORDS["filters of a create"],
    ]
    decoded = [one.exceeds_bounds for one in decode_together(records) if isinstance(one, Operation)]
    assert decoded == [True, True, False, False]
    assert isinstance(decode_together([record_with_ids(filters=7)])[0], RejectedRecord)
