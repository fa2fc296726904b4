from __future__ import annotations

from datetime import timedelta

import pytest

from simplu_worker.errors import InternalError, PermanentError, RetryableError
from simplu_worker.operations import tries
from simplu_worker.operations.tries import (
    Absent,
    Attempts,
    Failed,
    GiveUp,
    HoldFor,
    Locked,
    NotApplied,
    RetryAfter,
    RetryRules,
    next_try,
)
from simplu_worker.vocabulary import DeadLetterReason, HoldReason

RULES = RetryRules((1.0, 5.0, 15.5), timedelta())
LOCKED, DOWN, ABSENT = HoldReason.LOCKED, HoldReason.SHARD_UNAVAILABLE, HoldReason.UNREGISTERED
UNKNOWN, INTERNAL = DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.INTERNAL_ERROR
EXHAUSTED = DeadLetterReason.RETRIES_EXHAUSTED


@pytest.mark.parametrize(
    ("error", "attempts", "draw", "expected"),
    [
        (Failed("KeyError"), 0, 0.0, RetryAfter(1.0)),
        (Failed("KeyError"), 1, 1.0, RetryAfter(1.0)),
        (Failed("KeyError"), 2, 0.0, RetryAfter(5.0)),
        (Failed("KeyError"), 3, 0.0, RetryAfter(15.5)),
        (Failed("KeyError"), 4, 0.0, GiveUp(EXHAUSTED, "it failed 4 times: KeyError", 4)),
        (Failed("57014"), 1000, 0.0, GiveUp(EXHAUSTED, "it failed 1000 times: 57014", 1000)),
        (Failed("a defect", INTERNAL), 4, 0.0, GiveUp(INTERNAL, "it failed 4 times: a defect", 4)),
        (Failed("P0001", refuses_all=True), 3, 0.0, RetryAfter(15.5)),
        (Failed("P0001", refuses_all=True), 235, 0.0, RetryAfter(15.5)),
        (Failed("P0001", refuses_all=True), 236, 0.0, GiveUp(EXHAUSTED, "it failed 236 times: P0001", 236)),
        (Locked(), 1, 0.0, HoldFor(0.25, LOCKED)),
        (Locked(), 3, 1.0, HoldFor(2.0, LOCKED)),
        (Locked(HoldReason.MOVING), 500, 1.0, HoldFor(5.0, HoldReason.MOVING)),
        (RetryableError("down"), 1, 0.0, HoldFor(0.5, DOWN)),
        (RetryableError("down"), 3, 0.5, HoldFor(3.0, DOWN)),
        (InternalError("down"), 500, 1.0, HoldFor(60.0, DOWN)),
        (RetryableError("down", retry_after_s=20.0), 1, 0.0, HoldFor(20.0, DOWN)),
        (RetryableError("down", retry_after_s=9e9), 1, 0.0, HoldFor(60.0, DOWN)),
        (Absent(UNKNOWN, "no", 900.0), 2, 0.5, HoldFor(1.5, ABSENT)),
        (Absent(UNKNOWN, "no", 20.0), 20, 0.0, HoldFor(20.0, ABSENT)),
        (Absent(UNKNOWN, "no", 0.01), 20, 0.0, HoldFor(1.0, ABSENT)),
        (Absent(UNKNOWN, "no", 0.0), 1, 0.0, GiveUp(UNKNOWN, "no")),
        (PermanentError("expected another"), 1, 0.0, GiveUp(DeadLetterReason.INVALID_MESSAGE, "expected another")),
    ],
)
def test_next_try_is_that_of_the_table(
    error: NotApplied, attempts: int, draw: float, expected: RetryAfter | HoldFor | GiveUp
) -> None:
    assert next_try(error, attempts, rules=RULES, draw=draw) == expected


@pytest.mark.parametrize(
    ("attempts", "refuses_all", "is_given_up"), [(1, False, True), (3600, True, False), (3601, True, True)]
)
def test_operation_without_delays_is_given_up_at_its_first_failure(
    attempts: int, *, refuses_all: bool, is_given_up: bool
) -> None:
    following = next_try(Failed("a", refuses_all=refuses_all), attempts, rules=RetryRules((), timedelta()))
    assert isinstance(following, GiveUp) == is_given_up


def test_attempts_are_counted_in_a_row_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "COUNTS_MAX", 2)
    attempts = Attempts()
    assert [attempts.count(one) for one in "aabacba"] == [1, 2, 1, 3, 1, 1, 1]


def test_attempts_begin_anew_for_what_was_decided() -> None:
    attempts = Attempts()
    counts = [attempts.count(one) for one in "aab"]
    attempts.forget("a")
    attempts.forget("c")
    assert (counts, "a" in attempts, "b" in attempts) == ([1, 2, 1], False, True)
    assert (attempts.count("a"), attempts.count("b")) == (1, 2)
