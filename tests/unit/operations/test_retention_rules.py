"""How long the log is kept, and how gently it is made smaller."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.retention_rules import (
    DELETING_SHARE,
    LATE_SHARE,
    ROWS_GROWTH,
    SOURCE_MARGIN,
    STATEMENT_LEAST_S,
    STATEMENT_MOST_S,
    deleting_share,
    deletion_pause_s,
    effective_retention,
    next_row_count,
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
def test_effective_retention_is_the_longest_source_and_a_day_when_that_is_longer(
    configured: timedelta, sources: list[timedelta | None], expected: timedelta | None
) -> None:
    assert effective_retention(configured, sources) == expected


@given(configured=DURATIONS, sources=st.lists(DURATIONS))
def test_effective_retention_never_forgets_what_a_source_still_has(
    configured: timedelta, sources: list[timedelta]
) -> None:
    effective = effective_retention(configured, sources)
    assert effective is not None
    assert all(effective >= bound for bound in (configured, *(source + SOURCE_MARGIN for source in sources)))


def test_rest_leaves_deleting_its_share_of_the_time() -> None:
    busy_s = 0.2
    assert busy_s / (busy_s + deletion_pause_s(busy_s)) == pytest.approx(DELETING_SHARE)


@pytest.mark.parametrize(
    ("late_s", "expected"),
    [
        (0.0, DELETING_SHARE),
        (60.0, DELETING_SHARE),
        (120.0, DELETING_SHARE),
        (121.0, LATE_SHARE),
        (86_400.0, LATE_SHARE),
    ],
)
def test_deleting_takes_more_of_the_time_only_when_rows_stay_for_longer_than_two_turns(
    late_s: float, expected: float
) -> None:
    assert deleting_share(late_s, 60.0) == expected
    busy_s = 0.2
    assert busy_s / (busy_s + deletion_pause_s(busy_s, expected)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row_count", "busy_s", "expected"),
    [
        (1000, 0.001, 2000),
        (8000, 0.001, 10_000),
        (10_000, 0.001, 10_000),
        (4000, STATEMENT_LEAST_S, 4000),
        (4000, STATEMENT_MOST_S, 4000),
        (4000, 0.2, 2000),
        (1, 25.0, 1),
    ],
)
def test_next_statement_has_more_rows_after_a_quick_one_and_fewer_after_a_slow_one(
    row_count: int, busy_s: float, expected: int
) -> None:
    assert next_row_count(row_count, busy_s, 1000) == expected


@given(us_per_row=st.floats(min_value=0.2, max_value=10_000), first_count=st.integers(1, 5000))
def test_row_count_settles_where_a_statement_takes_neither_too_little_nor_too_much(
    us_per_row: float, first_count: int
) -> None:
    row_count = first_count
    for _ in range(30):
        row_count = next_row_count(row_count, row_count * us_per_row / 1e6, first_count)
    busy_s = row_count * us_per_row / 1e6
    assert busy_s <= STATEMENT_MOST_S or row_count == 1
    assert busy_s >= STATEMENT_LEAST_S or row_count == first_count * ROWS_GROWTH
