from __future__ import annotations

from datetime import timedelta

import pytest

from simplu_worker.errors import InternalError, PermanentError, RetryableError
from simplu_worker.operations.tries import (
    Absent,
    Failed,
    GiveUp,
    HoldUntil,
    Locked,
    NotApplied,
    RetryAt,
    RetryRules,
    next_try,
)
from simplu_worker.vocabulary import DeadLetterReason, HoldReason

RULES = RetryRules((1.0, 5.0, 15.5), timedelta(), (0.25, 10.0))
NOW = 1000.0
LOCKED, DOWN, ABSENT = HoldReason.LOCKED, HoldReason.SHARD_UNAVAILABLE, HoldReason.UNREGISTERED
UNKNOWN = DeadLetterReason.UNKNOWN_TENANT


@pytest.mark.parametrize(
    ("error", "attempts", "draw", "expected"),
    [
        (Failed("KeyError"), 0, 0.0, RetryAt(NOW + 1.0)),
        (Failed("KeyError"), 1, 1.0, RetryAt(NOW + 1.0)),
        (Failed("KeyError"), 2, 0.0, RetryAt(NOW + 5.0)),
        (Failed("KeyError"), 3, 0.0, RetryAt(NOW + 15.5)),
        (Failed("KeyError"), 4, 0.0, GiveUp(DeadLetterReason.RETRIES_EXHAUSTED, "it failed 4 times: KeyError", 4)),
        (Failed("57014"), 1000, 0.0, GiveUp(DeadLetterReason.RETRIES_EXHAUSTED, "it failed 1000 times: 57014", 1000)),
        (Locked(), 1, 0.0, HoldUntil(NOW + 0.125, LOCKED)),
        (Locked(), 3, 1.0, HoldUntil(NOW + 1.0, LOCKED)),
        (Locked(HoldReason.MOVING), 500, 1.0, HoldUntil(NOW + 10.0, HoldReason.MOVING)),
        (RetryableError("down"), 1, 0.0, HoldUntil(NOW + 0.5, DOWN)),
        (RetryableError("down"), 3, 0.5, HoldUntil(NOW + 3.0, DOWN)),
        (InternalError("down"), 500, 1.0, HoldUntil(NOW + 60.0, DOWN)),
        (RetryableError("down", retry_after_s=20.0), 1, 0.0, HoldUntil(NOW + 20.0, DOWN)),
        (RetryableError("down", retry_after_s=9e9), 1, 0.0, HoldUntil(NOW + 60.0, DOWN)),
        (Absent(UNKNOWN, "no", 900.0), 2, 0.5, HoldUntil(NOW + 1.5, ABSENT)),
        (Absent(UNKNOWN, "no", 20.0), 20, 0.0, HoldUntil(NOW + 20.0, ABSENT)),
        (Absent(UNKNOWN, "no", 0.01), 20, 0.0, HoldUntil(NOW + 1.0, ABSENT)),
        (Absent(UNKNOWN, "no", 0.0), 1, 0.0, GiveUp(UNKNOWN, "no")),
        (PermanentError("expected another"), 1, 0.0, GiveUp(DeadLetterReason.INVALID_MESSAGE, "expected another")),
    ],
)
def test_next_try_is_that_of_the_table(
    error: NotApplied, attempts: int, draw: float, expected: RetryAt | HoldUntil | GiveUp
) -> None:
    assert next_try(error, attempts, NOW, rules=RULES, draw=draw) == expected


def test_operation_without_delays_is_given_up_at_its_first_failure() -> None:
    assert isinstance(next_try(Failed("KeyError"), 1, NOW, rules=RetryRules((), timedelta())), GiveUp)
