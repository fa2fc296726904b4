from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.queued_operations import queued_operation

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.leases.lease import ReplicaFigures, TopBusiness
from simplu_worker.consumers.operation_taps import EVENTS_MAX, OperationTaps, TapFilter
from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.status.answers import StreamPoints
from simplu_worker.status.history import (
    DAY_POINTS_MAX,
    FOLDED,
    INTERVAL_S,
    POINTS_MAX,
    STREAM_SHARDS_MAX,
    Figures,
    FleetHistory,
    FleetPoint,
    StreamHistory,
    fleet_point,
    fold,
    quantile,
)
from simplu_worker.status.replica import LOCATIONS_MAX, RANK_COUNT, TopBusinesses
from simplu_worker.status.server import ALIVE, changes, encode_event, tapped

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOUNDS_S = (0.1, 1.0, 10.0)


def test_figures_are_of_the_last_point_and_the_hour() -> None:
    figures = Figures(BOUNDS_S)
    figures.note([0, 0, 0, 0], 1)
    assert figures.view() == ReplicaFigures()
    figures.note([0, 300, 300, 0], 3)
    assert figures.view() == ReplicaFigures(10.0, 2)
    figures.note([0, 300, 300, 0], 6)
    assert figures.view() == ReplicaFigures(None, 5)
    for _ in range(POINTS_MAX):
        figures.note([0, 300, 300, 0], 7)
    assert figures.view() == ReplicaFigures(None, 1)


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 0, 0, 0], 0.1),
        (1.0, [10, 0, 0, 0], 0.1),
        (0.5, [5, 5, 0, 0], 0.1),
        (0.75, [5, 0, 5, 0], 10.0),
        (0.99, [0, 0, 0, 7], 10.0),
    ],
)
def test_quantile_is_the_end_of_its_bucket(share: float, counts: list[int], expected: float | None) -> None:
    assert quantile(share, counts, BOUNDS_S) == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1), st.floats(0.01, 1))
def test_quantiles_rise_with_their_share(counts: list[int], one: float, other: float) -> None:
    low, high = (quantile(share, counts, BOUNDS_S) for share in sorted((one, other)))
    assert (low is None) == (high is None) == (sum(counts) == 0)
    assert low is None or high is None or 0 <= low <= high + 1e-9 <= BOUNDS_S[-1] + 1e-6


UNKNOWN = FleetPoint(round(NOW.timestamp()), None, None, None, None, None, None)


def point(number: int, **members: Any) -> FleetPoint:
    return UNKNOWN._replace(at=round(NOW.timestamp() + number * INTERVAL_S), **members)


def row(**members: Any) -> dict[str, Any]:
    return {"owner": "a", "recordsPerSecond": 10.0, "lagSeconds": 1.0} | members


def replica(**members: Any) -> dict[str, Any]:
    known = {"latencyP99Seconds": 0.2, "heldTargets": 1.0, "deadLetters": 3, "isSilent": False}
    return known | members


def test_point_is_of_the_whole_fleet() -> None:
    report = {
        "streamShards": [row(), row(recordsPerSecond=5.0, lagSeconds=4.0), row(recordsPerSecond=None)],
        "replicas": [replica(), replica(latencyP99Seconds=0.5, deadLetters=None)],
    }
    assert fleet_point(report, NOW) == FleetPoint(UNKNOWN.at, 15.0, 4.0, 0.5, 2.0, 3, 2.0)


def test_what_no_replica_has_renewed_is_not_known() -> None:
    old = {
        "streamShards": [row(recordsPerSecond=None, lagSeconds=None), row(owner=None)],
        "replicas": [replica(isSilent=True)],
    }
    assert fleet_point(old, NOW) == UNKNOWN._replace(replicas=0.0)


def test_hour_has_its_last_points_with_their_times() -> None:
    history = FleetHistory()
    for number in range(POINTS_MAX + 3):
        history.note(point(number, lag_seconds=float(number)))
    hour, _ = history.view()
    assert hour.lag_seconds == [float(number) for number in range(3, POINTS_MAX + 3)]
    assert (hour.at[0], hour.at[-1] - hour.at[0]) == (NOW.timestamp() + 90, 119 * 30)
    assert hour.records_per_second == [None] * POINTS_MAX


def test_day_folds_ten_minutes_into_a_point() -> None:
    history = FleetHistory()
    for number in range(FOLDED + 1):
        history.note(point(number, lag_seconds=float(number), records_per_second=float(number)))
    hour, day = history.view()
    assert (hour.interval_seconds, day.interval_seconds) == (30.0, 600.0)
    assert (day.lag_seconds, day.records_per_second) == ([19.0, 20.0], [9.5, 20.0])
    for number in range(FOLDED + 1, (DAY_POINTS_MAX + 2) * FOLDED):
        history.note(point(number))
    assert len(history.view()[1].at) == DAY_POINTS_MAX


def test_fold_of_unknown_points_is_unknown() -> None:
    assert fold([UNKNOWN, point(1)]) == point(1)
    assert fold([point(0, held_targets=2.0), point(1)]).held_targets == 2.0


def stream_row(
    name: str, lag_s: float | None = None, records_per_s: float | None = None, **more: Any
) -> dict[str, Any]:
    return {"streamShard": name, "state": "reading", "lagSeconds": lag_s, "recordsPerSecond": records_per_s} | more


