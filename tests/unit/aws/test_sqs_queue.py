"""Parsing of messages as SQS writes them, also malformed ones and those in SNS's envelope."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(WHOLE["Attributes"])), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), JSON))
def test_message_is_read_or_passed_over_whatever_comes(change: dict[str, Any]) -> None:
    message = parse_message(WHOLE | change)
    ids = [(WHOLE | change)[name] for name in ("MessageId", "ReceiptHandle")]
    assert (message is not None) == all(isinstance(text, str) and text for text in ids)
    assert message is None or (message.receive_count >= 1 and message.try_count >= 1)


def test_origin_of_a_standard_queue_has_the_time_for_a_sequence_number() -> None:
    queue = Queue(None, "http://x/1/q")
    fifo = parse_message(WHOLE)
    standard = parse_message(WHOLE | {"Attributes": {"SentTimestamp": "1767225600123"}})
    assert fifo is not None
    assert standard is not None
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
    assert message is not None
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
