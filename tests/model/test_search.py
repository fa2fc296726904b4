"""The search itself: everything is visited once, and what is wrong is found by a shortest way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from model.search import Violation, search


class Clock:
    """An hour below 4; from *returns_at* a step leads back to the hour before."""

    def __init__(self, *, returns_at: int | None = None) -> None:
        self._returns_at = returns_at

    def first(self) -> int:
        """Return zero."""
        return 0

    def steps(self, state: int) -> Iterator[tuple[str, int]]:
        """Return the next hour, the last one again, and perhaps the one before."""
        yield "on", min(state + 1, 3)
        if state == self._returns_at:
            yield "back", state - 1

    def faults(self, state: int) -> Iterator[tuple[str, int]]:
        """Return the first hour: a fault may lead back."""
        yield "reset", 0

    def broken(self, state: int) -> str:
        """Return that every hour may be."""
        return ""

    def unsettled(self, state: int) -> str:
        """Return that the last hour is the end."""
        return "" if state == 3 else "unsettled"


class Counter:
    """A number below 10 that goes up by one or, as a fault, by three; some numbers must not be."""

    def __init__(self, *, forbidden: int | None = None, goal: int = 9) -> None:
        self._forbidden = forbidden
        self._goal = goal

    def first(self) -> int:
        """Return zero."""
        return 0

    def steps(self, state: int) -> Iterator[tuple[str, int]]:
        """Return one more, which at the end is no step."""
        yield "one", min(state + 1, 9)

    def faults(self, state: int) -> Iterator[tuple[str, int]]:
        """Return three more."""
        if state + 3 <= 9:
            yield "three", state + 3

    def broken(self, state: int) -> str:
        """Return that a forbidden number is reached."""
        return "forbidden" if state == self._forbidden else ""

    def unsettled(self, state: int) -> str:
        """Return that the end is not the goal."""
        return "" if state == self._goal else "unsettled"


def test_search_counts_every_state_once() -> None:
    """A state that is reached by several ways is one state."""
    assert search(Counter()) == 10


def test_search_gives_a_shortest_trace_when_a_promise_is_broken() -> None:
    """The trace has the label of every step of a shortest way, and the error shows them."""
    with pytest.raises(Violation, match=r"forbidden\n  1\. one\n  2\. three\n  3\. three") as caught:
        search(Counter(forbidden=7))
    assert caught.value.trace == ("one", "three", "three")


def test_search_finds_what_is_unsettled_when_no_step_leads_on() -> None:
    """A step that changes nothing leads nowhere, and a fault need not come."""
    with pytest.raises(Violation, match="unsettled") as caught:
        search(Counter(goal=8))
    assert caught.value.trace == ("three", "three", "three")


def test_search_finds_a_cycle_of_steps_when_these_are_forbidden() -> None:
    """The trace leads to the first state of the cycle, and once round."""
    assert search(Clock(returns_at=2)) == 4
    with pytest.raises(Violation, match="cycle: 2 steps") as caught:
        search(Clock(returns_at=2), forbids_cycles=True)
    assert caught.value.trace == ("on", "on", "back")


def test_search_forbids_no_cycle_with_a_fault_in_it() -> None:
    """Neither is a step a cycle that changes nothing."""
    assert search(Clock(), forbids_cycles=True) == 4
