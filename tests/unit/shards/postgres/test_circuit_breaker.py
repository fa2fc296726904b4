"""Whether a shard may be asked: what opens the way to it, what closes it, and who may probe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.circuit_breaker import (
    FAILURES_MAX,
    PROBE_INTERVAL_S,
    SILENCE_MAX_S,
    Admission,
    Breaker,
    BreakerState,
)

NOW = 1000.0


def opened() -> Breaker:
    """Return one that opened just now."""
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        breaker.failed(NOW, asked_at=NOW)
    return breaker


def test_breaker_admits_everybody_at_first() -> None:
    """Nothing is known of a shard that nobody has asked."""
    assert (Breaker().admit(NOW), repr(Breaker())) == (Admission.ADMITTED, "Breaker(closed, failures=0)")


@pytest.mark.parametrize(
    ("answered_s_ago", "asked_s_ago", "failure_count", "expected"),
    [
        (None, 0.0, 1, False),
        (None, 0.0, FAILURES_MAX - 1, False),
        (None, 0.0, FAILURES_MAX, True),
        (None, SILENCE_MAX_S - 0.1, 1, False),
        (None, SILENCE_MAX_S, 1, True),
        (0.0, SILENCE_MAX_S, 1, False),  # others got answers meanwhile: it is slow
        (SILENCE_MAX_S - 0.1, 30.0, 1, False),
        (SILENCE_MAX_S, 30.0, 1, True),
        (3600.0, 0.0, 1, False),  # nobody has asked for an hour
        (0.0, 0.0, FAILURES_MAX, True),
    ],
)
def test_breaker_opens_after_failures_in_a_row_or_a_silence(
    answered_s_ago: float | None, asked_s_ago: float, failure_count: int, *, expected: bool
) -> None:
    """A silence is one only while somebody waits for an answer, and nobody gets one."""
    breaker = Breaker()
    if answered_s_ago is not None:
        breaker.answered(NOW - answered_s_ago)

    came = [breaker.failed(NOW, asked_at=NOW - asked_s_ago) for _ in range(failure_count)]

    assert came == [False] * (failure_count - 1) + [expected]
    assert breaker.state is (BreakerState.OPEN if expected else BreakerState.CLOSED)


def test_breaker_counts_anew_after_an_answer() -> None:
    """Failures that are not in a row say nothing."""
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES_MAX - 1):
            assert not breaker.failed(NOW, asked_at=NOW)
        breaker.answered(NOW)

    assert breaker.admit(NOW) is Admission.ADMITTED


def test_breaker_lets_one_probe_when_it_was_open_for_a_while() -> None:
    """The others are refused, until it is known what came of it; one that says nothing is followed by another."""
    breaker = opened()

    assert breaker.admit(NOW + PROBE_INTERVAL_S - 0.01) is Admission.REFUSED
    assert breaker.admit(NOW + PROBE_INTERVAL_S) is Admission.PROBE
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit(NOW + PROBE_INTERVAL_S) is Admission.REFUSED
    assert breaker.admit(NOW + 2 * PROBE_INTERVAL_S) is Admission.PROBE


def test_breaker_opens_again_when_the_probe_fails() -> None:
    """At once, and without telling that it opened: it never was closed."""
    breaker = opened()
    later = NOW + PROBE_INTERVAL_S
    breaker.admit(later)

    assert not breaker.failed(later, asked_at=later)

    assert (breaker.state, breaker.admit(later + 0.5)) == (BreakerState.OPEN, Admission.REFUSED)
    assert breaker.admit(later + PROBE_INTERVAL_S) is Admission.PROBE


@pytest.mark.parametrize("waited_s", [0.0, PROBE_INTERVAL_S])
def test_breaker_closes_at_any_answer(waited_s: float) -> None:
    """Whether it came to a probe or to one who has waited since before."""
    breaker = opened()
    breaker.admit(NOW + waited_s)

    breaker.answered(NOW + waited_s)

    assert breaker.admit(NOW + waited_s) is Admission.ADMITTED


@given(st.lists(st.tuples(st.sampled_from(["admit", "fail", "answer"]), st.floats(0, 3)), max_size=60))
def test_breaker_is_probed_within_an_interval_and_never_by_two_at_once(events: list[tuple[str, float]]) -> None:
    """However asked: there is at most one probe an interval, and always one once an interval has passed."""
    breaker, now, probed_at = Breaker(), NOW, float("-inf")
    for kind, pause_s in events:
        now += pause_s
        match kind:
            case "fail":
                breaker.failed(now, asked_at=now)
            case "answer":
                breaker.answered(now)
            case _:
                if breaker.admit(now) is Admission.PROBE:
                    assert now - probed_at >= PROBE_INTERVAL_S
                    probed_at = now
    assert breaker.admit(now + PROBE_INTERVAL_S) is not Admission.REFUSED
