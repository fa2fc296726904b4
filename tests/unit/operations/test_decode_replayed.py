"""Derived request ids that come back: only in records that a replay sends again, and only as what they were."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord, derived_request_id, with_request_id
from simplu_worker.vocabulary import DeadLetterReason, Source

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
