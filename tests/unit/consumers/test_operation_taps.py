from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.operation_taps import (
    CONTENT_MAX_LENGTH,
    EVENTS_MAX,
    KEPT_MAX_BYTES,
    OperationTaps,
    TapFilter,
    count_outcomes,
)
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.tries import GiveUp
from simplu_worker.vocabulary import DeadLetterReason, Failure

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
APPLIED = Outcome(Disposition.APPLIED)


def operation(**more: Any) -> Operation:
    return msgspec.structs.replace(queued_operation().operation, **more)


def taken(taps: OperationTaps, chosen: TapFilter, *decided: tuple[Operation, Outcome]) -> list[dict[str, Any]]:
    tap = taps.add(chosen)
    taps.publish([one for one, _ in decided], [outcome for _, outcome in decided], NOW)
    taps.remove(tap)
    return [json.loads(event) for event in tap.take()]


def test_event_has_the_outcome_and_no_content() -> None:
    one = operation(data=msgspec.Raw('{"secret": 1}'))
    outcomes = [
        APPLIED,
        Outcome(Disposition.APPLIED, failure=Failure.NOT_FOUND),
        Outcome(Disposition.DUPLICATE),
        Outcome(Disposition.HOLD),
        Outcome(Disposition.FAILING, error="x"),
        Outcome(Disposition.DEAD_LETTER, reason=DeadLetterReason.TOO_LARGE),
    ]
    events = taken(OperationTaps(), TapFilter(), *((one, outcome) for outcome in outcomes))
    assert [event["outcome"] for event in events] == ["succeeded", "not_found", "duplicate"]
    assert "secret" not in str(events)
    assert events[0]["requestId"] == one.request_id
    assert events[0]["at"] == "2026-11-23T12:00:00Z"


def test_content_is_shown_where_it_is_asked_for_and_cut() -> None:
    (event,) = taken(OperationTaps(), TapFilter(shows_content=True), (operation(data=msgspec.Raw('{"a": 1}')), APPLIED))
    assert event["content"] == '{"a": 1}'
    (event,) = taken(
        OperationTaps(), TapFilter(shows_content=True), (operation(data=msgspec.Raw("x" * 10**6)), APPLIED)
    )
    assert len(event["content"]) == CONTENT_MAX_LENGTH


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (TapFilter(), True),
        (TapFilter(business_id="b", location_id="l"), True),
        (TapFilter(business_id="b", location_id="m"), False),
        (TapFilter(resource_type="patient"), True),
        (TapFilter(resource_type="order"), False),
        (TapFilter(kind="create"), True),
        (TapFilter(kind="read"), False),
        (TapFilter(outcome="succeeded"), True),
        (TapFilter(outcome="not_found"), False),
    ],
)
def test_every_criterion_is_met(chosen: TapFilter, *, expected: bool) -> None:
    one = operation(business_id="b", location_id="l", resource_type="patient", kind="create")
    assert bool(taken(OperationTaps(), chosen, (one, APPLIED))) is expected


def test_dead_letter_is_an_event_with_its_reason() -> None:
    entry = queued_operation()
    taps = OperationTaps()
    tap = taps.add(TapFilter(outcome="dead_letter"))
    letter: DeadLetter = entry.dead_letter(GiveUp(DeadLetterReason.UNKNOWN_TENANT, "not registered"), failed_at=NOW)
    taps.publish_letters([letter])
    (event,) = map(json.loads, tap.take())
    assert (event["outcome"], event["reason"]) == ("dead_letter", "unknown_tenant")
    assert event["requestId"] == entry.operation.request_id


@pytest.mark.parametrize(("size", "kept_count"), [(10, EVENTS_MAX), (KEPT_MAX_BYTES // 8, 8)])
def test_events_beyond_the_bound_are_dropped_and_counted(size: int, kept_count: int) -> None:
    tap = OperationTaps().add(TapFilter())
    for _ in range(kept_count + 5):
        tap.put(b"x" * size)
    assert (len(tap.take()), tap.dropped_count) == (kept_count, 5)
    tap.put(b"x")
    assert (tap.take(), tap.dropped_count) == ([b"x"], 5)


def test_without_a_tap_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OperationTaps, "publish", None)
    count_outcomes([operation()], [APPLIED], now=NOW)
