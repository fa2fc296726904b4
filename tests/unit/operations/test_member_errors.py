"""Every error of a record names its member, what was expected and what came, in one style."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import EXPECTED_TIME, shape_error
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import Source

ORIGIN = Origin(Source.SQS, "queue", datetime(2026, 3, 1, tzinfo=UTC), message_id="m-1")
STYLE = re.compile(r"[\w., ]+: expected .+, got .+", re.DOTALL)
RECORD = {
    "operation": "update",
    "businessId": "b",
    "locationId": "l",
    "resourceType": "t",
    "resourceId": "r",
    "data": {},
    "timestamp": "2026-03-01",
}
KINDS = "create, update, patch, delete, list, read"


def error_of(rejected: object) -> str:
    assert isinstance(rejected, RejectedRecord)
    return rejected.error


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"operation": ...}, "operation: expected a value, got nothing"),
        ({"operation": 7}, "operation: expected text, got an integer"),
        ({"operation": "no"}, f"operation: expected one of {KINDS}, got another text of 2 characters"),
        ({"businessId": ""}, "businessId: expected text of at least 1 characters, got a shorter one"),
        ({"businessId": "b" * 129}, "businessId: expected text of at most 128 characters, got a longer one"),
        ({"businessId": "\0"}, "businessId: expected text without U+0000 and lone surrogates, got one with them"),
        ({"resourceId": [1]}, "resourceId: expected text, got a list"),
        ({"resourceId": None}, "resourceId: expected text, for update, got nothing"),
        (
            {"requestId": "simplu:x"},
            "requestId: expected an id without the prefix 'simplu:' of derived ids, got one with it",
        ),
        ({"data": ...}, "data: expected an object, got nothing"),
        ({"data": None}, "data: expected an object, got null"),
        ({"data": [1]}, "data: expected an object, got a list"),
        ({"data": -1}, "data: expected an object, got a number"),
        ({"timestamp": "now"}, f"timestamp: expected {EXPECTED_TIME}, got another text"),
        ({"timestamp": 1}, "timestamp: expected text, got an integer"),
        ({"filters": "x"}, "filters: expected an object, got text"),
        (
            {"operation": "list", "pagination": {"page": 0}},
            "pagination.page: expected an integer from 1, got a lower one",
        ),
        ({"operation": "list", "pagination": {"limit": "9"}}, "pagination.limit: expected a number, got text"),
        ({"operation": "list", "pagination": {"limit": 1.5}}, "pagination.limit: expected an integer, got a fraction"),
    ],
)
def test_error_of_an_operation_names_member_expected_and_got(members: dict[str, Any], error: str) -> None:
    record = {name: value for name, value in (RECORD | members).items() if value is not ...}

    assert error_of(decode_operation(json.dumps(record).encode(), ORIGIN, 10_000, 100)) == error


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"[]", "record: expected an object, got a list"),
        (b"null", "record: expected an object, got null"),
        (b"\xff", "record: expected UTF-8, got another byte at 0"),
        (b"x" * 101, "record: expected at most 100 bytes (OPERATION_MAX_BYTES), got 101"),
    ],
)
def test_error_of_a_whole_record_names_it(record: bytes, error: str) -> None:
    assert error_of(decode_operation(record, ORIGIN, 100, 100)) == error


@pytest.mark.parametrize(
    "text",
    ["Invalid enum value - at `$.a`", "Invalid RFC3339 encoded datetime", "Expected `bytes`, got `x` - at `$[0]`"],
)
def test_unforeseen_error_of_the_decoder_has_the_style_too(text: str) -> None:
    assert STYLE.fullmatch(shape_error(msgspec.ValidationError(text)).replace("[0]", "0")) is not None
