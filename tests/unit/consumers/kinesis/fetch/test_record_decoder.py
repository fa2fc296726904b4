from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.kpl_aggregates import aggregate

from simplu_worker.consumers.kinesis.fetch import record_decoder
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord, RecordDecoder
from simplu_worker.consumers.kinesis.stream import aggregation
from simplu_worker.consumers.kinesis.stream.aggregation import OUTSIDE
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, RecordPosition
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

STREAM, STREAM_SHARD_ID = "resources-operations", "shardId-000000000007"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
WHOLE = HashRange(0, (1 << 128) - 1)


def decoder(hash_range: HashRange | None = None, *, operation_max_bytes: int = 10_000) -> RecordDecoder:
    return RecordDecoder(
        STREAM, STREAM_SHARD_ID, operation_max_bytes=operation_max_bytes, list_result_limit=1000, hash_range=hash_range
    )


def data(name: str) -> bytes:
    members = {
        "operation": "delete",
        "businessId": "a",
        "locationId": "x",
        "resourceType": "class",
        "resourceId": name,
        "timestamp": "2026-01-31T09:00:00Z",
    }
    return json.dumps(members).encode()


def record(number: int, content: bytes, *, key: str = "a-x") -> Record:
    return Record(str(number), key, content, START + timedelta(seconds=number))


def packed(number: int, *names: str, key: str = "a-x") -> Record:
    return record(number, aggregate([(key, None, data(name)) for name in names]), key="of the aggregate")


def places(arrivals: Sequence[DecodedRecord]) -> list[Position]:
    return [RecordPosition.from_origin(place).position for place, _, _ in arrivals]


def hash_key(partition_key: str) -> int:
    return int.from_bytes(hashlib.md5(partition_key.encode()).digest())


def test_decoder_notes_the_origin_of_each_operation() -> None:
    records = [record(1, data("r1")), packed(2, "r2", "r3", key="b")]

    arrivals = list(decoder(WHOLE).decode(records))

    assert [content for _, content, _ in arrivals] == [data("r1"), data("r2"), data("r3")]
    origins = [decoded.origin for _, _, decoded in arrivals]
    assert origins == [
        Origin(
            source=Source.KINESIS,
            name=STREAM,
            arrived_at=START + timedelta(seconds=number),
            stream_shard_id=STREAM_SHARD_ID,
            sequence_number=str(number),
            sub_sequence_number=sub,
            partition_key=key,
        )
        for number, sub, key in ((1, 0, "a-x"), (2, 0, "b"), (2, 1, "b"))
    ]
    assert places(arrivals) == [Position(1), Position(2), Position(2, 1)]
    assert [one.resource_id for _, _, one in arrivals if isinstance(one, Operation)] == ["r1", "r2", "r3"]


def test_decoder_of_a_parent_has_the_parents_name_and_range() -> None:
    own = decoder(WHOLE)
    parent = own.of_parent("shardId-000000000001", HashRange(0, 0))
    ((_, _, decoded), (_, _, elsewhere)) = parent.decode([record(1, data("r1")), packed(2, "r2", "r3")])
    assert (decoded.origin.stream_shard_id, own.stream_shard_id) == ("shardId-000000000001", STREAM_SHARD_ID)
    assert isinstance(elsewhere, RejectedRecord)


@pytest.mark.parametrize("content", [data("r1"), aggregate([("k", None, data("r1"))])])
def test_record_at_which_the_decoder_has_a_defect_is_rejected(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(aggregation, "deaggregate", fail)
    ((place, bytes_of_all, rejected),) = decoder(WHOLE).decode([record(1, content + b"\n")])
    assert isinstance(rejected, RejectedRecord)
    assert (rejected.reason, rejected.origin.sequence_number) == (DeadLetterReason.INTERNAL_ERROR, "1")
    assert ("KeyError" in rejected.error, "secret" in rejected.error) == (True, False)
    assert (place.sub_sequence_number, bytes_of_all) == (len(content) + 1, content + b"\n")


def test_records_are_decoded_alone_where_that_fails_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError

    contents = [data("r"), b"{", data("x" * 300), data("s").replace(b"delete", b"list")]
    wanted: list[DecodedRecord] = []
    found: list[DecodedRecord] = []
    for into in (wanted, found):
        records = [record(number, content) for number, content in enumerate(contents)]
        into.extend(decoder(operation_max_bytes=300).decode(records))
        monkeypatch.setattr(record_decoder, "decode_operations", fail)
    assert found == wanted


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not json", DeadLetterReason.INVALID_JSON),
        (b"", DeadLetterReason.INVALID_JSON),
        (b"{}", DeadLetterReason.INVALID_MESSAGE),
        (b" " * 10_001, DeadLetterReason.TOO_LARGE),
    ],
)
def test_decoder_rejects_invalid_bytes(content: bytes, reason: DeadLetterReason) -> None:
    whole = aggregate([("k", None, data("r1")), ("k", None, content), ("k", None, data("r2"))])

    arrivals = list(decoder(WHOLE).decode([record(1, content), record(2, whole)]))

    rejected = [
        (RecordPosition.from_origin(place).position, decoded.reason, record)
        for place, record, decoded in arrivals
        if isinstance(decoded, RejectedRecord)
    ]
    assert rejected == [(Position(1), reason, content), (Position(2, 1), reason, content)]
    assert len(arrivals) == 4


