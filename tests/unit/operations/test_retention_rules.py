"""How long the log is kept, and how gently it is made smaller."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.retention_rules import (
    DELETING_SHARE,
    SOURCE_MARGIN,
    deletion_pause_s,
    effective_retention,
)

DAY = timedelta(days=1)
DURATIONS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400))


@pytest.mark.parametrize(
    ("configured", "sources", "expected"),
    [
        (15 * DAY, [], 15 * DAY),
        (15 * DAY, [DAY, 14 * DAY], 15 * DAY),
        (15 * DAY, [DAY, 365 * DAY], 366 * DAY),
        (2 * DAY, [DAY, 4 * DAY], 5 * DAY),
        (2 * DAY, [None], None),
        (2 * DAY, [365 * DAY, None], None),
    ],
)
def test_effective_retention_is_the_longest_source_and_a_day(
    configured: timedelta, sources: list[timedelta | None], expected: timedelta | None
) -> None:
    assert effective_retention(configured, sources) == expected


@given(configured=DURATIONS, sources=st.lists(DURATIONS))
def test_effective_retention_covers_what_a_source_still_has(configured: timedelta, sources: list[timedelta]) -> None:
    effective = effective_retention(configured, sources)
    assert effective is not None
    assert all(effective >= bound for bound in (configured, *(source + SOURCE_MARGIN for source in sources)))


def test_rest_leaves_deleting_its_share_of_the_time() -> None:
    busy_s = 0.2
    assert busy_s / (busy_s + deletion_pause_s(busy_s)) == pytest.approx(DELETING_SHARE)
