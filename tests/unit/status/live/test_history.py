from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease import ReplicaFigures
from simplu_worker.status.history import POINTS_MAX, Figures, quantile

BOUNDS_S = (0.1, 1.0, 10.0)


def test_figures_are_of_the_last_point_and_the_hour() -> None:
    figures = Figures(BOUNDS_S)
    figures.note([0, 0, 0, 0], 1)
    assert figures.view() == ReplicaFigures()
    figures.note([0, 300, 300, 0], 3)
    assert figures.view() == ReplicaFigures(10.0, 2)
    figures.note([0, 300, 300, 0], 6)
    assert figures.view() == ReplicaFigures(None, 5)
    for _ in range(POINTS_MAX):
        figures.note([0, 300, 300, 0], 7)
    assert figures.view() == ReplicaFigures(None, 1)


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
