from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.verdicts import (
    MessageIds,
    RetryHeld,
    RetryRules,
    ToDeadLetter,
    Verdict,
    verdict_on_error,
    verdict_on_failure,
    verdict_on_rejected,
)
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

RULES = RetryRules((1.0, 5.0, 15.5), timedelta())
IDS = MessageIds("b", "l", "r", "x")


def verdict_on(error: RetryableError | PermanentError, one: Message, *, draw: float = 0.0) -> Verdict:
    return verdict_on_error(error, one, IDS, draw=draw)


@pytest.mark.parametrize(
    ("try_count", "retry_after_s", "draw", "expected"),
    [
        (1, None, 0.0, 0.5),
        (3, None, 0.5, 3.0),
        (7, None, 0.5, 45.0),
        (500, None, 0.0, 30.0),
        (1, 20.0, 0.0, 20.0),
        (1, 9e9, 0.0, 60.0),
    ],
)
def test_outage_holds_a_message_up_to_a_minute(
    try_count: int, retry_after_s: float | None, draw: float, expected: float
) -> None:
    outage = RetryableError("down", retry_after_s=retry_after_s)
    assert verdict_on(outage, message("m", receive_count=try_count), draw=draw) == RetryHeld(expected)


def test_outage_counts_receives_and_retries_of_held_messages() -> None:
    held = msgspec.structs.replace(message("m", receive_count=2), held_count=1)
    assert verdict_on(RetryableError("down"), held) == verdict_on(RetryableError("down"), message("m", receive_count=3))


@pytest.mark.parametrize(("failure_count", "expected"), [(0, 1.0), (1, 1.0), (2, 5.0), (3, 15.5)])
def test_failures_follow_the_configured_delays(failure_count: int, expected: float) -> None:
    assert verdict_on_failure("KeyError", failure_count, IDS, rules=RULES) == RetryHeld(expected)


@pytest.mark.parametrize("failure_count", [4, 5, 1000])
def test_failure_after_the_last_delay_is_a_dead_letter(failure_count: int) -> None:
    verdict = verdict_on_failure("KeyError", failure_count, IDS, rules=RULES)
    text = f"it failed {failure_count} times: KeyError"
    assert verdict == ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, text, IDS, attempts=failure_count)


def test_rejected_message_is_a_dead_letter_with_its_ids() -> None:
    rejected = RejectedRecord(
        reason=DeadLetterReason.INVALID_JSON,
        error="no JSON",
        origin=Origin(source=Source.SQS, name="orders", arrived_at=datetime(2026, 3, 1, tzinfo=UTC)),
        business_id="b",
        location_id="l",
        request_id="r",
        resource_id="x",
    )
    assert verdict_on_rejected(rejected) == ToDeadLetter(DeadLetterReason.INVALID_JSON, "no JSON", IDS)


def test_permanent_error_is_a_dead_letter_with_its_text() -> None:
    verdict = verdict_on(PermanentError("expected another"), message("m"))
    assert verdict == ToDeadLetter(DeadLetterReason.INVALID_MESSAGE, "expected another", IDS)


def test_operation_without_delays_is_given_up_at_its_first_failure() -> None:
    assert isinstance(verdict_on_failure("KeyError", 1, IDS, rules=RetryRules((), timedelta())), ToDeadLetter)
