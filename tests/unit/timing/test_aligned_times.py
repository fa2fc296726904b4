"""Times on a common grid: hardly later than wanted, little earlier, and as far apart as the interval."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.timing.waits import EARLY_S, GRID_S, INTERVAL_MIN_S, aligned_time, shared_pause_s

MILLISECOND_S = 0.001
GRIDS = st.sampled_from([GRID_S, 5 * GRID_S])


@given(since=st.floats(0.0, 1e7), interval_s=st.floats(INTERVAL_MIN_S, 60.0), grid_s=GRIDS)
def test_moment_is_in_time_and_little_early(since: float, interval_s: float, grid_s: float) -> None:
    off_s = aligned_time(since, interval_s, grid_s) - (since + interval_s)
    assert EARLY_S - grid_s - MILLISECOND_S < off_s < EARLY_S + MILLISECOND_S


@given(
    first=st.floats(0.0, 1e6), lateness_s=st.lists(st.floats(-MILLISECOND_S, 5 * MILLISECOND_S), min_size=5, max_size=5)
)
def test_moments_keep_their_distance_when_begun_a_little_early_or_late(first: float, lateness_s: list[float]) -> None:
    wanted = aligned_time(first, 1.0)
    for turn, late_s in enumerate(lateness_s, start=1):
        assert aligned_time(wanted + turn - 1 + late_s, 1.0) == pytest.approx(wanted + turn, abs=2 * MILLISECOND_S)


@given(since=st.floats(0.0, 1e6), interval_s=st.floats(INTERVAL_MIN_S, 60.0), grid_s=GRIDS)
def test_moments_are_few_whenever_it_was_begun(since: float, interval_s: float, grid_s: float) -> None:
    moment = aligned_time(since, interval_s, grid_s)
    assert moment == pytest.approx(round(moment / grid_s) * grid_s, abs=MILLISECOND_S)


@pytest.mark.parametrize(("since", "interval_s"), [(100.03, 0.205), (100.03, 0.0), (float("-inf"), 1.0)])
def test_short_interval_and_no_beginning_are_left_as_they_are(since: float, interval_s: float) -> None:
    assert aligned_time(since, interval_s) == since + interval_s


@given(
    start=st.floats(0.0, 1e6),
    interval_s=st.sampled_from([0.25, 0.5]),
    lateness_s=st.lists(st.floats(-5 * MILLISECOND_S, 5 * MILLISECOND_S), min_size=5, max_size=5),
)
def test_short_pauses_end_together(start: float, interval_s: float, lateness_s: list[float]) -> None:
    pause_s = shared_pause_s(start, interval_s)
    assert EARLY_S <= pause_s <= interval_s + EARLY_S
    wanted = start + pause_s
    assert wanted == pytest.approx(round(wanted / interval_s) * interval_s, abs=MILLISECOND_S)
    for late_s in lateness_s:
        now = wanted + late_s
        wanted += interval_s
        assert now + shared_pause_s(now, interval_s) == pytest.approx(wanted, abs=MILLISECOND_S)
