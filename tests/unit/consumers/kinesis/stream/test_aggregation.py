from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.aws.kpl_aggregates import Packed, aggregate, bytes_field, number_field, packed_record, sealed, varint

from simplu_worker.consumers.kinesis.stream.aggregation import (
    AggregatePacker,
    Part,
    deaggregate,
    hash_key_of,
    lies_within,
)
from simplu_worker.consumers.kinesis.stream.positions import HashRange

HASH_KEY_MAX = 2**128 - 1
WHOLE_STREAM = HashRange(0, HASH_KEY_MAX)
MD5_OF_A = 0x0CC175B9C0F1B6A831C399E269772661  # RFC 1321, A.5

# Two records: key "k0", data "one"; key "k1", explicit hash key "7", data "".
LITERAL = bytes.fromhex(
    "f3899ac2"
    "0a026b30"  # partition_key_table: "k0"
    "0a026b31"  # partition_key_table: "k1"
    "120137"  # explicit_hash_key_table: "7"
    "1a0708001a036f6e65"  # record: key 0, data "one"
    "1a06080110001a00"  # record: key 1, hash key 0, data ""
    "e44ed176c39e4269ee4800445b746d1c"  # MD5 of the message
)
LITERAL_RECORDS = [("k0", None, b"one"), ("k1", "7", b"")]
LITERAL_MESSAGE = LITERAL[4:-16]

KEYS = bytes_field(1, b"k0") + bytes_field(1, b"k1")
ONE = packed_record(0, None, b"one")


def changed_in_one_byte(data: bytes) -> list[bytes]:
    return [
        data[:at] + bytes([value]) + data[at + 1 :]
        for at, was in enumerate(data)
        for value in range(256)
        if value != was
    ]


def assert_is_sound(subs: list[Part] | None) -> None:
    if subs is None:
        return
    assert [sub.sub_sequence_number for sub in subs] == list(range(len(subs)))
    assert subs != []
    assert lies_within(subs, WHOLE_STREAM)


def sub_records(packed: Sequence[Packed]) -> list[Part]:
    return [Part(key, data, number, hash_key) for number, (key, hash_key, data) in enumerate(packed)]


def test_aggregate_is_taken_apart_when_written_byte_by_byte() -> None:
    assert deaggregate(LITERAL) == sub_records(LITERAL_RECORDS)


HASH_KEY = number_field(2, 0)


def test_record_is_ordinary_when_any_byte_of_an_aggregate_changed() -> None:
    assert [data for data in changed_in_one_byte(LITERAL) if deaggregate(data) is not None] == []


def test_record_is_ordinary_when_an_aggregate_is_cut_short() -> None:
    assert [at for at in range(len(LITERAL)) if deaggregate(LITERAL[:at]) is not None] == []
    smaller_aggregate = LITERAL_MESSAGE.index(ONE) + len(ONE)  # cut between the two records
    valid = [at for at in range(len(LITERAL_MESSAGE)) if deaggregate(sealed(LITERAL_MESSAGE[:at])) is not None]
    assert valid == [smaller_aggregate]


@given(st.binary(max_size=200) | st.lists(st.sampled_from([KEYS, ONE, HASH_KEY, b"\x1a", b"\x80"])).map(b"".join))
@example(b"\xff" * 100)
def test_nothing_is_raised_when_the_message_is_anything(message: bytes) -> None:
    assert deaggregate(message) is None
    assert_is_sound(deaggregate(sealed(message)))


@pytest.mark.parametrize(
    ("sub", "expected"),
    [
        (Part("a", b"", 0, None), MD5_OF_A),
        (Part("", b"", 0, None), 0xD41D8CD98F00B204E9800998ECF8427E),  # RFC 1321, A.5
        (Part("a", b"", 0, "0"), 0),
        (Part("a", b"", 0, "007"), 7),
        (Part("a", b"", 0, str(HASH_KEY_MAX)), HASH_KEY_MAX),
    ],
)
def test_hash_key_is_the_explicit_one_or_the_md5_of_the_partition_key(sub: Part, expected: int) -> None:
    assert hash_key_of(sub) == expected


