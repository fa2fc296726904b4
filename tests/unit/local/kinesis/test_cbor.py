"""CBOR of the local Kinesis: the SDK's blobs and times, and what is no CBOR."""

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
        ("f6", None),
        ("f7", None),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("5f42010243030405ff", base64.b64encode(b"\1\2\3\4\5").decode()),
        ("c11b0000019a2b3c4d5e", 0x19A2B3C4D5E / 1000),
    ],
)
def test_item_is_read_as_json_has_it(encoded: str, expected: Any) -> None:
    assert json.loads(json_of(bytes.fromhex(encoded))) == expected


@pytest.mark.parametrize("encoded", ["", "62c328", "a161", "f8ff", "d74101", "c16161", "81" * 40])
def test_what_is_no_item_is_refused(encoded: str) -> None:
    with pytest.raises(KinesisError) as refused:
        json_of(bytes.fromhex(encoded))

    assert refused.value.code == "SerializationException"


@pytest.mark.slow
@given(JSON)
def test_answer_is_read_again_as_it_was(value: Any) -> None:
    assert json.loads(json_of(cbor_of(json.dumps(value).encode()))) == value
