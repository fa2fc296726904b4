from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from simplu_worker.status.answers import StreamPoints
from simplu_worker.status.history import POINTS_MAX, STREAM_SHARDS_MAX, StreamHistory

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def row(name: str, lag_s: float | None = None, records_per_s: float | None = None, **more: Any) -> dict[str, Any]:
    return {"streamShard": name, "state": "reading", "lagSeconds": lag_s, "recordsPerSecond": records_per_s} | more


def test_stream_shard_has_a_point_of_each_note() -> None:
    history = StreamHistory()
    assert (history.noted_at, history.view()) == (None, [])
    history.note([row("b", 1.5, 20.0), row("a"), row("c", 1.0)], NOW)
    history.note([row("a", 0.25, 3.0), row("b"), row("c", 1.0, state="ended")], NOW)
    assert history.noted_at == "2026-11-23T12:00:00+00:00"
    assert history.view() == [
        StreamPoints("a", [None, 0.25], [None, 3.0]),
        StreamPoints("b", [1.5, None], [20.0, None]),
    ]


def test_stream_shard_has_an_hour() -> None:
    history = StreamHistory()
    for number in range(POINTS_MAX + 5):
        history.note([row("a", float(number))], NOW)
    (one,) = history.view()
    assert one.lag_seconds == [float(number) for number in range(5, POINTS_MAX + 5)]


def test_stream_shards_beyond_the_bound_are_those_least_behind() -> None:
    history = StreamHistory()
    first = [row(f"s{number:03}", float(number)) for number in range(STREAM_SHARDS_MAX + 2)]
    history.note(first, NOW)
    kept = {one.stream_shard for one in history.view()}
    assert kept == {one["streamShard"] for one in first[2:]}
    history.note([row("new", 9e9), row("newer", 1.0), *first[3:]], NOW)
    assert {one.stream_shard for one in history.view()} == kept - {"s002"} | {"new"}