def test_stream_shard_has_a_point_of_each_note() -> None:
    history = StreamHistory()
    assert (history.noted_at, history.view()) == (None, [])
    history.note([stream_row("b", 1.5, 20.0), stream_row("a"), stream_row("c", 1.0)], NOW)
    history.note([stream_row("a", 0.25, 3.0), stream_row("b"), stream_row("c", 1.0, state="ended")], NOW)
    assert history.noted_at == "2026-11-23T12:00:00+00:00"
    assert history.view() == [
        StreamPoints("a", [None, 0.25], [None, 3.0]),
        StreamPoints("b", [1.5, None], [20.0, None]),
    ]


def test_stream_shard_has_an_hour() -> None:
    history = StreamHistory()
    for number in range(POINTS_MAX + 5):
        history.note([stream_row("a", float(number))], NOW)
    (one,) = history.view()
    assert one.lag_seconds == [float(number) for number in range(5, POINTS_MAX + 5)]


def test_stream_shards_beyond_the_bound_are_those_least_behind() -> None:
    history = StreamHistory()
    first = [stream_row(f"s{number:03}", float(number)) for number in range(STREAM_SHARDS_MAX + 2)]
    history.note(first, NOW)
    kept = {one.stream_shard for one in history.view()}
    assert kept == {one["streamShard"] for one in first[2:]}
    history.note([stream_row("new", 9e9), stream_row("newer", 1.0), *first[3:]], NOW)
    assert {one.stream_shard for one in history.view()} == kept - {"s002"} | {"new"}


class Answers:
    def __init__(self) -> None:
        self.status = HTTPStatus.OK
        self.body = b"1"

    async def read(self) -> tuple[int, bytes]:
        return self.status, self.body


async def test_an_answer_is_sent_when_it_has_changed() -> None:
    answers, closing = Answers(), asyncio.Event()
    async with aclosing(changes({"a": answers.read}, closing, every_s=0.001, alive_s=60)) as events:
        assert await anext(events) == b"event: a\ndata: 1\n\n"
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        answers.status, answers.body = HTTPStatus.SERVICE_UNAVAILABLE, b"2"
        await asyncio.sleep(0.01)
        assert not waiting.done()
        answers.status = HTTPStatus.OK
        assert await waiting == encode_event("a", b"2")
        closing.set()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_silence_is_broken_by_a_comment() -> None:
    answers = Answers()
    async with aclosing(changes({"a": answers.read}, asyncio.Event(), every_s=0.001, alive_s=0.01)) as events:
        assert [await anext(events) for _ in range(3)] == [encode_event("a", b"1"), ALIVE, ALIVE]


async def test_operations_come_as_events_until_the_end() -> None:
    taps, closing = OperationTaps(), asyncio.Event()
    entry = queued_operation()
    async with aclosing(tapped(TapFilter(), closing, taps=taps)) as events:
        assert await anext(events) == ALIVE
        taps.publish([entry.operation], [Outcome(Disposition.APPLIED)], NOW)
        head, _, data = (await anext(events)).partition(b"\ndata: ")
        assert (head, json.loads(data)["requestId"]) == (b"event: operation", entry.operation.request_id)
        for _ in range(EVENTS_MAX + 3):
            taps.publish([entry.operation], [Outcome(Disposition.APPLIED)], NOW)
        assert (await anext(events)).endswith(b'event: dropped\ndata: {"dropped":3}\n\n')
        closing.set()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert taps.open == ()


def metric(shard_id: str, rank: int) -> float | None:
    return REGISTRY.get_sample_value("simplu_shard_business_seconds", {"shard_id": shard_id, "rank": str(rank)})


async def test_businesses_of_all_shards_are_in_the_order_of_their_seconds() -> None:
    chain = {f"chain-{number}": float(number) for number in range(LOCATIONS_MAX + 1)}
    top = TopBusinesses()
    await top.note({"top-1": {"a": {"a-1": 4.0}, "chain": chain, "b": {"b-1": 0.5}, "c": {"c-1": 0.5}}})
    assert [(one.business_id, one.seconds, one.share) for one in top.rows] == [("chain", 15.0, 0.75), ("a", 4.0, 0.2)]
    assert isinstance(top.rows[0].locations, list)
    assert [(one.tenant, one.seconds) for one in top.rows[0].locations] == list(reversed(chain.items()))[:LOCATIONS_MAX]

    await top.note({"top-1": {"a": {"a-1": 1.0}, "b": {"b-1": 2.0, "b-2": 1.0}}, "top-2": {"a": {"a-1": 2.0}}})
    expected = [("b", "top-1", 3.0), ("a", "top-2", 2.0), ("a", "top-1", 1.0)]
    assert top.first() == tuple(TopBusiness(*one) for one in expected)
    assert top.rows[1].json() == {"shardId": "top-2", "businessId": "a", "seconds": 2.0, "share": 1.0} | {
        "locations": [{"tenant": "a-1", "seconds": 2.0}]
    }
    for shard_id in ("top-1", "top-2"):
        instruments.remove_shard(shard_id)


async def test_metrics_have_ranks_and_no_names() -> None:
    top = TopBusinesses()
    await top.note({"ranked-1": {"a": {"a-1": 1.0}, "b": {"b-1": 2.0, "b-2": 1.0}, "small": {"small-1": 0.25}}})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [3.0, 1.0, 0.25] + [0.0] * 7

    await top.note({"ranked-1": {}})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [0.0] * 10
    assert (top.rows, top.first()) == ([], ())
    instruments.remove_shard("ranked-1")
    assert metric("ranked-1", 1) is None
