from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.fetch.pacing import (
    CALL_INTERVAL_S,
    REFUSED_PAUSE_S,
    RENEW_AFTER_S,
    RETRY_MAX_S,
    STABLE_S,
    SubscriptionSchedule,
)

NOW = 1000.0


def test_first_call_is_due_at_once_and_the_renewal_before_five_minutes() -> None:
    schedule = SubscriptionSchedule()
    assert schedule.call_at(is_subscribed=False) <= NOW
    schedule.note_accepted(NOW)
    assert schedule.call_at(is_subscribed=True) > NOW + RENEW_AFTER_S - 0.1
    assert schedule.call_at(is_subscribed=True) <= NOW + RENEW_AFTER_S
    assert RENEW_AFTER_S + CALL_INTERVAL_S < 300


def test_renewal_that_failed_is_tried_again_before_the_end() -> None:
    schedule = SubscriptionSchedule()
    schedule.note_accepted(NOW)
    schedule.note_failed(NOW + RENEW_AFTER_S, 1.0)
    assert schedule.call_at(is_subscribed=True) > NOW + RENEW_AFTER_S
    assert schedule.call_at(is_subscribed=True) <= NOW + RENEW_AFTER_S + 2.1


@pytest.mark.parametrize(("draw", "least_s", "most_s"), [(0.0, 1.5, 1.5), (1.0, 2.0, 2.0)])
def test_refused_call_waits_longer_each_time(draw: float, least_s: float, most_s: float) -> None:
    schedule = SubscriptionSchedule()
    schedule.note_failed(NOW, draw)
    assert schedule.call_at(is_subscribed=False) > NOW + least_s - 0.01
    assert schedule.call_at(is_subscribed=False) <= NOW + most_s
    for _ in range(20):
        schedule.note_failed(NOW, draw)
    assert schedule.call_at(is_subscribed=False) <= NOW + RETRY_MAX_S + 1
    assert schedule.call_at(is_subscribed=False) > NOW + RETRY_MAX_S / 2


def test_denied_call_waits_a_minute() -> None:
    schedule = SubscriptionSchedule()
    schedule.note_failed(NOW, 0.0, is_refused=True)
    assert schedule.call_at(is_subscribed=False) > NOW + REFUSED_PAUSE_S - 0.01
    assert schedule.call_at(is_subscribed=False) <= NOW + REFUSED_PAUSE_S


@pytest.mark.parametrize(
    ("lasted_s", "expected_s"), [(300.0, 0.0), (STABLE_S, 0.0), (STABLE_S - 1, 1.5), (1.0, CALL_INTERVAL_S - 1.0)]
)
def test_lost_subscription_is_replaced(lasted_s: float, expected_s: float) -> None:
    schedule = SubscriptionSchedule()
    schedule.note_accepted(NOW)
    schedule.note_lost(NOW + lasted_s, 0.0)
    assert max(0.0, schedule.call_at(is_subscribed=False) - NOW - lasted_s) == pytest.approx(expected_s)


@given(gaps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1))))
def test_no_two_calls_within_five_seconds_and_none_is_put_off_for_ever(gaps: list[tuple[float, float]]) -> None:
    schedule, now, accepted_at = SubscriptionSchedule(), NOW, NOW - 100
    for lasts_s, draw in gaps:
        call_at = schedule.call_at(is_subscribed=False)
        assert call_at <= now + RETRY_MAX_S + CALL_INTERVAL_S
        now = max(now, call_at)
        assert now - accepted_at > 5
        schedule.note_accepted(now)
        accepted_at, now = now, now + lasts_s
        schedule.note_lost(now, draw)


def test_failures_are_forgotten_after_a_subscription_that_lasted() -> None:
    schedule = SubscriptionSchedule()
    for _ in range(10):
        schedule.note_failed(NOW, 0.0)
    schedule.note_accepted(NOW)
    schedule.note_lost(NOW + STABLE_S, 0.0)
    schedule.note_failed(NOW + 100, 0.0)
    assert schedule.call_at(is_subscribed=False) <= NOW + 101.5
