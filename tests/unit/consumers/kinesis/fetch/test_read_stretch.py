from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.fetch.read_schedule import STRETCH_MAX, ReadStretch, wanted_stretch


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.4, 1.0), (0.5, 1.5), (0.6, 2.0), (0.8, 3.0), (1.0, 3.0), (1.5, 3.0)]
)
def test_stretch_grows_with_the_share_of_the_processor(share: float, expected: float) -> None:
    assert wanted_stretch(share) == pytest.approx(expected)


def test_replica_with_time_to_spare_reads_as_early_as_it_may() -> None:
    stretch = ReadStretch()
    stretch.note_share(1.0)  # of the start
    assert stretch.factor == 1.0
    stretch.note_share(0.4)
    assert stretch.factor == 1.0
    for _ in range(20):
        stretch.note_share(1.0)
    assert stretch.factor == pytest.approx(STRETCH_MAX, abs=0.01)
    stretch.note_share(0.13)
    assert stretch.factor == 1.0


def test_busy_replica_changes_its_reads_step_by_step() -> None:
    stretch = ReadStretch()
    for share in (0.0, 0.8, 0.8):
        stretch.note_share(share)
    assert stretch.factor == pytest.approx(1 + 2 * (1 - 0.7**2))
    before = stretch.factor
    stretch.note_share(0.4)
    assert stretch.factor == pytest.approx(before - 0.3 * (before - 1))


@given(fixed=st.floats(0, 1), by_transactions=st.floats(0, 2))
def test_stretch_does_not_swing(fixed: float, by_transactions: float) -> None:
    stretch = ReadStretch()
    for _ in range(60):
        stretch.note_share(min(1.0, fixed + by_transactions / stretch.factor))
    settled = stretch.factor
    stretch.note_share(min(1.0, fixed + by_transactions / stretch.factor))
    assert stretch.factor == pytest.approx(settled, abs=0.02)
