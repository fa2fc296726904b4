"""The ids and bounds of incarnations, and how long a free row is left to other replicas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.feed.events import (
    BOUNDS_MAX,
    CLAIM_DELAY_MAX_S,
    LEASE_S,
    bounds_with,
    claim_delay_s,
    incarnation_id,
    incarnations_in,
    run_of_server,
)
from simplu_worker.feed.types import Place


@given(first=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), later_ms=st.integers(1, 10**12))  # noqa: DTZ001
def test_id_of_a_newer_incarnation_is_greater(first: datetime, later_ms: int) -> None:
    at = first.replace(tzinfo=UTC)
    assert incarnation_id(at, "ffff") < incarnation_id(at + timedelta(milliseconds=later_ms), "0000")


def test_id_of_an_incarnation_is_greater_than_all_that_are_known() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    before = [incarnation_id(at + timedelta(seconds=later_s), "ffff") for later_s in (5, 60, 0)]
    bounds = bounds_with(bounds_with("", before[0], Place(1, 0)), before[1], Place(2, 0))
    assert incarnations_in(bounds) == before[1::-1]
    new = incarnation_id(at, "0000", [before[2], *incarnations_in(bounds)])
    assert new > max(before)
    assert new == incarnation_id(at + timedelta(seconds=60, milliseconds=1), "0000")


@pytest.mark.parametrize(
    ("bounds", "cursor", "expected"),
    [
        ("", 7, "new:7"),
        ("a:5", 7, "new:7,a:5"),
        ("b:6,a:5", 5, "new:5"),
        ("b:6,a:5", 6, "new:6,a:5"),
    ],
)
def test_bounds_begin_with_the_newest_and_leave_out_what_it_contains(bounds: str, cursor: int, expected: str) -> None:
    assert bounds_with(bounds, "new", Place(cursor, 0)) == expected


def test_bounds_are_bounded() -> None:
    bounds = ""
    for number in range(40):
        bounds = bounds_with(bounds, f"i{number}", Place(number, 0))
    assert bounds.split(",")[0] == "i39:39"
    assert len(bounds.split(",")) == BOUNDS_MAX


def test_replica_waits_longer_the_more_shards_it_publishes() -> None:
    delays = [claim_delay_s(count, draw) for count in (0, 1, 8, 100, 10_000) for draw in (0.0, 1.0)]
    assert [claim_delay_s(count, 0.5) for count in (0, 8)] == pytest.approx([0.05, 0.56])
    assert claim_delay_s(0, 1) < claim_delay_s(8, 0) < claim_delay_s(100, 0)
    assert all(0 < delay <= CLAIM_DELAY_MAX_S for delay in delays)
    assert LEASE_S + CLAIM_DELAY_MAX_S < 10


def test_run_of_a_server_is_another_after_a_promotion_a_restore_and_new_numbers() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    runs = [("1", at, 0), ("2", at, 0), ("1", at + timedelta(microseconds=1), 0), ("1", at, 1000)]
    assert run_of_server(*runs[0]) == "1/1772323200.000000/0"
    assert len({run_of_server(*one) for one in runs}) == len(runs)
