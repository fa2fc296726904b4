"""The circuit breaker: what opens and closes it, and which caller may probe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.circuit_breaker import (
    FAILURES_MAX,
    PROBE_INTERVAL_S,
    SILENCE_MAX_S,
    BreakerDecision,
    BreakerState,
    CircuitBreaker,
)

NOW = 1000.0


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(FAILURES_MAX):
        breaker.record_failure(NOW, asked_at=NOW)
    return breaker


def test_breaker_admits_everybody_at_first() -> None:
    assert (CircuitBreaker().decide(NOW), repr(CircuitBreaker())) == (
        BreakerDecision.ADMIT,
        "CircuitBreaker(closed, failures=0)",
    )


@pytest.mark.parametrize(
    ("answered_s_ago", "asked_s_ago", "failure_count", "expected"),
    [
        (None, 0.0, 1, False),
        (None, 0.0, FAILURES_MAX - 1, False),
        (None, 0.0, FAILURES_MAX, True),
        (None, SILENCE_MAX_S - 0.1, 1, False),
        (None, SILENCE_MAX_S, 1, True),
        (0.0, SILENCE_MAX_S, 1, False),  # other requests got answers in between: the shard is slow
        (SILENCE_MAX_S - 0.1, 30.0, 1, False),
        (SILENCE_MAX_S, 30.0, 1, True),
        (3600.0, 0.0, 1, False),  # no request for an hour
        (0.0, 0.0, FAILURES_MAX, True),
    ],
)
def test_breaker_opens_after_failures_in_a_row_or_a_silence(
    answered_s_ago: float | None, asked_s_ago: float, failure_count: int, *, expected: bool
) -> None:
    breaker = CircuitBreaker()
    if answered_s_ago is not None:
        breaker.record_answer(NOW - answered_s_ago)

    came = [breaker.record_failure(NOW, asked_at=NOW - asked_s_ago) for _ in range(failure_count)]

    assert came == [False] * (failure_count - 1) + [expected]
    assert breaker.state is (BreakerState.OPEN if expected else BreakerState.CLOSED)


def test_breaker_counts_anew_after_an_answer() -> None:
    breaker = CircuitBreaker()
    for _ in range(10):
        for _ in range(FAILURES_MAX - 1):
            assert not breaker.record_failure(NOW, asked_at=NOW)
        breaker.record_answer(NOW)

    assert breaker.decide(NOW) is BreakerDecision.ADMIT


def test_breaker_lets_one_probe_when_it_was_open_for_a_while() -> None:
    breaker = opened()

    assert breaker.decide(NOW + PROBE_INTERVAL_S - 0.01) is BreakerDecision.REFUSE
    assert breaker.decide(NOW + PROBE_INTERVAL_S) is BreakerDecision.PROBE
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.decide(NOW + PROBE_INTERVAL_S) is BreakerDecision.REFUSE
    assert breaker.decide(NOW + 2 * PROBE_INTERVAL_S) is BreakerDecision.PROBE


@pytest.mark.parametrize(("failure_count", "asked_s_ago"), [(FAILURES_MAX, 0.0), (1, SILENCE_MAX_S)])
def test_breaker_opens_again_when_the_probe_fails(failure_count: int, asked_s_ago: float) -> None:
    breaker = CircuitBreaker()
    for _ in range(failure_count):
        breaker.record_failure(NOW, asked_at=NOW - asked_s_ago)
    later = NOW + PROBE_INTERVAL_S
    assert breaker.decide(later) is BreakerDecision.PROBE

    assert not breaker.record_failure(later, asked_at=later)

    assert (breaker.state, breaker.decide(later + 0.5)) == (BreakerState.OPEN, BreakerDecision.REFUSE)
    assert breaker.decide(later + PROBE_INTERVAL_S) is BreakerDecision.PROBE


@pytest.mark.parametrize("waited_s", [0.0, PROBE_INTERVAL_S])
def test_breaker_closes_at_any_answer(waited_s: float) -> None:
    breaker = opened()
    breaker.decide(NOW + waited_s)

    breaker.record_answer(NOW + waited_s)

    assert breaker.decide(NOW + waited_s) is BreakerDecision.ADMIT


@given(st.lists(st.tuples(st.sampled_from(["admit", "fail", "answer"]), st.floats(0, 3)), max_size=60))
def test_breaker_is_probed_within_an_interval_and_never_by_two_at_once(events: list[tuple[str, float]]) -> None:
    breaker, now, probed_at = CircuitBreaker(), NOW, float("-inf")
    for kind, pause_s in events:
        now += pause_s
        match kind:
            case "fail":
                breaker.record_failure(now, asked_at=now)
            case "answer":
                breaker.record_answer(now)
            case _:
                if breaker.decide(now) is BreakerDecision.PROBE:
                    assert now - probed_at >= PROBE_INTERVAL_S
                    probed_at = now
    assert breaker.decide(now + PROBE_INTERVAL_S) is not BreakerDecision.REFUSE
