"""CBOR of the local Kinesis: the examples of RFC 8949, the SDK's blobs and times, and what is no CBOR."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_local.kinesis.cbor import cbor_of, json_of
from simplu_local.kinesis.errors import KinesisError

MAX_INTEGER = 2**63 - 1
SCALARS = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(allow_nan=False, width=32)
NAMES = st.text(max_size=8).filter(lambda name: name != "Data" and not name.endswith("Timestamp"))
JSON = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))) | st.text(max_size=30),
    lambda members: st.lists(members, max_size=4) | st.dictionaries(NAMES, members, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1a000f4240", 1_000_000),
        ("1b000000e8d4a51000", 1_000_000_000_000),
        ("20", -1),
        ("3903e7", -1000),
        ("f93c00", 1.0),
        ("f9c400", -4.0),
        ("fa47c35000", 100_000.0),
        ("fb3ff199999999999a", 1.1),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("f7", None),
        ("60", ""),
        ("6449455446", "IETF"),
        ("62c3bc", "ü"),
        ("83010203", [1, 2, 3]),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("d74401020304", base64.b64encode(b"\1\2\3\4").decode()),
        ("5f42010243030405ff", base64.b64encode(b"\1\2\3\4\5").decode()),
        ("c11b0000019a2b3c4d5e", 0x19A2B3C4D5E / 1000),
    ],
)
def test_item_is_read_as_json_has_it(encoded: str, expected: Any) -> None:
    """RFC 8949, appendix A; byte strings become base64, and times of the SDK seconds."""
    assert json.loads(json_of(bytes.fromhex(encoded))) == expected


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "18",
        "1c",
        "62c3",
        "62c328",
        "8301",
        "a161",
        "ff",
        "9f01",
        "7f01ff",
        "7f7f6161ffff",
        "f8ff",
        "0000",
        "81" * 40,
    ],
)
def test_what_is_no_item_is_refused(encoded: str) -> None:
    """Cut off, of an unknown kind, not UTF-8, too deep, or followed by more."""
    with pytest.raises(KinesisError) as refused:
        json_of(bytes.fromhex(encoded))

    assert refused.value.code == "SerializationException"


@given(JSON)
def test_answer_is_read_again_as_it_was(value: Any) -> None:
    """Whatever its sizes; members that are blobs or times have tests of their own."""
    assert json.loads(json_of(cbor_of(json.dumps(value).encode()))) == value


@given(st.binary(max_size=300), st.integers(0, 2**41))
def test_blobs_and_times_are_written_as_the_sdk_reads_them(data: bytes, at_ms: int) -> None:
    """Blobs as byte strings, times as milliseconds with tag 1; read again they are what JSON has."""
    record = {"Data": base64.b64encode(data).decode(), "ApproximateArrivalTimestamp": at_ms / 1000}
    encoded = cbor_of(json.dumps({"Records": [record]}).encode())

    assert data in encoded
    assert b"ApproximateArrivalTimestamp\xc1" in encoded
    assert json.loads(json_of(encoded)) == {"Records": [record]}


def test_answer_without_a_body_has_none() -> None:
    """As of DeleteStream."""
    assert cbor_of(b"") == b""
