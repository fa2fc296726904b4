"""The ids of incarnations, and how long a free row is left to other replicas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.feed.events import CLAIM_DELAY_MAX_S, LEASE_S, claim_delay_s, incarnation_id, run_of_server


@given(first=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), later_ms=st.integers(1, 10**12))  # noqa: DTZ001
def test_id_of_a_newer_incarnation_is_greater(first: datetime, later_ms: int) -> None:
    at = first.replace(tzinfo=UTC)
    assert incarnation_id(at, "ffff") < incarnation_id(at + timedelta(milliseconds=later_ms), "0000")


def test_id_of_an_incarnation_is_greater_than_all_that_are_known() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    before = [incarnation_id(at + timedelta(seconds=later_s), "ffff") for later_s in (5, 60, 0)]
    assert incarnation_id(at, "0000", [*before, ""]) == incarnation_id(
        at + timedelta(seconds=60, milliseconds=1), "0000"
    )
    assert incarnation_id(at, "0000", [""]) == incarnation_id(at, "0000")
    assert incarnation_id(datetime(1970, 1, 1, tzinfo=UTC), "ffff") == "000000000000ffff"


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