@pytest.mark.parametrize("outside", [{0}, {1}, {2}, {0, 1, 2}])
def test_decoder_rejects_a_whole_aggregate_when_a_part_belongs_elsewhere(outside: set[int]) -> None:
    """One dead letter with all its bytes, behind its last part, and none of its operations.

    A reader that finished some of its parts, before the hash range was known, gets it as well.
    """
    inside_key, outside_key = hash_key("inside"), hash_key("outside")
    here = HashRange(inside_key, inside_key)
    content = aggregate(
        [("outside" if number in outside else "inside", None, data(f"r{number}")) for number in range(3)]
    )
    assert outside_key != inside_key

    arrivals = list(decoder(here).decode([record(1, content, key="inside"), record(2, data("r9"))]))

    beyond = Position(1, len(content))
    assert places(arrivals) == [beyond, Position(2)]
    assert places(list(decoder(here).decode([record(1, content, key="inside")], after=Position(1, 1)))) == [beyond]
    _, bytes_of_all, refused = arrivals[0]
    assert bytes_of_all == content
    assert isinstance(refused, RejectedRecord)
    assert (refused.reason, refused.origin.partition_key) == (DeadLetterReason.INVALID_MESSAGE, "inside")
    assert refused.origin.sub_sequence_number == 0
    assert RecordPosition.from_origin(arrivals[0][0]).arrived_at == START + timedelta(seconds=1)
    assert refused.error == OUTSIDE


def array(number: int, *parts: bytes) -> Record:
    return record(number, b"[%b]" % b",".join(parts))


def lines(number: int, *parts: bytes) -> Record:
    return record(number, b"\r\n".join(parts))


def found(arrivals: Sequence[DecodedRecord]) -> list[str | None]:
    return [one.resource_id if isinstance(one, Operation) else one.reason for _, _, one in arrivals]


@pytest.mark.parametrize("several", [array, lines])
def test_parts_of_a_record_are_operations_of_their_own(several: Callable[..., Record]) -> None:
    parts = [data(f"r{number}") for number in range(3)]
    first, again = (list(decoder(WHOLE).decode([record(1, data("r")), several(2, *parts)])) for _ in range(2))

    assert found(first) == ["r", "r0", "r1", "r2"]
    assert [content for _, content, _ in first[1:]] == parts
    assert [one.origin for _, _, one in first[1:]] == [
        Origin(
            source=Source.KINESIS,
            name=STREAM,
            arrived_at=START + timedelta(seconds=2),
            stream_shard_id=STREAM_SHARD_ID,
            sequence_number="2",
            partition_key="a-x",
            part_index=index,
            parts_behind=2 - index,
        )
        for index in range(3)
    ]
    assert places(first) == [Position(1), Position(2, 0, -2), Position(2, 0, -1), Position(2)]
    ids = [one.request_id for _, _, one in first]
    assert len(set(ids)) == 4
    assert ids == [one.request_id for _, _, one in again]
    assert sum(one.size_bytes for _, _, one in first[1:] if isinstance(one, Operation)) == sum(map(len, parts))


@pytest.mark.parametrize("several", [array, lines])
def test_bad_parts_are_rejected_alone(several: Callable[..., Record]) -> None:
    large = data("x" * 300)
    parts = [data("r0"), b"[%b]" % data("r"), b"7", large, b"{}", data("r5")]

    arrivals = list(decoder(operation_max_bytes=300).decode([several(1, *parts), record(2, data("r6"))]))

    invalid, too_large = DeadLetterReason.INVALID_MESSAGE, DeadLetterReason.TOO_LARGE
    assert found(arrivals) == ["r0", invalid, invalid, too_large, invalid, "r5", "r6"]
    assert [content for _, content, _ in arrivals] == [*parts, data("r6")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", DeadLetterReason.INVALID_MESSAGE),
        (b"[%b" % data("r"), DeadLetterReason.INVALID_JSON),
        (b"\xef\xbb\xbf[%b]" % data("r"), DeadLetterReason.INVALID_JSON),
        (b"\xef\xbb\xbf%b\n%b" % (data("r"), data("r")), DeadLetterReason.INVALID_JSON),
        (json.dumps(json.loads(data("r")), indent=2).encode()[:-1], DeadLetterReason.INVALID_JSON),
        (b"[%b]" % b",".join([data("r")] * 1001), DeadLetterReason.TOO_LARGE),
        (b"\n".join([data("r")] * 1001), DeadLetterReason.TOO_LARGE),
    ],
)
def test_record_that_is_no_list_of_operations_is_one_rejection(content: bytes, reason: DeadLetterReason) -> None:
    packed_too = record(2, aggregate([("k", None, data("r1")), ("k", None, content), ("k", None, data("r2"))]))
    arrivals = list(decoder().decode([record(1, content), packed_too]))
    assert found(arrivals) == [reason, "r1", reason, "r2"]
    assert [arrivals[0][1], arrivals[2][1]] == [content, content]
    assert places(arrivals) == [Position(1), Position(2), Position(2, 1), Position(2, 2)]


