from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from simplu_worker.dead_letters.letter import ParsedDeadLetter, WholeRecord
from simplu_worker.dead_letters.plan import NotEditableError, ReplayRules, edit_record
from simplu_worker.operations.dead_letter import BadParts, DeadLetter
from simplu_worker.operations.operation import Origin, derived_request_id
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

AT = datetime(2026, 1, 1, tzinfo=UTC)
STREAM = Origin(
    *(Source.KINESIS, "operations", AT), stream_shard_id="shardId-0", sequence_number="100", partition_key="old-key"
)
RULES = ReplayRules("operations", {}, 10_000, 1000, PartitionKeyRule.RESOURCE_TYPE)
VALID: dict[str, Any] = {
    "operation": "update",
    "businessId": "b",
    "locationId": "l",
    "resourceType": "patient",
    "resourceId": "p1",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"n": 1},
}
TEXT = json.dumps(VALID)


def parsed(record: bytes = b"{", whole: WholeRecord | None = None, **members: Any) -> ParsedDeadLetter:
    known: dict[str, Any] = {"origin": STREAM, "reason": DeadLetterReason.INVALID_JSON} | members
    return ParsedDeadLetter(DeadLetter(error="", failed_at=AT, attempts=1, record=record, **known), whole)


def test_corrected_record_is_another_operation_with_its_own_key() -> None:
    text = '{"requestId": "old", "simpluReplay": {}, "data": {"n": 12345678901234567890.10}, ' + TEXT[1:].replace(
        '"data": {"n": 1}', '"date": null'
    )
    edited = edit_record(parsed(request_id="old"), text, "new", RULES)
    sent = json.loads(edited.record.data)
    assert (sent["requestId"], "simpluReplay" in sent, edited.record.partition_key) == ("new", False, "b-l-patient")
    assert b'{"n": 12345678901234567890.10}' in edited.record.data
    assert (edited.operation.request_id, edited.old_request_id) == ("new", "old")


def test_old_id_of_a_record_without_one_is_that_of_its_position() -> None:
    edited = edit_record(parsed(), TEXT, "new", RULES)
    assert edited.old_request_id == derived_request_id(STREAM)


@pytest.mark.parametrize(
    ("text", "request_id", "error"),
    [
        ("{", "new", "expected a JSON object"),
        ("[]", "new", "expected a JSON object"),
        (json.dumps(VALID | {"operation": "upsert"}), "new", "it would become a dead letter again"),
        (json.dumps(VALID | {"data": "x" * 20_000}), "new", "it would become a dead letter again (too_large"),
        (TEXT, "simplu:forged", "it would become a dead letter again"),
        (TEXT, "old", "expected a new one"),
    ],
)
def test_text_that_would_come_back_is_refused(text: str, request_id: str, error: str) -> None:
    with pytest.raises(ValueError, match=error.replace("(", r"\(")):
        edit_record(parsed(request_id="old"), text, request_id, RULES)


@pytest.mark.parametrize(
    ("letter", "error"),
    [
        (parsed(TEXT.encode(), WholeRecord(99, "0" * 64)), "only the beginning"),
        (parsed(origin=msgspec.structs.replace(STREAM, source=Source.SQS)), "message of a queue"),
        (parsed(origin=msgspec.structs.replace(STREAM, name="other")), "expected KINESIS_STREAM_NAME to be 'other'"),
        (parsed(parts=BadParts(3, 2, {})), "several operations"),
        (parsed(f"[{TEXT},{TEXT}]".encode()), "several operations"),
    ],
)
def test_letter_of_which_a_part_would_be_lost_is_not_editable(letter: ParsedDeadLetter, error: str) -> None:
    with pytest.raises(NotEditableError, match=error):
        edit_record(letter, TEXT, "new", RULES)


def test_part_of_a_record_is_editable() -> None:
    part = parsed(f"[{TEXT},{TEXT}]".encode(), origin=msgspec.structs.replace(STREAM, part_index=2))
    assert edit_record(part, TEXT, "new", RULES).operation.request_id == "new"
