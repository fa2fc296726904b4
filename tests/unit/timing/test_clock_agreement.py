"""Clocks may be some minutes apart, and no more, where something ends by the time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clocks import APART

from simplu_worker.timing.clock_agreement import (
    are_apart,
    own_problem,
    parse_http_date,
    probable_own_ahead_s,
    shard_problem,
)


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [(0.0, False), (60.0, False), (60.1, True), (-60.0, False), (-60.1, True), (float("nan"), True)],
)
def test_clocks_are_apart_when_they_differ_by_over_a_minute(ahead_s: float, *, expected: bool) -> None:
    assert are_apart(ahead_s) is expected


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (own_problem(None), None),
        (own_problem(60.0), None),
        (own_problem(1200.4), f"the clock of this machine is 1200 s ahead; {APART}"),
        (shard_problem(-59.0), None),
        (shard_problem(-1200.0), f"its clock is 1200 s behind; {APART}"),
        (shard_problem(480.0, -480.0), None),
        (shard_problem(0.0, 480.0), f"its clock is 480 s ahead; {APART}"),
    ],
)
def test_problem_names_the_clock_and_what_waits(problem: str | None, expected: str | None) -> None:
    assert problem == expected


@pytest.mark.parametrize(
    ("of_aws", "shards", "expected"),
    [
        (None, [], None),
        (None, [480.0], None),  # one of two clocks, nobody knows which
        (None, [480.0, 490.0, 470.0], -480.0),
        (None, [480.0, 490.0, 0.0], None),
        (None, [0.0, 1.0], None),
        (1.0, [480.0, 490.0], 1.0),
        (-480.0, [480.0, 0.0], -480.0),
    ],
)
def test_own_clock_is_wrong_when_aws_or_several_shards_say_so(
    of_aws: float | None, shards: list[float], expected: float | None
) -> None:
    assert probable_own_ahead_s(of_aws, shards) == expected


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
