"""What would become of a line: by its own bytes, the shard of its tenant, and the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from simplu_worker.commands.stream.input_lines import parse_lines
from simplu_worker.commands.stream.preview import Fate, Preview, preview
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


@pytest.mark.parametrize(
    ("homes", "logged", "expected"),
    [
        ({}, {}, {"fate": Fate.VALID}),
        ({"b-l": "shard-1"}, {}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
        ({"b-l": Absence.UNREGISTERED}, {}, {"fate": Fate.HELD, "reason": "unregistered"}),
        (
            {"b-l": "shard-1"},
            {("b-l", "r1"): {"shard_id": "shard-2"}},
            {"fate": Fate.DUPLICATE, "shard_id": "shard-2"},
        ),
        ({"b-l": "shard-1"}, {("b-l", "r2"): {"shard_id": "shard-2"}}, {"fate": Fate.APPLIED, "shard_id": "shard-1"}),
    ],
)
def test_valid_record_has_the_fate_of_its_tenant(
    homes: dict[str, Any], logged: dict[Any, Any], expected: dict[str, Any]
) -> None:
    """The log decides first: an operation that was applied stays applied, wherever its tenant is now."""
    (line,) = parse_lines(
        VALID, now=datetime(2026, 1, 1, tzinfo=UTC), new_id=lambda: "new", max_bytes=10_000, list_limit=10
    )
    assert preview(line, homes, logged) == Preview(1, **OF_OPERATION | expected)


def test_record_that_is_no_operation_is_a_dead_letter() -> None:
    """With the reason and the error that its letter would have."""
    lines = parse_lines(
        b'{"operation": "upsert"}\n{', now=datetime(2026, 1, 1, tzinfo=UTC), new_id=str, max_bytes=10_000, list_limit=10
    )
    found = [preview(line, {}, {}) for line in lines]
    assert [(one.line, one.fate, one.reason) for one in found] == [
        (1, Fate.DEAD_LETTER, "invalid_message"),
        (2, Fate.DEAD_LETTER, "invalid_json"),
    ]
    assert all(one.error for one in found)
