from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queued_operations import queued_operation

from simplu_worker.consumers.sqs.control_messages import SOUND_MESSAGE, decode_control
from simplu_worker.consumers.sqs.order_messages import SOUND_EVENT, OrderRules, decode_order
from simplu_worker.errors import InternalError, PermanentError, RetryableError
from simplu_worker.operations import tries
from simplu_worker.operations.dead_letter import decode_or_reject
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation
from simplu_worker.operations.operation import (
    ABSENCE_MAX_AGE_S,
    ID_MAX,
    UNKNOWN_TENANT_MARGIN,
    Days,
    Operation,
    Origin,
    RejectedRecord,
    absence_max_age_s,
    is_id,
    is_overdue,
    is_storable,
    unknown_tenant_error,
)
from simplu_worker.operations.retention_rules import (
    DELETING_SHARE,
    SOURCE_MARGIN,
    deletion_pause_s,
    effective_retention,
)
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
from simplu_worker.shards.types import ProvisionRequest
from simplu_worker.vocabulary import DeadLetterReason, HoldReason, Source

TODAY = date(2026, 1, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("żó", True), ("a\0", False), ("a\ud800b", False), ("\udfff", False), ("\ud7ff\ue000", True)],
)
def test_text_is_storable_without_nul_and_surrogates(text: str, *, expected: bool) -> None:
    assert is_storable(text) is expected


@pytest.mark.parametrize(("text", "expected"), [("", False), ("x", True), ("x" * ID_MAX, True), ("x" * 129, False)])
def test_id_has_1_to_128_characters(text: str, *, expected: bool) -> None:
    assert is_id(text) is expected
    assert not is_id(text + "\0")


def test_operation_is_named_by_its_request_id_and_ids() -> None:
    operation = queued_operation().operation
    own, names = operation.request_id, (operation.business_id, operation.location_id)
    asked = [(own, None), (own, names), ("another", None), (own, ("another", names[1])), (own, (names[0], "another"))]
    assert [operation.is_named(*one) for one in asked] == [True, True, False, False, False]


@pytest.mark.parametrize(("days", "expected"), [((None, None), True), ((TODAY, None), False), ((None, TODAY), False)])
def test_days_are_open_without_any_bound(days: tuple[date | None, date | None], *, expected: bool) -> None:
    assert Days(*days).is_open is expected


NOW = datetime(2026, 3, 1, tzinfo=UTC)
WAIT = timedelta(minutes=15)
LATEST = NOW - WAIT - UNKNOWN_TENANT_MARGIN
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(("arrived_at", "expected"), [(LATEST, True), (LATEST - TICK, True), (LATEST + TICK, False)])
def test_operation_is_overdue_a_minute_after_the_wait(arrived_at: datetime, *, expected: bool) -> None:
    assert is_overdue(arrived_at, now=NOW, tenant_wait=WAIT) is expected


@pytest.mark.parametrize(
    ("arrivals", "expected"), [([], ABSENCE_MAX_AGE_S), ([NOW, LATEST + TICK], ABSENCE_MAX_AGE_S), ([NOW, LATEST], 0.0)]
)
def test_absence_is_looked_up_again_before_giving_up(arrivals: list[datetime], expected: float) -> None:
    assert absence_max_age_s(arrivals, now=NOW, tenant_wait=WAIT) == expected


def test_error_says_how_long_was_waited() -> None:
    assert unknown_tenant_error(WAIT) == (
        "its tenant was not registered within 960 s; register it and replay this dead letter"
    )


ORIGIN = Origin(Source.KINESIS, "operations", datetime(2025, 1, 31, tzinfo=UTC), "shard-0", "1")


def broken() -> None:
    raise ZeroDivisionError("the content of a record")


def test_record_is_rejected_when_its_decoder_raises() -> None:
    rejected = decode_or_reject(broken, ORIGIN, sound=lambda: None)

    assert isinstance(rejected, RejectedRecord)
    assert rejected.reason is DeadLetterReason.INTERNAL_ERROR
    assert "ZeroDivisionError" in rejected.error
    assert "content" not in rejected.error


def test_record_is_not_at_fault_when_a_sound_one_fails_too() -> None:
    with pytest.raises(ZeroDivisionError):
        decode_or_reject(broken, ORIGIN, sound=broken)


def test_lack_of_memory_says_nothing_of_a_record() -> None:
    def decode() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode_or_reject(decode, ORIGIN, sound=lambda: None)


def test_sound_records_are_operations_and_messages() -> None:
    assert isinstance(decode_operation(SOUND_RECORD, ORIGIN, 1000, 1), Operation)
    assert isinstance(decode_order(SOUND_EVENT, {}, ORIGIN, OrderRules(1000), deduplication_id="a"), Operation)
    assert isinstance(decode_control(SOUND_MESSAGE, {}, ORIGIN), ProvisionRequest)


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


DAY = timedelta(days=1)
DURATIONS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400))


@pytest.mark.parametrize(
    ("configured", "sources", "expected"),
    [
        (15 * DAY, [], 15 * DAY),
        (15 * DAY, [DAY, 14 * DAY], 15 * DAY),
        (15 * DAY, [DAY, 365 * DAY], 366 * DAY),
        (2 * DAY, [DAY, 4 * DAY], 5 * DAY),
        (2 * DAY, [None], None),
        (2 * DAY, [365 * DAY, None], None),
    ],
)
def test_effective_retention_is_the_longest_source_and_a_day(
    configured: timedelta, sources: list[timedelta | None], expected: timedelta | None
) -> None:
    assert effective_retention(configured, sources) == expected


@given(configured=DURATIONS, sources=st.lists(DURATIONS))
def test_effective_retention_covers_what_a_source_still_has(configured: timedelta, sources: list[timedelta]) -> None:
    effective = effective_retention(configured, sources)
    assert effective is not None
    assert all(effective >= bound for bound in (configured, *(source + SOURCE_MARGIN for source in sources)))


def test_rest_leaves_deleting_its_share_of_the_time() -> None:
    busy_s = 0.2
    assert busy_s / (busy_s + deletion_pause_s(busy_s)) == pytest.approx(DELETING_SHARE)