@pytest.mark.parametrize(
    ("subs", "hash_range", "expected"),
    [
        ([("a", None)], HashRange(MD5_OF_A, MD5_OF_A), True),
        ([("a", None)], HashRange(0, MD5_OF_A - 1), False),
        ([("a", None)], HashRange(MD5_OF_A + 1, HASH_KEY_MAX), False),
        ([("a", "5")], HashRange(5, 9), True),
        ([("a", "9")], HashRange(5, 9), True),
        ([("a", "4")], HashRange(5, 9), False),
        ([("a", "10")], HashRange(5, 9), False),
        ([("a", "5"), ("a", "6"), ("a", "10")], HashRange(5, 9), False),
        ([("a", "10"), ("a", "5"), ("a", "6")], HashRange(5, 9), False),
        ([("a", "5"), ("a", None)], HashRange(5, 9), False),
        ([], HashRange(5, 9), True),
    ],
)
def test_aggregate_lies_within_a_stream_shard_when_every_record_does(
    subs: list[tuple[str, str | None]], hash_range: HashRange, *, expected: bool
) -> None:
    packed = [Part(key, b"", number, hash_key) for number, (key, hash_key) in enumerate(subs)]
    assert lies_within(packed, hash_range) is expected
    assert lies_within(packed, None) is True


def test_packer_packs_what_is_unpacked_again() -> None:
    lengths = [("k", b"x" * length) for length in (127, 128, 129, 16_383, 16_384)]
    packed = [("a", b"1"), ("b", b""), ("a", b"x" * 300), ("ü" * 70, b"2"), *lengths]
    packer = AggregatePacker()
    for key, data in packed:
        packer.add(key, data)
    assert packer.seal() == aggregate([(key, None, data) for key, data in packed])


@pytest.mark.parametrize(
    "field",
    [
        number_field(4, 1),
        number_field(9, 300),
        number_field(9, 127),
        number_field(9, 2**64 - 1),
        number_field(16, 1),
        varint(1 << 3 | 5) + b"\xff" * 4,
        bytes_field(4, b"tag"),
        bytes_field(200, b"x" * 300),
        varint(5 << 3 | 1) + b"\xff" * 8,
        varint(5 << 3 | 5) + b"\xff" * 4,
        varint((1 << 32) - 8) + b"\x00",
    ],
)
def test_field_that_is_unknown_is_passed_over(field: bytes) -> None:
    for message in (field + KEYS + ONE, KEYS + field + ONE, KEYS + ONE + field):
        assert deaggregate(sealed(message)) == [Part("k0", b"one", 0, None)]
    record = packed_record(0, None, b"one", field)
    assert deaggregate(sealed(KEYS + record)) == [Part("k0", b"one", 0, None)]


@pytest.mark.parametrize(
    "field",
    [
        b"\x00\x00",  # field 0
        b"\x07\x00",
        b"\x01" + b"\x00" * 8,
        varint(4 << 3) + b"\x80" * 10 + number_field(9, 1),
        varint(1 << 32) + b"\x00",
        varint(4 << 3 | 3),
        varint(4 << 3 | 4),
        varint(4 << 3 | 6),
        varint(4 << 3 | 2) + b"\x05abc",
        varint(4 << 3) + b"\x80",
        varint(5 << 3 | 1) + b"\xff" * 7,
        varint(5 << 3 | 5) + b"\xff" * 3,
        varint(4 << 3) + b"\xff" * 9 + b"\x02",
        varint(4 << 3) + b"\x80" * 10 + b"\x00",
    ],
)
def test_field_of_no_protobuf_makes_it_an_ordinary_record(field: bytes) -> None:
    assert deaggregate(sealed(KEYS + ONE + field)) is None
    assert deaggregate(sealed(KEYS + packed_record(0, None, b"one", field))) is None


@pytest.mark.parametrize(
    ("hash_key", "is_one"),
    [
        (str(HASH_KEY_MAX), True),
        (str(HASH_KEY_MAX + 1), False),
        ("9" * 39, False),
        ("0" * 39, True),
        ("0" * 40, False),
        ("0x7", False),
        ("-1", False),
        ("", False),
    ],
)
def test_hash_key_is_a_number_of_128_bits(hash_key: str, *, is_one: bool) -> None:
    found = deaggregate(aggregate([("k", hash_key, b"x")]))
    assert found == ([Part("k", b"x", 0, hash_key)] if is_one else None)
