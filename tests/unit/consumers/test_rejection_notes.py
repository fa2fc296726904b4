from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import msgspec
import pytest

from simplu_worker.consumers.rejection_notes import ERROR_MAX, rejections_of
from simplu_worker.operations.dead_letter import BadParts, DeadLetter
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.shards.types import Rejection
from simplu_worker.vocabulary import DeadLetterReason, Source

AT = datetime(2026, 3, 2, tzinfo=UTC)
OF_STREAM = Origin(Source.KINESIS, "operations", AT, stream_shard_id="shardId-0", sequence_number="7")
OF_QUEUE = Origin(Source.SQS, "orders.fifo", AT, message_id="m-1")
LETTER = DeadLetter(
    reason=DeadLetterReason.INVALID_MESSAGE,
    error="data: expected an object",
    origin=OF_STREAM,
    failed_at=AT,
    attempts=1,
    record=b"{}",
    request_id="r-1",
    business_id="clinic",
    location_id="main",
)
NOTE = Rejection("clinic-main", "clinic", "r-1", "invalid_message", "data: expected an object", OF_STREAM)
NOTE_OF_MESSAGE = msgspec.structs.replace(NOTE, origin=OF_QUEUE)
NOTE_OF_CONTROL = msgspec.structs.replace(NOTE_OF_MESSAGE, request_id="simplu:control:clinic/main")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, [NOTE]),
        ({"origin": OF_QUEUE}, [NOTE_OF_MESSAGE]),
        ({"request_id": None}, []),
        ({"business_id": None}, [msgspec.structs.replace(NOTE, tenant_id="", business_id="")]),
        ({"location_id": None}, [msgspec.structs.replace(NOTE, tenant_id="", business_id="")]),
        ({"location_id": None, "request_id": None}, []),
        (
            {"origin": OF_QUEUE, "location_id": None},
            [msgspec.structs.replace(NOTE_OF_MESSAGE, tenant_id="", business_id="", request_id="m-1")],
        ),
        ({"request_id": "\0"}, []),
        ({"business_id": "\ud800"}, []),
        # Nothing with ids so long is ever applied, and an index has no room for them: all notes beside it would fail.
        (dict.fromkeys(("business_id", "location_id", "request_id"), "\U00020000" * 256), []),
        ({"error": "x" * 3000}, [msgspec.structs.replace(NOTE, error="x" * ERROR_MAX)]),
        ({"error": "\0"}, [msgspec.structs.replace(NOTE, error="invalid_message")]),
        ({"reason": DeadLetterReason.RETRIES_EXHAUSTED}, []),
        ({"reason": DeadLetterReason.REQUEST_ID_REUSED}, []),
        ({"reason": DeadLetterReason.UNKNOWN_TENANT}, [msgspec.structs.replace(NOTE, reason="unknown_tenant")]),
        # Control messages have no request id, and no row in the log.
        ({"origin": OF_QUEUE, "request_id": None}, [NOTE_OF_CONTROL]),
        (
            {"origin": OF_QUEUE, "request_id": None, "reason": DeadLetterReason.RETRIES_EXHAUSTED},
            [msgspec.structs.replace(NOTE_OF_CONTROL, reason="retries_exhausted")],
        ),
        (
            {"origin": OF_QUEUE, "request_id": None, "business_id": None},
            [msgspec.structs.replace(NOTE_OF_CONTROL, tenant_id="", business_id="", request_id="m-1")],
        ),
    ],
)
def test_letter_is_noted_if_its_request_can_be_named(members: dict[str, object], expected: list[Rejection]) -> None:
    assert rejections_of([msgspec.structs.replace(LETTER, **members)]) == expected


def test_parts_of_a_letter_are_noted_each_for_its_own_tenant() -> None:
    first = RejectedRecord(DeadLetterReason.INVALID_JSON, "no JSON", OF_STREAM)
    parts = (
        first,
        msgspec.structs.replace(first, request_id="a", business_id="clinic", location_id="main"),
        msgspec.structs.replace(first, request_id="b", business_id="hotel", location_id="sea"),
    )
    bad = BadParts(part_count=4, bad_count=3, reasons=Counter(invalid_json=3), first_parts=parts)
    letter = msgspec.structs.replace(LETTER, request_id=None, parts=bad)

    assert [(one.tenant_id, one.request_id, one.error) for one in rejections_of([letter])] == [
        ("clinic-main", "a", "no JSON"),
        ("hotel-sea", "b", "no JSON"),
    ]
