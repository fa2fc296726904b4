from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease import ReplicaFigures
from simplu_worker.status.history import INTERVAL_S, POINTS_MAX, History, Totals, quantile, totals_of

BOUNDS_S = (0.1, 1.0, 10.0)
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOTHING = Totals(0, 0, 0, (0, 0, 0, 0), lag_s=None, held_count=0)


def test_point_is_what_came_between_two_moments() -> None:
    history = History(BOUNDS_S)
    history.note(NOTHING, now=100.0, at=START)
    history.note(Totals(600, 30, 2, (0, 300, 300, 0), lag_s=0.5, held_count=3), now=130.0, at=START)
    history.note(Totals(600, 30, 2, (0, 300, 300, 0), lag_s=None, held_count=0), now=160.0, at=START)
    assert history.view().json() == {
        "intervalSeconds": INTERVAL_S,
        "from": "2026-11-23T11:59:30+00:00",
        "operationsPerSecond": [20.0, 0.0],
        "failedPerSecond": [1.0, 0.0],
        "deadLetters": [2, 0],
        "latencyP50Seconds": [1.0, None],
        "latencyP99Seconds": [10.0, None],
        "lagSeconds": [0.5, None],
        "heldTargets": [3, 0],
    }


def test_figures_are_of_the_last_point_and_the_hour() -> None:
    history = History(BOUNDS_S)
    history.note(NOTHING, now=100.0, at=START)
    assert history.figures() == ReplicaFigures()
    history.note(Totals(600, 30, 2, (0, 300, 300, 0), lag_s=0.5, held_count=3), now=130.0, at=START)
    assert history.figures() == ReplicaFigures(10.0, 2)
    history.note(Totals(600, 30, 5, (0, 300, 300, 0), lag_s=0.5, held_count=3), now=160.0, at=START)
    assert history.figures() == ReplicaFigures(None, 5)


def test_history_is_empty_before_the_second_moment() -> None:
    history = History(BOUNDS_S)
    assert (history.view().from_, history.view().lag_seconds) == (None, [])
    history.note(NOTHING, now=1.0, at=START)
    assert history.view().lag_seconds == []


def test_history_keeps_an_hour() -> None:
    history = History(BOUNDS_S)
    for number in range(3 * POINTS_MAX):
        at = START + timedelta(seconds=INTERVAL_S * number)
        history.note(msgspec.structs.replace(NOTHING, held_count=number), now=INTERVAL_S * number, at=at)
    view = history.view()
    assert view.held_targets == list(range(2 * POINTS_MAX, 3 * POINTS_MAX))
    assert view.from_ == (START + timedelta(seconds=INTERVAL_S * 2 * POINTS_MAX)).isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 0, 0, 0], 0.1),
        (1.0, [10, 0, 0, 0], 0.1),
        (0.5, [5, 5, 0, 0], 0.1),
        (0.75, [5, 0, 5, 0], 10.0),
        (0.99, [0, 0, 0, 7], 10.0),
    ],
)
def test_quantile_is_the_end_of_its_bucket(share: float, counts: list[int], expected: float | None) -> None:
    assert quantile(share, counts, BOUNDS_S) == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1), st.floats(0.01, 1))
def test_quantiles_rise_with_their_share(counts: list[int], one: float, other: float) -> None:
    low, high = (quantile(share, counts, BOUNDS_S) for share in sorted((one, other)))
    assert (low is None) == (high is None) == (sum(counts) == 0)
    assert low is None or high is None or 0 <= low <= high + 1e-9 <= BOUNDS_S[-1] + 1e-6


def test_failed_operations_are_those_with_an_error() -> None:
    totals = totals_of(
        {"succeeded": 10, "duplicate": 3, "not_found": 2, "dead_letter": 1},
        {"too_large": 1},
        [1],
        lag_s=1,
        held_count=2,
    )
    assert totals == Totals(16, 3, 1, (1,), lag_s=1, held_count=2)
