"""Clocks may be some minutes apart, and no more, where something ends by the time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clocks import APART

from simplu_worker.timing.clock import parse_http_date, shard_problem


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [
        *((ahead_s, None) for ahead_s in (-60.0, 0.0, 60.0)),
        (-60.1, f"its clock is 60 s behind this machine's; {APART}"),
        (float("nan"), f"its clock is nan s behind this machine's; {APART}"),
        (-1200.0, f"its clock is 1200 s behind this machine's; {APART}"),
        (480.4, f"its clock is 480 s ahead of this machine's; {APART}"),
    ],
)
def test_problem_names_the_difference_and_the_remedy(ahead_s: float, expected: str | None) -> None:
    assert shard_problem(ahead_s) == expected


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
    assert parse_http_date(date) == expected
