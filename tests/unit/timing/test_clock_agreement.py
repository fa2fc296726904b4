"""Clocks may be some minutes apart, and no more, where something ends by the time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clocks import APART

from simplu_worker.timing.clock_agreement import are_apart, own_problem, parse_http_date, shard_problem

WAITS = "nothing is deleted by the time until NTP has set them"


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [(0.0, False), (300.0, False), (300.1, True), (-300.0, False), (-300.1, True), (float("nan"), True)],
)
def test_clocks_are_apart_when_they_differ_by_more_than_five_minutes(ahead_s: float, *, expected: bool) -> None:
    """In either direction."""
    assert are_apart(ahead_s) is expected


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (own_problem(None), None),
        (own_problem(300.0), None),
        (
            own_problem(1200.4),
            f"{APART}, got this worker's clock 1200 s ahead of that of AWS; {WAITS}",
        ),
        (shard_problem(-299.0), None),
        (
            shard_problem(-1200.0),
            f"{APART}, got its clock 1200 s behind this worker's; {WAITS}",
        ),
    ],
)
def test_problem_names_the_clock_and_what_waits(problem: str | None, expected: str | None) -> None:
    """An error for people; a clock that nothing is known of is no problem."""
    assert problem == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Sun, 01 Mar 2026 12:00:31 GMT", datetime(2026, 3, 1, 12, 0, 31, tzinfo=UTC)),
        ("Sun, 01 Mar 2026 11:00:00 -0000", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("yesterday", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("", None),
    ],
)
def test_date_header_is_an_instant_or_nothing(date: str, expected: datetime | None) -> None:
    """Whatever a server sends, it raises nothing."""
    assert parse_http_date(date) == expected
