"""What would become of a line: by its own bytes, the shard of its tenant, and the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from simplu_worker.commands.stream.input_lines import InputLine, parse_lines
from simplu_worker.commands.stream.send import Fate, Preview, preview
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.vocabulary import Absence

VALID = (
    b'{"operation": "create", "businessId": "b", "locationId": "l", "resourceType": "patient", "resourceId": "p1", '
    b'"data": {"secret": 1}, "requestId": "r1", "timestamp": "2026-01-01T00:00:00Z"}'
)
OF_OPERATION = {
    "operation": "create",
    "business_id": "b",
    "location_id": "l",
    "resource_type": "patient",
    "resource_id": "p1",
    "request_id": "r1",
}


def lines_of(text: bytes) -> list[InputLine]:
    return parse_lines(text, now=datetime(2026, 1, 1, tzinfo=UTC), new_id=str, max_bytes=10_000, list_limit=10)


FINDING = Finding("#/required", 'the member "name"')
REFUSED = {"reason": "invalid_data", "error": '#/required: expected the member "name"'}


@pytest.mark.parametrize(
    ("homes", "logged_id", "refusals", "expected"),
    [
        ({}, "", {}, {"fate": Fate.VALID}),
        ({"b-l": "shard-1"}, "", {}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
        ({"b-l": Absence.UNREGISTERED}, "", {}, {"fate": Fate.HELD, "reason": "unregistered"}),
        ({"b-l": "shard-1"}, "r1", {1: FINDING}, {"fate": Fate.DUPLICATE, "shard_id": "shard-2"}),
        ({"b-l": "shard-1"}, "r2", {}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
        ({"b-l": "shard-1"}, "", {1: FINDING}, {"fate": Fate.FAILED, "shard_id": "shard-1"} | REFUSED),
    ],
)
def test_valid_record_has_the_fate_of_its_tenant(
    homes: dict[str, Any], logged_id: str, refusals: dict[int, Finding], expected: dict[str, Any]
) -> None:
    (line,) = lines_of(VALID)
    logged = {("b-l", logged_id): {"shard_id": "shard-2"}}
    found = preview(line, homes, logged, refusals)
    assert found == Preview(line=1, **OF_OPERATION | expected)


def test_record_that_is_no_operation_is_a_dead_letter() -> None:
    found = [preview(line, {}, {}, {}) for line in lines_of(b'{"operation": "upsert"}\n{')]
    assert [(one.line, one.fate, one.reason) for one in found] == [
        (1, Fate.DEAD_LETTER, "invalid_message"),
        (2, Fate.DEAD_LETTER, "invalid_json"),
    ]
    assert all(one.error for one in found)
