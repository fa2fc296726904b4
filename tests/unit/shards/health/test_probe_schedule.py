from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.health.assessment import JITTER, ProbeSchedule, probe_interval_s

LOOK_S = 0.02


def looks(schedule: ProbeSchedule, *, failing: set[str], seconds: float, seed: int = 1) -> list[tuple[float, str]]:
    random_numbers = random.Random(seed)
    seen: list[tuple[float, str]] = []
    now = 0.0
    while now < seconds:
        for shard_id in schedule.take_due(now):
            seen.append((now, shard_id))
            schedule.reschedule(shard_id, fails=shard_id in failing, now=now + LOOK_S, draw=random_numbers.random())
        now += 0.25
    return seen


def schedule_of(count: int, *, seed: int = 1) -> ProbeSchedule:
    random_numbers = random.Random(seed)
    schedule = ProbeSchedule()
    for number in range(count):
        schedule.add(f"s{number}", now=0.0, draw=random_numbers.random())
    return schedule


def test_shard_is_looked_at_soon_and_then_about_every_ten_seconds() -> None:
    times = [at for at, _ in looks(schedule_of(1), failing=set(), seconds=100)]
    assert times[0] <= 1.25
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(10 * (1 - JITTER) <= gap <= 10 * (1 + JITTER) + 0.5 for gap in gaps)
    assert len({round(gap, 2) for gap in gaps}) > 3


def test_shard_that_fails_is_looked_at_about_every_second() -> None:
    times = [at for at, shard_id in looks(schedule_of(10), failing={"s3"}, seconds=30) if shard_id == "s3"]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 1.75


@pytest.mark.parametrize(("count", "failing_count"), [(500, 0), (500, 500), (500, 30), (40, 40)])
def test_looks_a_second_are_bounded_when_there_are_many(count: int, failing_count: int) -> None:
    failing = {f"s{number}" for number in range(failing_count)}
    seen = looks(schedule_of(count), failing=failing, seconds=180)
    assert {shard_id for _, shard_id in seen} == {f"s{number}" for number in range(count)}
    for second in range(5, 180, 5):
        burst = [at for at, _ in seen if second <= at < second + 5]
        assert len(burst) / 5 <= 25 * 1.5


def test_shard_in_hand_is_not_due_again_before_it_was_looked_at() -> None:
    schedule = schedule_of(1)
    assert schedule.take_due(1.0) == ["s0"]
    schedule.bring_forward("s0", now=1.0)
    assert schedule.take_due(1000.0) == []
    schedule.reschedule("s0", fails=False, now=1000.0, draw=0.5)
    assert schedule.take_due(1010.1) == ["s0"]


def test_shard_is_hastened_once_when_it_fails_between_two_looks() -> None:
    schedule = schedule_of(1)
    schedule.take_due(1.0)
    schedule.reschedule("s0", fails=False, now=1.0, draw=0.5)
    schedule.bring_forward("s0", now=2.0)
    schedule.bring_forward("s0", now=1.5)
    schedule.bring_forward("unknown", now=2.0)
    assert schedule.take_due(1.9) == []
    assert schedule.take_due(2.0) == ["s0"]
    schedule.reschedule("s0", fails=True, now=2.1, draw=0.5)
    schedule.bring_forward("s0", now=2.2)  # it is known
    assert schedule.take_due(2.9) == []
    assert schedule.take_due(3.2) == ["s0"]


def test_shard_that_was_removed_is_not_looked_at() -> None:
    schedule = schedule_of(2)
    (first, *_) = schedule.take_due(2.0)
    schedule.remove(first)
    schedule.reschedule(first, fails=True, now=2.0, draw=0.0)
    assert list(schedule.shard_ids) == [{"s0": "s1", "s1": "s0"}[first]]


@given(count=st.integers(min_value=1, max_value=2000), fails=st.booleans())
def test_interval_grows_where_the_shards_would_be_too_many_a_second(count: int, *, fails: bool) -> None:
    interval_s, most = probe_interval_s(count, fails=fails), 20 if fails else 5
    assert interval_s == (1.0 if fails else 10.0) or count / interval_s == pytest.approx(most)
    assert count / interval_s <= most * 1.0001


def test_removed_shard_counts_no_more() -> None:
    schedule = schedule_of(40)
    schedule.take_due(10.0)
    for number in range(40):
        schedule.reschedule(f"s{number}", fails=True, now=0.0, draw=0.5)
    for number in range(1, 40):
        schedule.remove(f"s{number}")
        schedule.remove("unknown")
    schedule.reschedule("s0", fails=True, now=0.0, draw=0.5)
    assert (schedule.take_due(0.9), schedule.take_due(1.1), list(schedule.shard_ids)) == ([], ["s0"], ["s0"])


def test_shard_that_is_added_again_is_due_at_its_new_time_only() -> None:
    schedule = ProbeSchedule()
    schedule.add("s", now=0.0, draw=0.0)
    schedule.remove("s")
    schedule.add("s", now=10.0, draw=1.0)
    assert (schedule.take_due(10.9), schedule.take_due(11.0), schedule.take_due(100.0)) == ([], ["s"], [])


def test_first_looks_are_spread_over_a_second_or_a_round() -> None:
    schedule = ProbeSchedule()
    for number in range(10):
        schedule.add(f"s{number}", now=3.0, draw=1.0)
    assert schedule.take_due(3.99) == []
    assert [schedule.take_due(3.0 + due_s) for due_s in (1.0, 1.19, 1.2, 1.99, 2.0)] == [
        ["s0", "s1", "s2", "s3", "s4"],
        [],
        ["s5"],
        ["s6", "s7", "s8"],
        ["s9"],
    ]
