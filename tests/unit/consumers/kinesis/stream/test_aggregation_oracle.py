from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.kpl_aggregates import Packed, aggregate, bytes_field, number_field, packed_record, sealed, varint
from support.requires import require

from simplu_worker.consumers.kinesis.stream.aggregation import Part, deaggregate

hash_keys = st.integers(0, 2**128 - 1).map(str)


def packed_with(hash_keys: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[Packed]]:
    data = st.binary(max_size=20) | st.binary(min_size=120, max_size=300)
    return st.lists(st.tuples(st.text(max_size=8), hash_keys, data), min_size=1, max_size=12)


class Oracle:
    """aws-kinesis-agg, AWS's own library for the format; it needs protobuf and, undeclared, six."""

    def __init__(self) -> None:
        path = sys.path[:]  # it puts its own folder before everything else
        try:
            self._aggregator: Any = importlib.import_module("aws_kinesis_agg.aggregator")
            self._deaggregator: Any = importlib.import_module("aws_kinesis_agg.deaggregator")
        finally:
            sys.path[:] = path

    def aggregate(self, packed: Sequence[Packed]) -> bytes:
        packer = self._aggregator.RecordAggregator()
        for key, hash_key, data in packed:
            assert packer.add_user_record(key, data, hash_key) is None
        data = packer.clear_and_get().get_contents()[2]
        assert isinstance(data, bytes)
        return data

    def parse(self, message: bytes) -> list[Part] | None:
        parsed = self._deaggregator.messages_pb2.AggregatedRecord()
        try:
            parsed.ParseFromString(message)
            return [self._sub_record(parsed, number, record) for number, record in enumerate(parsed.records)]
        except (self._deaggregator.google.protobuf.message.DecodeError, IndexError, UnicodeDecodeError):
            return None

    def _sub_record(self, parsed: Any, number: int, record: Any) -> Part:
        has_hash_key = record.HasField("explicit_hash_key_index")
        hash_key = parsed.explicit_hash_key_table[record.explicit_hash_key_index] if has_hash_key else None
        return Part(parsed.partition_key_table[record.partition_key_index], record.data, number, hash_key)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    found = importlib.util.find_spec("aws_kinesis_agg") is not None
    require("aws-kinesis-agg", found=found, how="install requirements/dev.txt")
    return Oracle()


def sub_records(packed: Sequence[Packed]) -> list[Part]:
    return [Part(key, data, number, hash_key) for number, (key, hash_key, data) in enumerate(packed)]


@given(packed=packed_with(st.none() | hash_keys))
def test_aggregate_of_the_library_is_taken_apart_whatever_was_packed(oracle: Oracle, packed: list[Packed]) -> None:
    data = oracle.aggregate(packed)

    assert deaggregate(data) == sub_records(packed)
    assert aggregate(packed) == data


PIECES = [
    bytes_field(1, b"k0"),
    bytes_field(1, b"\xff"),
    bytes_field(2, b"7"),
    packed_record(0, None, b"data"),
    packed_record(0, 0, b"x" * 200),
    packed_record(1, None, b""),
    packed_record(1, 1, b"", number_field(1, 0) + number_field(2, 0)),
    packed_record(None, None, b"data"),
    packed_record(0, None, None, varint(9 << 3 | 1) + b"12345678" + bytes_field(3, b"later")),
    number_field(9, 2**64 - 1),
    number_field(3, 1),
    varint(9 << 3 | 5) + b"1234",
    bytes_field(0, b""),
    b"\x1a",
    b"\x80",
    b"\x00",
    b"\x1b",
]


@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12),
    changes=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=2),
)
def test_message_is_read_as_protobuf_reads_it_whatever_it_is(
    oracle: Oracle, pieces: list[bytes], changes: list[tuple[int, int]]
) -> None:
    message = bytearray(b"".join(pieces))
    for at, value in changes:
        message[at : at + 1] = bytes([value])

    subs = deaggregate(sealed(bytes(message)))

    assert subs is None or subs == oracle.parse(bytes(message))
