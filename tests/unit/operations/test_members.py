from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.dead_letter import (
    DECODING_ERRORS,
    READ_MAX_BYTES,
    UnknownTypeError,
    peeked_texts,
    readable_members,
    rejection_of,
)
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.json_record import EXPECTED_TIME, InvalidRecordError, shape_error
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

NAMES = ("businessId", "requestId")


def read(record: bytes) -> dict[str, Any]:
    return {name: json.loads(bytes(raw)) for name, raw in readable_members(record, NAMES).items()}


@pytest.mark.parametrize(
    ("record", "members"),
    [
        (b"", {}),
        (b"no JSON", {}),
        (b'{"businessId": "a", "requestId": "r"', {"businessId": "a", "requestId": "r"}),
        (b'{"businessId":"a","requestId":"r', {"businessId": "a"}),
        (b'{"businessId":"a","requestId":"', {"businessId": "a"}),
        (b'{"businessId": "a", "data": {"x": 1,}, "requestId": "r",}', {"businessId": "a", "requestId": "r"}),
        (b'{"data": {"businessId": "inner"}, "businessId": "a" oops', {"businessId": "a"}),
        (b'{"data": [{"businessId": "inner"}', {}),
        (b'{"data": "\\"businessId\\": \\"quoted\\"", "requestId": "r",}', {"requestId": "r"}),
        (b'{"note": "businessId", "requestId": "r"', {"requestId": "r"}),
        (b'{"note": "requestId" : "r"', {}),
        (b'{"businessId": 7, "requestId": null,}', {}),
        (b'{"businessId": "a", "businessId": "b",}', {"businessId": "b"}),
        (b'\xff{"requestId": "r\\u00e9"', {"requestId": "r\u00e9"}),
        (b'{"other": "' + b"x" * READ_MAX_BYTES + b'", "requestId": "r",}', {}),
    ],
)
def test_members_are_read_as_far_as_the_text_is_one_of_json(record: bytes, members: dict[str, str]) -> None:
    assert read(record) == members


@given(
    members=st.dictionaries(
        st.sampled_from([*NAMES, "data", "other"]),
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
            max_leaves=8,
        ),
    ),
    is_ascii=st.booleans(),
)
def test_members_are_the_same_with_a_comma_too_many(members: dict[str, Any], *, is_ascii: bool) -> None:
    record = json.dumps(members, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")[:-1] + b",}"

    assert read(record) == {name: members[name] for name in NAMES if isinstance(members.get(name), str)}


REJECTIONS: list[tuple[Exception, DeadLetterReason, str]] = [
    (UnknownTypeError("type: what"), DeadLetterReason.UNKNOWN_TYPE, "type: what"),
    (InvalidRecordError("id", "text", "none"), DeadLetterReason.INVALID_MESSAGE, "id: expected text, got none"),
    (
        msgspec.ValidationError("Expected `str`, got `int` - at `$.id`"),
        DeadLetterReason.INVALID_MESSAGE,
        "id: expected",
    ),
    (msgspec.DecodeError("odd"), DeadLetterReason.INVALID_JSON, "record: expected one JSON object, got a text that"),
    (RecursionError("deep"), DeadLetterReason.INVALID_JSON, "record: expected one JSON object"),
]


@pytest.mark.parametrize(("error", "reason", "text"), REJECTIONS, ids=lambda one: type(one).__name__)
def test_rejection_is_of_the_kind_of_its_error(error: Exception, reason: DeadLetterReason, text: str) -> None:
    assert isinstance(error, DECODING_ERRORS)
    found, told = rejection_of(error)
    assert (found, told[: len(text)]) == (reason, text)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b'{"businessId": "b", "requestId": "r", "more": 1}', ["b", "r"]),
        ('{"businessId": "", "requestId": "%s"}' % ("ż" * 256), ["", "ż" * 256]),
        ('{"businessId": ["b"], "requestId": "%s"}' % ("ż" * 257), [None, None]),
        ('{"businessId": 1e999, "requestId": "r"}', [None, "r"]),
        ('{"businessId": 7, "requestId": null}', [None, None]),
        (b'{"requestId": "r", "businessId": "b"', ["b", "r"]),
        (b'{"businessId": "b", "more": "\xff"}', ["b", None]),
        (b'{"businessId": "\\ud800"}', ["\0", None]),
        (b"[" * 5000, [None, None]),
        (b"[]", [None, None]),
        (b"none", [None, None]),
    ],
)
def test_ids_of_an_invalid_record_are_read_as_far_as_they_are(record: bytes | str, expected: list[str | None]) -> None:
    assert peeked_texts(record.encode() if isinstance(record, str) else record, NAMES) == expected


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
        *(
            ({name: "a\0"}, f"{name}: expected text without U+0000 and lone surrogates, got one with them")
            for name in ("locationId", "resourceType", "resourceId", "requestId")
        ),
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
