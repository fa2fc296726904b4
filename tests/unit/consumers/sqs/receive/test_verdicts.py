from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from support.aws.sqs_messages import message

from simplu_worker.consumers.sqs.receive.verdicts import (
    MessageIds,
    RetryHeld,
    ReturnToQueue,
    ToDeadLetter,
    message_backoff_s,
    verdict_on,
    verdict_on_rejected,
    verdicts_after_defect,
)
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Origin, RejectedRecord
from simplu_worker.operations.tries import Failed, RetryRules
from simplu_worker.vocabulary import DeadLetterReason, Source

RULES = RetryRules((1.0, 5.0), timedelta())
IDS = MessageIds("b", "l", "r", "x")


def test_verdict_is_the_next_try_of_the_operation() -> None:
    assert verdict_on(Failed("KeyError"), 2, IDS, rules=RULES) == RetryHeld(5.0)
    assert verdict_on(RetryableError("down"), 3, IDS, rules=RULES, draw=0.5) == RetryHeld(3.0)
    text = "it failed 3 times: KeyError"
    given_up = ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, text, IDS, attempts=3)
    assert verdict_on(Failed("KeyError"), 3, IDS, rules=RULES) == given_up


def test_back_off_counts_receives_and_retries_of_held_messages() -> None:
    held = msgspec.structs.replace(message("m", receive_count=2), held_count=1)
    assert message_backoff_s(held, draw=0.0) == message_backoff_s(message("m", receive_count=3), draw=0.0) == 2.0


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


def test_call_comes_again_after_a_defect_each_group_behind_its_first() -> None:
    call = [message("a", group="g", receive_count=2), message("b", group="g"), message("c", group="h")]
    first, other = RetryHeld(2.0), RetryHeld(1.0)
    assert verdicts_after_defect(call, is_fifo=True, draw=1.0) == [first, ReturnToQueue(0), other]
    assert verdicts_after_defect(call, is_fifo=False, draw=1.0) == [first, other, other]
    assert verdicts_after_defect([message("a"), message("b")], is_fifo=True, draw=1.0) == [other, other]
