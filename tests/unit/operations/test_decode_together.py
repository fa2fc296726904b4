"""Records that are decoded together: each is what it is alone, whatever stands beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.decode import decode_operation, decode_operations
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord, derived_request_id, with_request_id
from simplu_worker.vocabulary import OperationKind, Source

MAX_BYTES: Final = 5000
LIST_LIMIT: Final = 50
FIRST: Final = Origin(
    source=Source.KINESIS,
    name="operations",
    arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    stream_shard_id="shardId-000000000001",
    sequence_number="4959",
)


def record(kind: str = "create", **members: Any) -> bytes:
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


NAMELESS = record(requestId=..., resourceId=...)
RECORDS: Final = {
    **{kind.value: record(kind) for kind in OperationKind},
    "list with a query": record("list", filters={"date": "2026-01-31", "a": 1}, pagination={"page": 2, "limit": 99}),
    "list with a resource": record("list", resourceId="r"),
    "list of a wrong day": record("list", filters={"date": "today"}),
    "list of a wrong page": record("list", pagination={"page": 0}),
    "list with deep filters": record("list", filters={}).replace(b"{}", b'{"a":' * 600 + b"1" + b"}" * 600),
    "filters of a create": record(filters={"a": 1}),
    "filters that are no object": record("list", filters=[1]),
    "pagination that is no object": record(pagination=7),
    "data of a delete": record("delete", data={"a": 1}),
    "huge number in the data of a delete": record("delete", data={}).replace(b"{}", b'{"a": 1e5000}'),
    "data of a list": record("list", data={"a": 1}),
    "no data": record("patch", data=...),
    "null for data": record("delete", data=None),
    "data that is no object": record("update", data=[1]),
    "huge number": record(data={}).replace(b"{}", b'{"a": 1e5000}'),
    "sign of a number": record(data={"id": "a0e00b"}),
    "long document": record(data={"text": "x" * 3000}),
    "deep document": record(data={}).replace(b"{}", b'{"a":' * 600 + b"1" + b"}" * 600),
    "no ids": NAMELESS,
    "no request id": record("update", requestId=...),
    "no resource id": record("create", resourceId=...),
    "read without an id": record("read", resourceId=...),
    "reserved request id": record(requestId="simplu:1"),
    "replayed": with_request_id(NAMELESS, FIRST),
    "replayed as another": with_request_id(NAMELESS, FIRST).replace(b"4959", b"4960"),
    "zero in an id": record(resourceId="a\0"),
    "zero in the data": record(data={"a": "\0"}),
    "escapes": record(data={"a": "ä\n\\"}),
    "other letters": record(data={"a": "ä"}, resourceId="ö").decode("unicode_escape").encode(),
    "other bytes": record(data={"a": "?"}).replace(b"?", b"\xff"),
    "cut character": record(data={"a": "?"}).replace(b"?", b"\xc3"),
    "lone surrogate": record(data={"a": "\ud800"}),
    "unknown kind": record("upsert"),
    "prefix of a kind": record("creat"),
    "no kind": record(operation=...),
    "wrong member": record(businessId=7),
    "long id": record(locationId="x" * 129),
    "time with an offset": record(timestamp="2026-01-01T01:00:00+01:00"),
    "day": record(timestamp="2026-01-01"),
    "no time": record(timestamp=""),
    "wrong time": record(timestamp="2026-13-01T00:00:00Z"),
    "too large": record(data={"text": "x" * MAX_BYTES}),
    "no JSON": b'{"operation": "create"',
    "array": b"[]",
    "nothing": b"",
}


def origins_of(count: int) -> list[Origin]:
    return [msgspec.structs.replace(FIRST, sequence_number=str(5000 + number)) for number in range(count)]


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
    faulty = record("upsert", requestId="simplu:1", data=[1], filters=7)
    second = record("update", requestId="simplu:1", resourceId=..., data=[1])
    third = record("update", resourceId=..., data=[1])
    fourth = record("update", data=[1], filters=7)
    fifth = record("update", filters=7, pagination=7)

    decoded = decode_together([faulty, second, third, fourth, fifth, record("update", pagination=7)])

    errors = [one.error.split(":")[0] for one in decoded if isinstance(one, RejectedRecord)]
    assert errors == ["operation", "requestId", "resourceId", "data", "filters", "pagination"]
