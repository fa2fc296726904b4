"""The autoscaler of the simulation is that of Kubernetes, and the page has the day of the chart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requires import ROOT

from benchmarks.autoscaling.__main__ import CHART, COMMAND, report, results
from benchmarks.autoscaling.day import FLAP_S, LATE_S, TICK_S, flaps_of
from benchmarks.autoscaling.rule import (
    Autoscaler,
    Behavior,
    Signals,
    asked_replicas,
    late_stream_shards,
    oldest_lag,
    processor_time,
    waiting_messages,
)
from benchmarks.throughput.page import replace_part

TRIGGERS = {"late": late_stream_shards(60), "waiting": waiting_messages(2000), "cpu": processor_time(0.65)}
BEHAVIOR = Behavior(least=2, most=10, down_after_s=300.0)
IDLE, BUSY = Signals([], 0.0), Signals([], 100.0)


@pytest.mark.parametrize(
    ("lags_s", "cores", "replicas", "expected"),
    [
        ([], 0.0, 2, 0),
        ([0.0, 30.0, 60.0, 900.0], 0.0, 2, 3),  # 0, a half, 1, 1
        ([0.0], 1.3, 2, 2),
        ([0.0], 1.35, 2, 2),  # a difference of a tenth is none
        ([0.0], 1.5, 2, 3),
        ([60.0, 60.0], 3.0, 2, 5),  # the one that asks for more wins
        ([60.0] * 7, 3.0, 5, 7),
    ],
)
def test_replicas_asked_for(lags_s: list[float], cores: float, replicas: int, expected: int) -> None:
    """The sum over the target, rounded up."""
    assert asked_replicas(Signals(lags_s, cores), TRIGGERS, replicas) == expected


@pytest.mark.parametrize(("messages", "expected"), [(0, 0), (2000, 1), (2001, 2), (30_000, 15)])
def test_waiting_messages_ask_for_a_replica_each_so_many(messages: float, expected: int) -> None:
    """Whatever the lag and the processor time are, if these ask for less."""
    assert asked_replicas(Signals([], 0.0, messages), TRIGGERS, 0) == expected


def test_oldest_lag_asks_for_all_replicas_because_of_one_stream_shard() -> None:
    """The rule that the chart does not have."""
    assert oldest_lag(60)(Signals([900.0, 0.0], 0.0)) == 15
    assert late_stream_shards(60)(Signals([900.0, 0.0], 0.0)) == 1


def test_autoscaler_doubles_or_adds_four_a_minute_at_most() -> None:
    """Four of 2, then 6 of 6; the bound ends it."""
    scaler = Autoscaler(TRIGGERS, BEHAVIOR)
    assert [scaler.follow(BUSY, tick * 15.0) for tick in range(6)] == [6, 6, 6, 6, 10, 10]


def test_autoscaler_waits_for_its_window_and_takes_one_a_minute() -> None:
    """The greatest number that was asked for within the window stays."""
    scaler = Autoscaler(TRIGGERS, BEHAVIOR)
    while scaler.replicas < 10:
        scaler.follow(BUSY, 0.0 if scaler.replicas == 2 else 60.0)
    counts = [scaler.follow(IDLE, 75.0 + tick * 15.0) for tick in range(60)]
    gone_at = [75.0 + at * 15.0 for at in range(1, 60) if counts[at] < counts[at - 1]]
    assert gone_at[0] == 60.0 + 300.0
    assert {after - before for before, after in pairwise(gone_at)} == {60.0}
    assert counts[-1] == 2


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), max_size=60))
def test_autoscaler_stays_within_its_bounds_and_rates(load: list[tuple[float, float]]) -> None:
    """Whatever the metrics are."""
    scaler = Autoscaler(TRIGGERS, BEHAVIOR)
    counts = [2, *(scaler.follow(Signals([lag_s], cores), tick * 15.0) for tick, (lag_s, cores) in enumerate(load))]
    assert all(2 <= count <= 10 for count in counts)
    for at, count in enumerate(counts):
        before = counts[max(0, at - 4) : at + 1]
        assert count >= max(before) - 1
        assert count <= max(2 * min(before), min(before) + 4)


def test_flap_is_a_replica_that_comes_soon_after_one_has_gone() -> None:
    """Once for each that has gone."""
    long = int(FLAP_S / TICK_S)
    assert flaps_of([3, 2, 3, 4]) == 1
    assert flaps_of([3, 2, *[2] * long, 3]) == 0
    assert flaps_of([2, 3, 3]) == 0


@pytest.mark.slow(4)
def test_page_has_the_day_and_the_chart_neither_flaps_nor_falls_behind() -> None:
    """The table is that of these rules and these values."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert replace_part(page, "autoscaling", COMMAND, report()) == page
    days = results()
    chart = days[CHART]
    assert chart.flaps <= 1
    assert chart.longest_lag_s <= 2 * LATE_S
    assert chart.replica_hours < 0.4 * days["always as many as stream shards"].replica_hours
    assert days["oldest lag alone"].flaps > 10
    assert chart.longest_wait_s < days["late stream shards and processor time"].longest_wait_s
