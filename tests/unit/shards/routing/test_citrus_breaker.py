"""When a silent Citrus is asked, and when not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.routing.citrus_breaker import (
    FAILURES_MAX,
    OPEN_BASE_S,
    OPEN_MAX_S,
    SUBJECTS_MAX,
    CitrusBreaker,
    CitrusState,
)


def begun(breaker: CitrusBreaker, now: float) -> int:
    ticket = breaker.begin_call(now)
    assert ticket is not None
    return ticket


def opened(now: float = 0.0) -> CitrusBreaker:
    breaker = CitrusBreaker()
    for _ in range(FAILURES_MAX):
        breaker.record_failure(begun(breaker, now), now, draw=1.0)
    return breaker


def test_breaker_opens_after_some_failures_in_a_row() -> None:
    breaker = CitrusBreaker()
    told = [breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0) for _ in range(FAILURES_MAX - 1)]
    breaker.record_success(begun(breaker, 0.0))
    told += [breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0) for _ in range(FAILURES_MAX)]

    assert told == [False] * (2 * FAILURES_MAX - 2) + [True]
    assert breaker.state is CitrusState.OPEN
    assert breaker.begin_call(0.0) is None


def test_breaker_lets_one_call_try_when_the_rest_is_over() -> None:
    breaker = opened()
    assert breaker.begin_call(OPEN_BASE_S - 0.001) is None
    trying = begun(breaker, OPEN_BASE_S)

    assert (breaker.state, breaker.begin_call(100.0)) == (CitrusState.HALF_OPEN, None)
    breaker.record_success(trying)
    assert breaker.state is CitrusState.CLOSED
    assert breaker.begin_call(OPEN_BASE_S) is not None
    assert repr(breaker) == "CitrusBreaker(closed, failures=0, openings=0)"


def test_breaker_rests_longer_each_time_a_try_fails() -> None:
    breaker = opened()
    now, rests = 0.0, [breaker.open_for_s(0.0)]
    for _ in range(6):
        now += rests[-1]
        breaker.record_failure(begun(breaker, now), now, draw=1.0)
        rests.append(breaker.open_for_s(now))

    assert rests == pytest.approx([0.5, 1.0, 2.0, 4.0, OPEN_MAX_S, OPEN_MAX_S, OPEN_MAX_S])


def test_breaker_counts_calls_that_fail_together_once() -> None:
    breaker = CitrusBreaker()
    tickets = [begun(breaker, 0.0) for _ in range(50)]
    for ticket in tickets[:-1]:
        breaker.record_failure(ticket, 0.0, draw=1.0)
    breaker.record_success(tickets[-1])

    assert breaker.open_for_s(0.0) == OPEN_BASE_S
    assert breaker.state is CitrusState.OPEN


def test_breaker_rests_for_as_long_as_citrus_wishes() -> None:
    breaker = CitrusBreaker()
    assert breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0, at_least_s=17.0)
    assert breaker.open_for_s(0.0) == 17.0
    assert breaker.open_for_s(20.0) == 0.0


def test_breaker_lets_another_try_when_one_gave_up() -> None:
    breaker = opened()
    breaker.cancel_call(begun(breaker, 1.0))
    assert breaker.state is CitrusState.OPEN
    assert breaker.begin_call(1.0) is not None


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "fail", "leave"]), st.floats(0, 3), st.floats(0, 1, exclude_max=True)))
)
def test_breaker_never_keeps_anybody_waiting_for_ever(steps: list[tuple[str, float, float]]) -> None:
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
    breaker = opened(100.0)
    assert [breaker.open_for_s(now) for now in (100.0, 100.0 + OPEN_BASE_S, 200.0)] == [OPEN_BASE_S, 0.0, 0.0]
    assert CitrusBreaker().open_for_s(0.0) == 0.0


def test_call_of_an_earlier_state_does_not_end_the_trial_when_it_is_cancelled() -> None:
    breaker = CitrusBreaker()
    early = begun(breaker, 0.0)
    for _ in range(FAILURES_MAX):
        breaker.record_failure(begun(breaker, 0.0), 0.0, draw=1.0)
    trial = begun(breaker, 10.0)
    breaker.cancel_call(early)
    assert breaker.begin_call(10.0) is None
    breaker.cancel_call(trial)
    assert breaker.begin_call(10.0) is not None


def test_trial_decides_even_when_failures_were_few() -> None:
    breaker = CitrusBreaker()
    breaker.record_failure(begun(breaker, 0.0), 0.0, draw=0.0, at_least_s=1.0)
    assert breaker.record_failure(begun(breaker, 1.0), 1.0, draw=1.0) is True
    assert breaker.state is CitrusState.OPEN


def test_call_of_an_earlier_state_opens_nothing_when_it_fails() -> None:
    breaker = CitrusBreaker()
    early = begun(breaker, 0.0)
    for _ in range(FAILURES_MAX):
        breaker.record_failure(begun(breaker, 0.0), 0.0, draw=1.0)
    of_open_breaker = breaker.record_failure(early, 0.0, draw=1.0)
    trial = begun(breaker, 10.0)
    of_half_open_breaker = breaker.record_failure(early, 10.0, draw=1.0)
    breaker.record_success(trial)
    of_closed_breaker = [breaker.record_failure(ticket, 10.0, draw=1.0) for ticket in (early, trial) for _ in range(3)]

    assert [of_open_breaker, of_half_open_breaker, *of_closed_breaker] == [False] * 8
    assert repr(breaker) == "CitrusBreaker(closed, failures=0, openings=0)"


def test_calls_that_succeed_together_all_count_while_the_breaker_is_closed() -> None:
    breaker = CitrusBreaker()
    tickets = [begun(breaker, 0.0) for _ in range(FAILURES_MAX + 1)]
    breaker.record_success(tickets[0])
    opened_by = [breaker.record_failure(ticket, 0.0, draw=1.0) for ticket in tickets[1:]]
    assert opened_by == [False, False, True]


def test_breaker_is_open_again_and_not_half_open_after_it_closed_once() -> None:
    breaker = opened()
    breaker.record_success(begun(breaker, 1.0))
    reports = [breaker.record_failure(begun(breaker, 1.0), 1.0, draw=1.0) for _ in range(FAILURES_MAX)]
    assert (reports, breaker.state) == ([False, False, True], CitrusState.OPEN)
    assert breaker.begin_call(1.0 + OPEN_BASE_S) is not None


def test_no_two_states_have_the_same_ticket() -> None:
    breaker, now, tickets = CitrusBreaker(), 0.0, []
    for is_last_trial_good in (False, True, False, True):
        while (ticket := breaker.begin_call(now)) is not None and breaker.state is CitrusState.CLOSED:
            tickets.append(ticket)
            breaker.record_failure(ticket, now, draw=1.0)
        now += OPEN_MAX_S
        trial = begun(breaker, now) if ticket is None else ticket
        assert trial not in tickets
        tickets.append(trial)
        if is_last_trial_good:
            breaker.record_success(trial)
        else:
            breaker.record_failure(trial, now, draw=1.0)
    assert tickets == sorted(tickets)


def failed(breaker: CitrusBreaker, subject: str, now: float = 0.0) -> bool:
    return breaker.record_failure(begun(breaker, now), now, draw=1.0, subject=subject)


def test_failures_of_one_subject_count_once_until_it_has_an_answer() -> None:
    breaker = CitrusBreaker()
    assert not any(failed(breaker, "a") for _ in range(10 * FAILURES_MAX))
    assert not failed(breaker, "b")
    breaker.record_success(begun(breaker, 0.0), "a")
    assert [failed(breaker, subject) for subject in ("b", "a", "c", "a")] == [False] * 4
    assert failed(breaker, "d")


def test_failure_of_a_known_subject_leaves_the_trial_to_the_next_call() -> None:
    breaker = CitrusBreaker()
    assert [failed(breaker, subject) for subject in "abc"] == [False, False, True]
    assert not failed(breaker, "a", OPEN_BASE_S)
    assert (breaker.state, breaker.open_for_s(OPEN_BASE_S)) == (CitrusState.OPEN, 0.0)
    assert failed(breaker, "d", OPEN_BASE_S)
    now = OPEN_BASE_S + breaker.open_for_s(OPEN_BASE_S)
    assert not failed(breaker, "d", now)
    breaker.record_success(begun(breaker, now), "e")
    assert breaker.state is CitrusState.CLOSED


def test_subjects_are_forgotten_when_there_are_too_many() -> None:
    breaker = CitrusBreaker()
    for number in range(SUBJECTS_MAX + 1):
        failed(breaker, str(number))
        breaker.record_success(begun(breaker, 10.0 * number), "another")
    told = [failed(breaker, subject, 1e6) for subject in ("1", str(SUBJECTS_MAX), "0", "x", "y")]
    assert told == [False] * 4 + [True]
