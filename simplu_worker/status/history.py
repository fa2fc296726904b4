"""The last hour and day of a replica and its fleet, for charts: a fixed number of points. Pure.

What is not known is None, and a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, Final, NamedTuple

from simplu_worker.consumers.kinesis.leases.lease import ReplicaFigures
from simplu_worker.status import answers
from simplu_worker.vocabulary import StreamShardState

INTERVAL_S: Final = 30.0
POINTS_MAX: Final = 120  # an hour
HIGH: Final = 0.99


class Figures:
    """The p99 latency of the last interval, and the dead letters of the last hour: what other replicas are told.

    *bounds_s* are those of the buckets of latencies.
    """

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._latency: Sequence[int] = ()
        self._p99_s: float | None = None
        self._dead_letters: deque[int] = deque(maxlen=POINTS_MAX + 1)

    def note(self, latency: Sequence[int], dead_letters: int) -> None:
        """Note the counts at the end of an interval: of each bucket, that of the rest last, and of dead letters."""
        if self._dead_letters:
            counts = [new - old for old, new in zip(self._latency, latency, strict=True)]
            self._p99_s = quantile(HIGH, counts, self._bounds_s)
        self._latency = latency
        self._dead_letters.append(dead_letters)

    def view(self) -> ReplicaFigures:
        """Return the figures, which are unknown before the end of the first interval."""
        if len(self._dead_letters) <= 1:
            return ReplicaFigures()
        return ReplicaFigures(self._p99_s, self._dead_letters[-1] - self._dead_letters[0])


def quantile(share: float, counts: Sequence[int], bounds_s: Sequence[float]) -> float | None:
    """Return the bound of the bucket with the latency that *share* of the operations do not exceed.

    *counts* are those up to each bound, and of the rest, for which the last bound stands. None without operations.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    passed = accumulate(counts)
    return next((bound_s for count, bound_s in zip(passed, bounds_s, strict=False) if count >= wanted), bounds_s[-1])


DAY_INTERVAL_S: Final = 600.0
DAY_POINTS_MAX: Final = 144
FOLDED: Final = round(DAY_INTERVAL_S / INTERVAL_S)  # points of the hour in one of the day


class FleetPoint(NamedTuple):
    """A fleet at a moment, in seconds since 1970; *dead_letters* of the hour before."""

    at: int
    records_per_second: float | None
    lag_seconds: float | None
    latency_p99_seconds: float | None
    held_targets: float | None
    dead_letters: float | None
    replicas: float | None


def fleet_point(report: Mapping[str, Any], at: datetime) -> FleetPoint:
    """Return the point of a report, the members of `/fleet`."""
    rows = [one for one in report["streamShards"] if one["owner"] is not None]
    replicas = [one for one in report["replicas"] if not one["isSilent"]]
    return FleetPoint(
        round(at.timestamp()),
        _combined(sum, (one["recordsPerSecond"] for one in rows)),
        _combined(max, (one["lagSeconds"] for one in rows)),
        _combined(max, (one["latencyP99Seconds"] for one in replicas)),
        _combined(sum, (one["heldTargets"] for one in replicas)),
        _combined(sum, (one["deadLetters"] for one in replicas)),
        float(len(replicas)),
    )


class FleetHistory:
    """The points of the last hour and day, the oldest first."""

    def __init__(self) -> None:
        self._hour: deque[FleetPoint] = deque(maxlen=POINTS_MAX)
        self._day: deque[FleetPoint] = deque(maxlen=DAY_POINTS_MAX)
        self._unfolded: list[FleetPoint] = []

    def note(self, point: FleetPoint) -> None:
        """Add a point, INTERVAL_S after the last one."""
        self._hour.append(point)
        self._unfolded.append(point)
        if len(self._unfolded) == FOLDED:
            self._day.append(fold(self._unfolded))
            self._unfolded = []

    def view(self) -> tuple[answers.FleetPoints, answers.FleetPoints]:
        """Return the points of the hour and of the day."""
        days = [*self._day, *([fold(self._unfolded)] if self._unfolded else [])]
        return _lists(self._hour, INTERVAL_S), _lists(days, DAY_INTERVAL_S)


def fold(points: Sequence[FleetPoint]) -> FleetPoint:
    """Return the mean rate and the highest of all else, as of the last point."""
    columns = [[value for value in column if value is not None] for column in zip(*points, strict=True)]
    highest = FleetPoint(points[-1].at, *(max(known, default=None) for known in columns[1:]))
    rates = [one.records_per_second for one in points if one.records_per_second is not None]
    return highest._replace(records_per_second=round(sum(rates) / len(rates), 4) if rates else None)


def _lists(points: Iterable[FleetPoint], interval_s: float) -> answers.FleetPoints:
    lists: dict[str, Any] = {name: [getattr(one, name) for one in points] for name in FleetPoint._fields}
    return answers.FleetPoints(interval_s, **lists)


def _combined(combine: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(combine(known), 4) if known else None


STREAM_SHARDS_MAX: Final = 256


class StreamHistory:
    """The points of each stream shard; of more than STREAM_SHARDS_MAX the furthest behind."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float | None, float | None]]] = {}  # lag and rate
        self.noted_at: str | None = None  # the time of the last points

    def note(self, stream_shards: Iterable[Mapping[str, Any]], at: datetime) -> None:
        """Add a point of each row of `/fleet`; ended and gone ones are dropped.

        A stream shard keeps its place until then, so its points have no holes.
        """
        rows = [row for row in stream_shards if row["state"] != StreamShardState.ENDED]
        rows.sort(key=lambda row: (row["streamShard"] not in self._points, -(row["lagSeconds"] or 0.0)))
        before, self.noted_at = self._points, at.isoformat(timespec="seconds")
        self._points = {}
        for row in rows[:STREAM_SHARDS_MAX]:
            points = self._points[row["streamShard"]] = before.get(row["streamShard"]) or deque(maxlen=POINTS_MAX)
            points.append((row["lagSeconds"], row["recordsPerSecond"]))

    def view(self) -> list[answers.StreamPoints]:
        """Return the points of each stream shard."""
        return [
            answers.StreamPoints(name, [lag_s for lag_s, _ in points], [rate for _, rate in points])
            for name, points in sorted(self._points.items())
        ]