def test_parts_of_records_in_an_aggregate_have_both_numbers() -> None:
    inner = [("k", None, data("r0")), ("l", None, array(0, data("r1"), b"7", data("r3")).data), ("k", None, data("r4"))]
    arrivals = list(decoder(WHOLE).decode([record(1, aggregate(inner))]))
    assert found(arrivals) == ["r0", "r1", DeadLetterReason.INVALID_MESSAGE, "r3", "r4"]
    origins = [one.origin for _, _, one in arrivals]
    assert [(one.partition_key, one.part_number) for one in origins] == [
        ("k", 0),
        ("l", (1, 0)),
        ("l", (1, 1)),
        ("l", (1, 2)),
        ("k", 2),
    ]
    assert places(arrivals) == [Position(1), Position(1, 1, -2), Position(1, 1, -1), Position(1, 1), Position(1, 2)]
    assert len({one.request_id for _, _, one in arrivals if isinstance(one, Operation)}) == 4


class Shape(StrEnum):
    """What a record of several operations is."""

    AGGREGATE = "aggregate"
    ARRAY = "array"
    LINES = "lines"
    BOTH = "both"  # an aggregate of two arrays


def shaped(number: int, size: int, shape: Shape) -> tuple[Record, list[Position]]:
    parts = [data(f"r{part}") for part in range(size)]
    match shape:
        case _ if size == 1:
            return record(number, parts[0]), [Position(number)]
        case Shape.AGGREGATE:
            content = aggregate([("k", None, part) for part in parts])
            return record(number, content), [Position(number, part) for part in range(size)]
        case Shape.BOTH:
            inner = array(0, *parts).data
            own = [Position(number, sub, part - size + 1) for sub in range(2) for part in range(size)]
            return record(number, aggregate([("k", None, inner), ("k", None, inner)])), own
        case Shape.ARRAY | Shape.LINES:
            several = array if shape is Shape.ARRAY else lines
            return several(number, *parts), [Position(number, 0, part - size + 1) for part in range(size)]


SHAPES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(Shape)), min_size=1, max_size=5)


@given(shapes=SHAPES, first=st.integers(0, 6), sub=st.integers(-1, 4), part=st.integers(-4, 0))
def test_decoder_skips_exactly_the_records_up_to_the_position(
    shapes: list[tuple[int, Shape]], first: int, sub: int, part: int
) -> None:
    done = Position(first, sub, part)
    shapes_made = [shaped(number, *shape) for number, shape in enumerate(shapes, start=1)]
    records = [made for made, _ in shapes_made]
    everything = [place for _, own in shapes_made for place in own]

    assert everything == sorted(everything)
    assert places(list(decoder().decode(list(records)))) == everything
    assert places(list(decoder().decode(records, after=done))) == [one for one in everything if one > done]


def test_lists_are_bounded_alone_and_in_an_aggregate() -> None:
    members = {"operation": "list", "resourceId": None, "pagination": {"limit": 5000}}
    content = json.dumps(json.loads(data("r")) | members).encode()
    found = list(decoder(WHOLE).decode([record(1, content), record(2, aggregate([("a-x", None, content)]))]))
    assert [one.query.limit for _, _, one in found if isinstance(one, Operation) and one.query] == [1000, 1000]


class Poison(bytes):
    """Bytes at which the worker's own code fails."""

    def __len__(self) -> int:
        raise ZeroDivisionError


def test_record_at_which_the_decoder_fails_alone_is_rejected_and_the_others_are_operations() -> None:
    records = [record(number, data(f"r{number}")) for number in range(1, 6)]
    records[2] = record(3, Poison(data("r3")))

    decoded = [one for _, _, one in decoder().decode(records)]

    kinds = [one.reason if isinstance(one, RejectedRecord) else one.resource_id for one in decoded]
    assert kinds == ["r1", "r2", DeadLetterReason.INTERNAL_ERROR, "r4", "r5"]
