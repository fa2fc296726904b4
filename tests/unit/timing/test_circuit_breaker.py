"""The circuit breaker: what opens and closes it, and which caller may probe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.timing.circuit_breaker import FAILURES_MAX, BreakerDecision, CircuitBreaker

NOW = 1000.0
REST_S, REST_MAX_S, SILENCE_MAX_S = 1.0, 4.0, 5.0
ADMIT, PROBE, REFUSE = BreakerDecision


def new_breaker() -> CircuitBreaker:
    return CircuitBreaker(rest_s=REST_S, rest_max_s=REST_MAX_S, silence_max_s=SILENCE_MAX_S)


def opened() -> CircuitBreaker:
    breaker = new_breaker()
    for _ in range(FAILURES_MAX):
        breaker.record_failure(NOW)
    return breaker


@pytest.mark.parametrize(
    ("answered_s_ago", "asked_s_ago", "failure_count", "expected"),
    [
        (None, None, 1, False),
        (None, None, FAILURES_MAX - 1, False),
        (None, None, FAILURES_MAX, True),
        (None, SILENCE_MAX_S - 0.1, 1, False),
        (None, SILENCE_MAX_S, 1, True),
        (0.0, SILENCE_MAX_S, 1, False),  # other calls got answers in between: the target is slow
        (SILENCE_MAX_S - 0.1, 30.0, 1, False),
        (SILENCE_MAX_S, 30.0, 1, True),
        (3600.0, 0.0, 1, False),  # no call for an hour
        (3600.0, None, 1, False),
        (0.0, 0.0, FAILURES_MAX, True),
    ],
)
def test_breaker_opens_after_failures_in_a_row_or_a_silence(
    answered_s_ago: float | None, asked_s_ago: float | None, failure_count: int, *, expected: bool
) -> None:
    breaker = new_breaker()
    if answered_s_ago is not None:
        breaker.record_answer(NOW - answered_s_ago)
    asked_at = None if asked_s_ago is None else NOW - asked_s_ago

    came = [breaker.record_failure(NOW, asked_at=asked_at) for _ in range(failure_count)]

    assert came == [False] * (failure_count - 1) + [expected]
    assert breaker.decide(NOW) is (REFUSE if expected else ADMIT)


def test_breaker_counts_anew_after_an_answer() -> None:
    breaker = new_breaker()
    for _ in range(10):
        for _ in range(FAILURES_MAX - 1):
            assert not breaker.record_failure(NOW)
        breaker.record_answer(NOW)
    assert breaker.decide(NOW) is ADMIT


def test_breaker_lets_one_probe_after_its_rest() -> None:
    breaker = opened()
    assert breaker.refuses_for_s(NOW + 0.25) == 0.75
    assert [breaker.decide(NOW + after_s) for after_s in (0.99, 1.0, 1.0, 4.99, 5.0)] == [
        REFUSE, PROBE, REFUSE, REFUSE, PROBE
    ]  # fmt: skip
    breaker.record_answer(NOW + 5)
    assert (breaker.decide(NOW + 5), breaker.refuses_for_s(NOW + 5)) == (ADMIT, 0.0)


def test_breaker_rests_longer_after_each_probe_that_fails() -> None:
    breaker, now, rests_s = opened(), NOW, []
    for _ in range(4):
        rests_s.append(breaker.refuses_for_s(now))
        now += rests_s[-1]
        assert breaker.decide(now) is PROBE
        assert not breaker.record_failure(now)
        assert not breaker.record_failure(now)  # of a call from before
    assert rests_s == [1.0, 2.0, 4.0, 4.0]
    breaker.record_answer(now)
    for _ in range(FAILURES_MAX):
        breaker.record_failure(now, draw=0.0)
    assert breaker.refuses_for_s(now) == 0.5


def test_breaker_rests_for_as_long_as_the_target_wishes() -> None:
    breaker = new_breaker()
    assert breaker.record_failure(NOW, at_least_s=17.0)
    assert breaker.refuses_for_s(NOW) == 17.0
    assert not breaker.record_failure(NOW, at_least_s=30.0)
    assert breaker.refuses_for_s(NOW) == 30.0


@given(st.lists(st.tuples(st.sampled_from(["admit", "fail", "answer"]), st.floats(0, 3)), max_size=60))
def test_breaker_is_probed_in_time_and_never_by_two_at_once(events: list[tuple[str, float]]) -> None:
    breaker = CircuitBreaker(rest_s=REST_S, rest_max_s=REST_S)
    now, probed_at = NOW, float("-inf")
    for kind, pause_s in events:
        now += pause_s
        match kind:
            case "fail":
                breaker.record_failure(now, asked_at=now)
            case "answer":
                breaker.record_answer(now)
            case _:
                if breaker.decide(now) is PROBE:
                    assert now - probed_at >= REST_S
                    probed_at = now
    assert breaker.decide(now + REST_S) is not REFUSE
