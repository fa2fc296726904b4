"""The last hour of each stream shard of the fleet, for small charts: a fixed number of points in memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from simplu_worker.status.live.history import INTERVAL_S, POINTS_MAX
from simplu_worker.vocabulary import StreamShardState

STREAM_SHARDS_MAX: Final = 256


class StreamPoint(NamedTuple):
    """A stream shard at a moment."""

    lag_s: float | None
    records_per_s: float | None


class StreamHistory:
    """The points of each stream shard, the oldest first; of more than STREAM_SHARDS_MAX the furthest behind."""

    def __init__(self) -> None:
        self._points: dict[str, deque[StreamPoint]] = {}
        self._noted_at: datetime | None = None

    def __repr__(self) -> str:
        return f"StreamHistory({len(self._points)} stream shards)"

    def note(self, stream_shards: Iterable[Mapping[str, Any]], at: datetime) -> None:
        """Add a point of each of *stream_shards*, rows of `/fleet`; those that have ended or gone are dropped.

        A stream shard keeps its place until then, so that its points have no holes.
        """
        rows = [row for row in stream_shards if row["state"] != StreamShardState.ENDED]
        rows.sort(key=lambda row: (row["streamShard"] not in self._points, -(row["lagSeconds"] or 0.0)))
        before, self._noted_at = self._points, at
        self._points = {}
        for row in rows[:STREAM_SHARDS_MAX]:
            points = self._points[row["streamShard"]] = before.get(row["streamShard"]) or deque(maxlen=POINTS_MAX)
            points.append(StreamPoint(row["lagSeconds"], row["recordsPerSecond"]))

    def view(self) -> dict[str, Any]:
        """Return the points as JSON members; the last one of each stream shard is of the time `at`."""
        return {
            "intervalSeconds": INTERVAL_S,
            "at": None if self._noted_at is None else self._noted_at.isoformat(timespec="seconds"),
            "streamShards": [
                {
                    "streamShard": name,
                    "lagSeconds": [point.lag_s for point in points],
                    "recordsPerSecond": [point.records_per_s for point in points],
                }
                for name, points in sorted(self._points.items())
            ],
        }
