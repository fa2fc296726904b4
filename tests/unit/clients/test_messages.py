"""Messages of the clients: what the worker would refuse is not sent."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from simplu_client.messages import (
    _TIME,
    MAX_RECORD_BYTES,
    Encoded,
    InvalidMessage,
    encode,
    partition_key,
    queue_id,
    uuid7,
)
from support.clients.cases import read_cases
from support.requires import ROOT

from simplu_worker.commands.stream.input_lines import partition_key_of
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import TIME
from simplu_worker.operations.operation import Operation, Origin
from simplu_worker.status.message_schemas import SCHEMAS
from simplu_worker.vocabulary import PartitionKeyRule, Source

CASES = read_cases("messages")
ORIGIN = Origin(source=Source.KINESIS, name="stream", arrived_at=datetime(2026, 1, 31, 9, tzinfo=UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def message_of(case: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = dict(case["message"])
    if "repeat" in case:
        name, times = case["repeat"]
        message[name] *= times
    if "large" in case:
        message["data"] = {"a": "x" * case["large"]}
    return message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_message_is_what_the_case_says(case: dict[str, Any]) -> None:
    message = message_of(case)
    own = partition_key(message, case.get("rule", "resource-type"))
    found = encode(message, case["kind"], key=own)
    if "problem" in case:
        assert isinstance(found, InvalidMessage)
        assert case["problem"] in found.text
        return
    assert isinstance(found, Encoded)
    assert json.loads(found.data) == message
    assert found.data == case.get("bytes", found.data.decode()).encode()
    assert found.size_bytes == len(found.data) + len(own.encode()) <= MAX_RECORD_BYTES
    assert own == case.get("key", own)
    assert len(own) == case.get("keyLength", len(own))


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case["kind"] == "operation" and "large" not in case],
    ids=lambda case: case["name"],
)
def test_client_and_worker_agree_on_operations(case: dict[str, Any]) -> None:
    message = {"timestamp": "2026-01-31T09:00:00Z", "requestId": "r"} | message_of(case)
    decoded = decode_operation(json.dumps(message).encode(), ORIGIN, max_bytes=10 << 20, list_limit=1000)
    assert isinstance(decoded, Operation) == ("problem" not in case)
    if isinstance(decoded, Operation):
        rule = case.get("rule", "resource-type")
        assert partition_key(message, rule) == partition_key_of(decoded, 1, PartitionKeyRule(rule))


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] != "operation"], ids=lambda case: case["name"])
def test_client_and_schemas_agree_on_messages(case: dict[str, Any]) -> None:
    message = {"timestamp": "2026-01-31T09:00:00Z"} | message_of(case)
    name = str(message.get("messageType", "order-event")).lower().replace("_", "-")
    assert Draft202012Validator(SCHEMAS[name]).is_valid(message) == ("problem" not in case)


def test_pattern_of_times_is_the_one_of_the_worker() -> None:
    assert _TIME.pattern == TIME
    typescript = (ROOT / "clients" / "typescript" / "src" / "messages.ts").read_text(encoding="utf-8")
    assert f"const TIME = /{TIME}/;" in typescript


@pytest.mark.slow
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON))
def test_data_of_the_client_is_what_the_worker_reads(data: dict[str, Any]) -> None:
    message = {"operation": "create", "businessId": "b", "locationId": "l", "resourceType": "t", "data": data}
    found = encode(message | {"timestamp": "2026-01-31T09:00:00Z", "requestId": "r"}, "operation")
    if isinstance(found, Encoded):
        decoded = decode_operation(found.data, ORIGIN, max_bytes=10 << 20, list_limit=1000)
        assert isinstance(decoded, Operation)
        assert decoded.data is not None
        assert json.loads(bytes(decoded.data)) == data


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_request_ids_are_uuids_of_version_7(ms: int, random: bytes) -> None:
    found = uuid7(ms, random)
    read = uuid.UUID(found)
    assert (str(read), read.version, read.variant) == (found, 7, uuid.RFC_4122)
    assert read.int >> 80 == ms
    bits = 1 << 80
    assert (read.int ^ int.from_bytes(random, "big")) & (bits - 1) & ~(0xF << 76) & ~(0x3 << 62) == 0


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [("o-1", True), ("x" * 128, True), ("x" * 129, False), ("o 1", False), ("ö", False), ("", False), ("o\n", False)],
)
def test_ids_of_sqs_are_as_it_allows_them(text: str, is_kept: bool) -> None:  # noqa: FBT001 - a table
    assert (queue_id(text) == text) == is_kept
    assert is_kept or len(queue_id(text)) == 64
