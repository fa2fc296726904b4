"""Parsing of messages as SQS writes them, and those in SNS's envelope."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from simplu_worker.aws.sqs_queue import Message, Queue, parse_message, unwrap

WHOLE: dict[str, Any] = {
    "MessageId": "m",
    "ReceiptHandle": "h",
    "Body": "b",
    "Attributes": {
        "SentTimestamp": "1767225600123",
        "ApproximateReceiveCount": "3",
        "MessageGroupId": "g",
        "MessageDeduplicationId": "d",
        "SequenceNumber": "18800000000000000256",
    },
    "MessageAttributes": {"A": {"StringValue": "1", "DataType": "String"}},
}


def test_message_is_read_with_all_its_facts() -> None:
    assert parse_message(WHOLE) == Message(
        message_id="m",
        receipt_handle="h",
        body="b",
        attributes={"A": "1"},
        sent_at=datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC),
        receive_count=3,
        group_id="g",
        deduplication_id="d",
        sequence_number="18800000000000000256",
    )


def test_origin_of_a_standard_queue_has_the_time_for_a_sequence_number() -> None:
    queue = Queue(None, "http://x/1/q")
    fifo = parse_message(WHOLE)
    standard = parse_message(WHOLE | {"Attributes": {"SentTimestamp": "1767225600123"}})
    assert queue.origin_of(fifo).sequence_number == "18800000000000000256"
    assert queue.origin_of(standard).sequence_number == "1767225600123"


ENVELOPE = {
    "Type": "Notification",
    "MessageId": "n",
    "Message": '{"a": 1}',
    "MessageAttributes": {
        "A": {"Type": "String", "Value": "sns"},
        "B": {"Type": "String", "Value": "2"},
        "C": 3,
        "D": {"Value": 4},
    },
}


def test_envelope_of_sns_is_taken_off() -> None:
    assert unwrap(json.dumps(ENVELOPE), {"A": "own"}) == ('{"a": 1}', {"A": "own", "B": "2"})
    message = parse_message(WHOLE | {"Body": json.dumps(ENVELOPE)})
    assert (message.body, message.attributes) == ('{"a": 1}', {"A": "1", "B": "2"})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        '["Notification"]',
        '{"Type": "Notification"',
        '{"Type": "Notification"}',
        '{"Type": "Notification", "Message": {"a": 1}}',
        '{"Type": "SubscriptionConfirmation", "Message": "x", "Note": "Notification"}',
        '{"type": "Notification", "Message": "x"}',
        '"Notification"' + "[" * 100_000,
    ],
)
def test_what_is_no_envelope_stays_as_it_is(body: str) -> None:
    assert unwrap(body, {"A": "1"}) == (body, {"A": "1"})
