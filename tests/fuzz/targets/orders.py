"""Messages of an order queue, in SNS's envelope or without: an operation or a dead letter."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import check_faults
from fuzz.target import Target
from fuzz.targets.records import check_operation, check_reason
from hypothesis import strategies as st

from simplu_worker.aws.sqs_queue import unwrap
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order
from simplu_worker.dead_letters.letter import encode_dead_letter, parse_dead_letter
from simplu_worker.operations.dead_letter import dead_letter_of
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import Source

NOW: Final = datetime(2026, 1, 31, 9, tzinfo=UTC)
LETTER_MAX_BYTES: Final = 262_144
ORIGIN: Final = Origin(Source.SQS, "orders.fifo", NOW, message_id="6f1b0c9a-0000-4000-8000-000000000001", group_id="g")
RULES: Final = OrderRules(1_048_576, ("clinic", "main"))
NEXT: Final = b"\xff\xfe"  # between the body and the attributes; never in UTF-8
ATTRIBUTES: Final = ("BusinessId", "LocationId", "MessageType", "deduplication")
DEDUPLICATION_ID: Final = re.compile(r"[!-~]{1,128}")  # SQS API reference, MessageDeduplicationId
USUAL: Final = {
    "type": "CREATE",
    "orderId": "order-1",
    "data": {"total": 12.5, "lines": [{"sku": "a"}]},
    "groupId": "g",
    "deduplicationId": "event-1",
    "businessId": "clinic",
    "locationId": "main",
}


def text_of(data: bytes) -> str:
    """Return a text for any bytes; what is not UTF-8 is a lone surrogate, as JSON of SQS may have."""
    return data.decode("utf-8", "surrogateescape")


def message_of(data: bytes) -> tuple[str, dict[str, str]]:
    body, *values = data.split(NEXT)
    attributes = {name: text_of(value) for name, value in zip(ATTRIBUTES, values, strict=False) if value}
    if not DEDUPLICATION_ID.fullmatch(attributes.get("deduplication", "")):
        attributes.pop("deduplication", None)
    return unwrap(text_of(body), attributes)


def check(data: bytes) -> None:
    body, attributes = message_of(data)
    own_id = attributes.pop("deduplication", None)
    decoded = decode_order(body, attributes, ORIGIN, RULES, deduplication_id=own_id)
    assert decoded == decode_order(body, attributes, ORIGIN, RULES, deduplication_id=own_id)
    if isinstance(decoded, Operation):
        check_operation(decoded)
        check_reason(None, body.encode("utf-8", "surrogatepass"))
    else:
        check_letter(decoded, body)
    check_faults()


def check_letter(rejected: RejectedRecord, body: str) -> None:
    assert len(rejected.error) < 1000
    record = body.encode("utf-8", "surrogatepass")
    check_reason(rejected, record)
    text = encode_dead_letter(dead_letter_of(rejected, record, failed_at=NOW), LETTER_MAX_BYTES)
    assert text.isascii()
    assert len(text) <= LETTER_MAX_BYTES
    assert parse_dead_letter(text).letter.reason is rejected.reason


def envelope(body: bytes) -> bytes:
    attributes = {"BusinessId": {"Type": "String", "Value": "clinic"}}
    whole = {"Type": "Notification", "Message": body.decode(errors="replace"), "MessageAttributes": attributes}
    return json.dumps(whole).encode()


EVENTS: Final = tuple(json.dumps(USUAL | {"type": kind}).encode() for kind in ("CREATE", "UPDATE", "DELETE"))
SEEDS: Final = (*EVENTS, envelope(EVENTS[0]), NEXT.join((EVENTS[1], b"clinic", b"main", b"", b"own-1")))
WORDS: Final = (
    *(json.dumps(name).encode() for name in USUAL),
    *(NEXT, b'"Notification"', b'"Message"', b"CREATE", b"UPDATE", b"DELETE", b"simplu:"),
)
INPUTS: Final = messages(USUAL) | messages(USUAL).map(envelope) | spliced(st.sampled_from(SEEDS), WORDS)
TARGET: Final = Target(check=check, seeds=SEEDS, words=WORDS, inputs=INPUTS)
