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


class ReadRates:
    """The records a second of each stream shard since the last point, by counts: a burst between two is not missed."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[str | None, int, float]] = {}  # by stream shard: owner, count, time

    def __repr__(self) -> str:
        return f"ReadRates({len(self._counts)} stream shards)"

    def note(self, rows: Iterable[Mapping[str, Any]], *, now: float) -> list[dict[str, Any]]:
        """Return *rows* of `/fleet` with these rates; *now* is monotonic. The first time a row keeps its own."""
        before, self._counts = self._counts, {}
        return [dict(row) | self._note(row, before, now) for row in rows]

    def _note(
        self, row: Mapping[str, Any], before: Mapping[str, tuple[str | None, int, float]], now: float
    ) -> dict[str, float]:
        key, owner, count = row["streamShard"], row["owner"], row["recordsRead"]
        known = before.get(key)
        if count is None:
            if known is not None:
                self._counts[key] = known
            return {}
        self._counts[key] = owner, count, now
        if known is None or now <= known[2]:
            return {}
        counted = known[1] if known[0] == owner and known[1] <= count else 0  # another reader begins at none
        return {"recordsPerSecond": (count - counted) / (now - known[2])}


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
