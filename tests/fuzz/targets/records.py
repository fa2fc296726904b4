"""Records of Kinesis, those of several operations too: operations or dead letters, the same for every reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

import msgspec
from fuzz.inputs import messages, spliced
from fuzz.quiet import check_faults
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.fetch.record_decoder import (
    LETTERS_MAX,
    DecodedRecord,
    RecordDecoder,
    RejectionCollector,
)
from simplu_worker.consumers.kinesis.stream.aggregation import MAGIC, AggregatePacker, unpack
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import HashRange, RecordPosition, is_after
from simplu_worker.consumers.producer_traces import traceparents_of_records
from simplu_worker.dead_letters.letter import encode_dead_letter, parse_dead_letter
from simplu_worker.operations.json_record import exceeds_bounds, is_laborious, merge_texts
from simplu_worker.operations.operation import Operation, RejectedRecord, derived_request_id, is_storable
from simplu_worker.operations.waves import plan_waves
from simplu_worker.shards.postgres.queries import pack_columns
from simplu_worker.vocabulary import DeadLetterReason, OperationKind

NOW: Final = datetime(2026, 1, 31, 9, tzinfo=UTC)
LETTER_MAX_BYTES: Final = 262_144
AGGREGATE: Final = b"A"  # the input is the message of an aggregate, which gets its digest
ONE: Final = (
    b'{"operation":"read","businessId":"b","locationId":"l","resourceType":"t","resourceId":"r","timestamp":"2026"}'
)
TOO_DEEP: Final = "record: expected JSON nested at most 513 deep, got deeper"
REASONS: Final = {DeadLetterReason.INVALID_JSON, DeadLetterReason.INVALID_MESSAGE, DeadLetterReason.TOO_LARGE}
USUAL: Final = {
    "operation": "create",
    "businessId": "clinic",
    "locationId": "main",
    "resourceType": "appointment",
    "resourceId": "a-1",
    "data": {"room": 4, "when": [1.5, {"b": "x\\"}], "note": None},
    "timestamp": "2026-01-31T09:00:00Z",
    "requestId": "request-1",
    "filters": {"room": 4, "date": "2026-01-31", "startDate": "2026-01-31"},
    "pagination": {"page": 1, "limit": 10},
    "simpluReplay": {"stream": "s", "streamShard": "0", "sequenceNumber": "1", "subSequenceNumber": 0},
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
decoder = RecordDecoder(
    "resources-operations",
    "shardId-000000000000",
    operation_max_bytes=10_485_760,
    list_result_limit=1000,
    hash_range=HashRange(0, 1 << 127),
)


def record_of(data: bytes) -> Record:
    """Return the record that *data* is: as it came, or as an aggregate with a valid digest."""
    if data[:1] == AGGREGATE:
        message = data[1:]
        data = MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()
    return Record(sequence_number="7", partition_key="clinic-main", data=data, arrived_at=NOW)


def check(data: bytes) -> None:
    """Decode twice, restart behind each of the first parts, and do with each part what the worker does without I/O."""
    record = record_of(data)
    rejections = RejectionCollector()
    operations: list[Operation] = []
    decoded = list(decoder.decode([record]))
    for _, part, result in decoded:
        if isinstance(result, Operation):
            check_operation(result)
            check_reason(None, part)
            operations.append(result)
        else:
            check_rejection(result)
            if not result.error.startswith("aggregate: "):
                check_reason(result, part)
            rejections.add(result, part)
        check_producers(part)
    check_places(record, decoded)
    plan_waves(operations)
    assert len(rejections) <= 1
    letters = rejections.dead_letters(NOW)
    assert len(letters) <= LETTERS_MAX
    for letter in letters:
        text = encode_dead_letter(letter, LETTER_MAX_BYTES)
        assert text.isascii()
        assert len(text) <= LETTER_MAX_BYTES
        assert parse_dead_letter(text).letter.reason is letter.reason
    for first, (position, _, _) in enumerate(decoded[:3], 1):
        after = RecordPosition.from_origin(position).position
        assert keys_of(list(decoder.decode([record], after=after))) == keys_of(decoded[first:])
    check_faults()


def check_places(record: Record, decoded: Sequence[DecodedRecord]) -> None:
    """Check that positions rise, that ids differ, and that a dead letter's place leads back to its part."""
    places = [RecordPosition.from_origin(position) for position, _, _ in decoded]
    assert all(is_after(later, earlier) for earlier, later in pairwise(places))
    assert all(place.stored.position <= place.position for place in places)
    assert not places or places[-1].stored == places[-1]
    origins = [result.origin for _, _, result in decoded]
    assert len(set(map(derived_request_id, origins))) == len(origins)
    parts = {part.number: part.data for part in unpack(record.data, record.partition_key) or ()}
    for (_, data, _), origin in zip(decoded, origins, strict=True):
        assert parts.get(origin.part_number, record.data) == data or data == record.data


