from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
from support.aws.kpl_aggregates import aggregate, sealed
from unit.consumers.kinesis.fetch.test_record_decoder import STREAM, STREAM_SHARD_ID, data, decoder, record

from simplu_worker.consumers.kinesis.fetch.record_decoder import FIRST_PARTS_MAX, LETTERS_MAX, RejectionCollector
from simplu_worker.consumers.kinesis.stream.aggregation import PARTS_MAX, TOO_MANY, deaggregate
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import Position, RecordPosition
from simplu_worker.operations.dead_letter import BadParts, DeadLetter
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

FAILED_AT = datetime(2026, 3, 2, tzinfo=UTC)
BOMB_COUNT = PARTS_MAX + 1


def letters_of(*records: Record, after: Position | None = None) -> list[DeadLetter]:
    rejections = RejectionCollector()
    for _, content, decoded in decoder().decode(list(records), after=after):
        if isinstance(decoded, RejectedRecord):
            rejections.add(decoded, content)
    letters = rejections.dead_letters(FAILED_AT)
    assert len(rejections) == len({letter.origin.sequence_number for letter in letters})
    return letters


def with_bad_parts(number: int, *parts: bytes) -> Record:
    return record(number, aggregate([(f"key-{n}", None, part) for n, part in enumerate(parts)]))


def test_bad_parts_of_an_aggregate_are_one_letter_without_the_good_ones() -> None:
    own = json.dumps({"businessId": "a", "locationId": "x", "requestId": "own"}).encode()
    (letter,) = letters_of(with_bad_parts(7, data("r0"), b"{", data("r2"), own, b"", data("r5")))

    assert letter.parts is not None
    assert [(one.request_id, one.business_id, one.origin.sub_sequence_number) for one in letter.parts.first_parts] == [
        (None, None, 1),
        ("own", "a", 3),
        (None, None, 4),
    ]
    assert msgspec.structs.replace(letter.parts, first_parts=()) == BadParts(
        part_count=6,
        bad_count=3,
        reasons={"invalid_json": 2, "invalid_message": 1},
        numbers=(1, 3, 4),
        request_ids=(None, "own", None),
    )
    packed = deaggregate(letter.record)
    assert packed is not None
    assert [(part.partition_key, part.data) for part in packed] == [("key-1", b"{"), ("key-3", own), ("key-4", b"")]
    assert (letter.reason, letter.origin.name, letter.origin.stream_shard_id) == (
        DeadLetterReason.INVALID_JSON,
        STREAM,
        STREAM_SHARD_ID,
    )
    assert (letter.origin.sequence_number, letter.origin.sub_sequence_number) == ("7", 1)
    assert letter.error.startswith(
        "3 of the 6 sub-records of an aggregate are no operations; the first one, number 1: "
    )
    assert (letter.business_id, letter.request_id, letter.failed_at, letter.attempts) == (None, None, FAILED_AT, 1)


def test_single_bad_part_is_a_letter_as_ever() -> None:
    (letter,) = letters_of(with_bad_parts(7, data("r0"), b"{"))
    assert (letter.parts, letter.record, letter.origin.sub_sequence_number) == (None, b"{", 1)


def test_tenant_of_a_letter_is_that_of_all_its_parts_or_none() -> None:
    of_a, of_b = (json.dumps({"businessId": one, "locationId": "x"}).encode() for one in "ab")
    letters = letters_of(with_bad_parts(1, of_a, of_a), with_bad_parts(2, of_a, of_b))
    assert [(one.business_id, one.location_id) for one in letters] == [("a", "x"), (None, None)]


def test_aggregate_with_more_parts_than_valid_operations_can_be_is_one_rejection() -> None:
    bomb = with_many(BOMB_COUNT)
    for after in (None, Position(7, 0), Position(7, BOMB_COUNT - 1)):
        ((place, content, decoded),) = decoder().decode([bomb], after=after)
        assert isinstance(decoded, RejectedRecord)
        assert (decoded.reason, decoded.error, content) == (DeadLetterReason.INVALID_MESSAGE, TOO_MANY, bomb.data)
        assert RecordPosition.from_origin(place).position > Position(7, BOMB_COUNT - 1)
    last = Position(7, len(bomb.data))
    assert list(decoder().decode([bomb], after=last)) == []


def with_many(count: int) -> Record:
    return record(7, sealed(b"\x0a\x01k" + b"\x1a\x04\x08\x00\x1a\x00" * count))


def array(number: int, *parts: bytes) -> Record:
    return record(number, b"[%b]" % b",".join(parts))


def test_bad_parts_of_an_array_have_a_letter_each() -> None:
    letters = letters_of(array(7, *[data("good"), b"{}"] * LETTERS_MAX), record(8, b"{"))

    assert {(one.failed_at, one.attempts) for one in letters} == {(FAILED_AT, 1)}
    assert [(one.record, one.parts, one.origin.part_number) for one in letters] == [
        *((b"{}", None, (0, 2 * n + 1)) for n in range(LETTERS_MAX)),
        (b"{", None, 0),
    ]


def test_more_bad_parts_of_an_array_share_a_letter() -> None:
    own = json.dumps({"businessId": "a", "locationId": "x", "requestId": "own"}).encode()
    (letter,) = letters_of(array(7, data("good"), *[b"7"] * LETTERS_MAX, own))

    assert letter.parts is not None
    assert msgspec.structs.replace(letter.parts, first_parts=()) == BadParts(
        part_count=LETTERS_MAX + 2,
        bad_count=LETTERS_MAX + 1,
        reasons={"invalid_message": LETTERS_MAX + 1},
        numbers=tuple((0, n + 1) for n in range(LETTERS_MAX + 1)),
        request_ids=(*[None] * LETTERS_MAX, "own"),
    )
    assert letter.error.startswith("11 of the 12 operations of a record are no operations; the first one, number 0:1: ")
    packed = deaggregate(letter.record)
    assert packed is not None
    assert [part.data for part in packed] == [*[b"7"] * LETTERS_MAX, own]


def test_number_of_parts_with_a_status_is_bounded() -> None:
    (letter,) = letters_of(with_bad_parts(7, *[b"{"] * (FIRST_PARTS_MAX + 1)))

    assert letter.parts is not None
    assert letter.parts.bad_count == FIRST_PARTS_MAX + 1
    assert [one.origin.sub_sequence_number for one in letter.parts.first_parts] == list(range(FIRST_PARTS_MAX))
