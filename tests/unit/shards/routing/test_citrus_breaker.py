"""When a silent Citrus is asked, and when not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.routing.citrus_breaker import (
    FAILURES_MAX,
    OPEN_BASE_S,
    OPEN_MAX_S,
    CitrusBreaker,
    CitrusState,
)


def begun(breaker: CitrusBreaker, now: float) -> int:
    """Return a ticket that must be there."""
    ticket = breaker.begin_call(now)
    assert ticket is not None
    return ticket


def opened(now: float = 0.0) -> CitrusBreaker:
    """Return a breaker that opened at *now*, for half a second."""
    breaker = CitrusBreaker()
    for _ in range(FAILURES_MAX):
        breaker.record_failure(begun(breaker, now), now, draw=1.0)
    return breaker


def test_breaker_opens_after_some_failures_in_a_row() -> None:
    """One good answer in between, and it is counted from the beginning."""
    breaker = CitrusBreaker()
    told = [breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0) for _ in range(FAILURES_MAX - 1)]
    breaker.record_success(begun(breaker, 0.0))
    told += [breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0) for _ in range(FAILURES_MAX)]

    assert told == [False] * (2 * FAILURES_MAX - 2) + [True]
    assert breaker.state is CitrusState.OPEN
    assert breaker.begin_call(0.0) is None


def test_breaker_lets_one_call_try_when_the_rest_is_over() -> None:
    """Nobody else may until that one has its answer."""
    breaker = opened()
    assert breaker.begin_call(OPEN_BASE_S - 0.001) is None
    trying = begun(breaker, OPEN_BASE_S)

    assert (breaker.state, breaker.begin_call(100.0)) == (CitrusState.HALF_OPEN, None)
    breaker.record_success(trying)
    assert breaker.state is CitrusState.CLOSED
    assert breaker.begin_call(OPEN_BASE_S) is not None
    assert repr(breaker) == "CitrusBreaker(closed, failures=0, openings=0)"


def test_breaker_rests_longer_each_time_a_try_fails() -> None:
    """Up to a few seconds, so that it is soon noticed when Citrus is back."""
    breaker = opened()
    now, rests = 0.0, [breaker.open_for_s(0.0)]
    for _ in range(6):
        now += rests[-1]
        breaker.record_failure(begun(breaker, now), now, draw=1.0)
        rests.append(breaker.open_for_s(now))

    assert rests == pytest.approx([0.5, 1.0, 2.0, 4.0, OPEN_MAX_S, OPEN_MAX_S, OPEN_MAX_S])


def test_breaker_counts_calls_that_fail_together_once() -> None:
    """What was on its way when it opened makes the rest no longer, and ends none."""
    breaker = CitrusBreaker()
    tickets = [begun(breaker, 0.0) for _ in range(50)]
    for ticket in tickets[:-1]:
        breaker.record_failure(ticket, 0.0, draw=1.0)
    breaker.record_success(tickets[-1])

    assert breaker.open_for_s(0.0) == OPEN_BASE_S
    assert breaker.state is CitrusState.OPEN


def test_breaker_rests_for_as_long_as_citrus_wishes() -> None:
    """A `Retry-After` is for everybody, at the first time it is said."""
    breaker = CitrusBreaker()
    assert breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0, at_least_s=17.0)
    assert breaker.open_for_s(0.0) == 17.0
    assert breaker.open_for_s(20.0) == 0.0


def test_breaker_lets_another_try_when_one_gave_up() -> None:
    """A call that was cancelled says nothing."""
    breaker = opened()
    breaker.cancel_call(begun(breaker, 1.0))
    assert breaker.state is CitrusState.OPEN
    assert breaker.begin_call(1.0) is not None


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "fail", "leave"]), st.floats(0, 3), st.floats(0, 1, exclude_max=True)))
)
def test_breaker_never_keeps_anybody_waiting_for_ever(steps: list[tuple[str, float, float]]) -> None:
    """Whatever came of earlier calls, within the longest rest one may be made; and it is one while it is not closed."""
    breaker, now = CitrusBreaker(), 0.0
    for what, passes_s, draw in steps:
        now += passes_s
        ticket = breaker.begin_call(now)
        if ticket is None:
            assert 0 < breaker.open_for_s(now) <= OPEN_MAX_S
            continue
        assert breaker.state is CitrusState.CLOSED or breaker.begin_call(now) is None
        if what == "ok":
            breaker.record_success(ticket)
        elif what == "fail":
            breaker.record_failure(ticket, now, draw=draw)
        else:
            breaker.cancel_call(ticket)
    assert breaker.begin_call(now + OPEN_MAX_S) is not None


def test_breaker_tells_for_how_long_it_is_open() -> None:
    """Nothing while it is closed, or when the time is over."""
    breaker = opened(100.0)
    assert [breaker.open_for_s(now) for now in (100.0, 100.0 + OPEN_BASE_S, 200.0)] == [OPEN_BASE_S, 0.0, 0.0]
    assert CitrusBreaker().open_for_s(0.0) == 0.0


def test_call_of_an_earlier_state_does_not_end_the_trial_when_it_is_cancelled() -> None:
    """Only the trial itself does."""
    breaker = CitrusBreaker()
    early = begun(breaker, 0.0)
    for _ in range(FAILURES_MAX):
        breaker.record_failure(begun(breaker, 0.0), 0.0, draw=1.0)
    trial = begun(breaker, 10.0)
    breaker.cancel_call(early)
    assert breaker.begin_call(10.0) is None
    breaker.cancel_call(trial)
    assert breaker.begin_call(10.0) is not None