def check_producers(record: bytes) -> None:
    assert len(list(traceparents_of_records([record]))) <= 1


def keys_of(decoded: list[DecodedRecord]) -> list[object]:
    return [result.digest if isinstance(result, Operation) else result for _, _, result in decoded]


def check_operation(operation: Operation) -> None:
    ids = (operation.business_id, operation.location_id, operation.resource_type, operation.request_id)
    assert all(1 <= len(one) <= 128 and is_storable(one) for one in ids)
    assert operation.resource_id is None or (
        1 <= len(operation.resource_id) <= 256 and is_storable(operation.resource_id)
    )
    assert (operation.resource_id is None) == (operation.kind is OperationKind.LIST)
    assert len(operation.digest) == 8
    assert datetime.fromisoformat(operation.requested_at).utcoffset() is not None
    if operation.exceeds_bounds:
        return
    text = operation.text if operation.query is None else operation.query.members
    if text is not None:
        assert not exceeds_bounds(text.encode()) or operation.query is not None
        msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])
        pack_columns([[operation.tenant_id]], [[text]])
    if operation.kind is OperationKind.PATCH and text is not None:
        is_laborious(text)
        try:
            merged = merge_texts(text, text)
        except ValueError:
            return
        assert isinstance(json.loads(merged, parse_int=str, parse_float=str), dict)


def is_json(text: bytes) -> bool | None:
    """Return whether Python's parser takes *text* for JSON; None if it is nested too deep for it."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text.decode(), parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    except RecursionError:
        return None
    return True


def check_reason(rejected: RejectedRecord | None, record: bytes) -> None:
    if rejected is not None and (rejected.reason is DeadLetterReason.TOO_LARGE or rejected.error == TOO_DEEP):
        return
    is_called_json = rejected is None or rejected.reason is not DeadLetterReason.INVALID_JSON
    assert is_json(record) in {is_called_json, None}


def check_rejection(rejected: RejectedRecord) -> None:
    """Check that the letter can be written, and that its error does not quote the record at length."""
    assert rejected.reason in REASONS
    assert len(rejected.error) < 1000
    assert rejected.error.isprintable()


def sealed(count: int) -> bytes:
    return sealed_records(*(json.dumps(USUAL | {"requestId": f"request-{number}"}).encode() for number in range(count)))


def sealed_records(*records: bytes) -> bytes:
    packer = AggregatePacker()
    for number, record in enumerate(records):
        packer.add(f"key-{number % 2}", record)
    return AGGREGATE + packer.seal()[len(MAGIC) : -16]


def field(number: int, wire: int) -> st.SearchStrategy[bytes]:
    tag = bytes([number << 3 | wire])
    small = st.integers(0, 300).map(
        lambda value: bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])
    )
    return st.tuples(small, st.binary(max_size=6)).map(lambda drawn: tag + drawn[0] + drawn[1])


FIELDS: Final = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 7)).flatmap(lambda drawn: field(*drawn)), max_size=8
)
SEEDS: Final = (
    *(json.dumps(USUAL | {"operation": kind}).encode() for kind in OperationKind),
    sealed(1),
    sealed(3),
    MAGIC + b"short",
    b"[%b, 7, [%b]]" % (ONE, ONE),
    b"%b\r\n\n%b\nbroken\n" % (ONE, ONE),
    json.dumps(USUAL, indent=1).encode(),
    sealed_records(b"[%b,%b]" % (ONE, ONE), ONE, b"%b\n%b" % (ONE, ONE)),
)
SEVERAL: Final = st.tuples(
    st.sampled_from([b"[%b]", b" \n[ %b ]", b"%b", b"%b\n", b"[%b"]),
    st.sampled_from([b",", b", \n", b"\n", b"\r\n\n"]),
    st.lists(st.just(ONE) | messages(USUAL) | st.sampled_from([b"7", b"[]", b"{", b"\xff", b""]), max_size=14),
).map(lambda drawn: drawn[0] % drawn[1].join(drawn[2]))
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=(
        *(json.dumps(name).encode() for name in USUAL),
        b"create",
        b"patch",
        b"list",
        b"simplu:",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        MAGIC,
        b"\x1a\x03",
    ),
    inputs=messages(USUAL)
    | SEVERAL
    | spliced(st.sampled_from(SEEDS), (b"create", b"patch", b"\x1a\x02\x08\x00", b"\x0a\x01k"))
    | FIELDS.map(lambda fields: AGGREGATE + b"".join(fields)),
    steps_per_byte=8_000,  # a part of an aggregate has three bytes at least
    bytes_per_byte=1_000,
)
