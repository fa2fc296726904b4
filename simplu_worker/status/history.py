"""The last hour and day of a replica and its fleet, for charts: a fixed number of points. Pure.

What is not known is None, and a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import ReplicaFigures
from simplu_worker.status import answers
from simplu_worker.vocabulary import StreamShardState

INTERVAL_S: Final = 30.0
POINTS_MAX: Final = 120  # an hour
MEDIAN: Final = 0.5
HIGH: Final = 0.99


class Totals(msgspec.Struct, frozen=True):
    """Counters and gauges of a moment; *latency* has the count of each bucket, that of the rest last."""

    operations: float
    failed: float
    dead_letters: float
    latency: Sequence[int]
    lag_s: float | None
    held_count: int


class HistoryPoint(NamedTuple):
    """An interval, as lists of the answer. A latency is the bound below which it was, None without an operation."""

    operations_per_second: float
    failed_per_second: float
    dead_letters: int
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    lag_seconds: float | None
    held_targets: int


class History:
    """The points of the last hour, the oldest first; *bounds_s* are those of buckets."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._points: deque[HistoryPoint] = deque(maxlen=POINTS_MAX)
        self._last: tuple[float, Totals] | None = None
        self._last_at: datetime | None = None

    def note(self, totals: Totals, *, now: float, at: datetime) -> None:
        """Add the interval since the last call, which ends *now* (monotonic), at the time *at*."""
        if self._last is not None and now > self._last[0]:
            before_at, before = self._last
            self._points.append(point_between(before, totals, passed_s=now - before_at, bounds_s=self._bounds_s))
        self._last, self._last_at = (now, totals), at

    def figures(self) -> ReplicaFigures:
        """Return the last p99 latency and all dead letters; unknown before the first point."""
        if not self._points:
            return ReplicaFigures()
        dead_letter_count = sum(point.dead_letters for point in self._points)
        return ReplicaFigures(self._points[-1].latency_p99_seconds, dead_letter_count)

    def view(self) -> answers.History:
        """Return the points: one list for each quantity."""
        points = list(self._points)
        last_at = self._last_at
        begin = None if last_at is None else last_at - timedelta(seconds=INTERVAL_S * max(len(points) - 1, 0))
        return answers.History(
            interval_seconds=INTERVAL_S,
            from_=None if begin is None else begin.isoformat(timespec="seconds"),
            **_lists(HistoryPoint, points),
        )


def _lists(kind: type[HistoryPoint | FleetPoint], points: Iterable[HistoryPoint | FleetPoint]) -> dict[str, Any]:
    return {name: [getattr(one, name) for one in points] for name in kind._fields}


def point_between(before: Totals, after: Totals, *, passed_s: float, bounds_s: Sequence[float]) -> HistoryPoint:
    """Return the point between two moments, *passed_s* > 0 apart."""
    counts = [max(0, new - old) for old, new in zip(before.latency, after.latency, strict=True)]
    return HistoryPoint(
        round(max(0.0, after.operations - before.operations) / passed_s, 3),
        round(max(0.0, after.failed - before.failed) / passed_s, 3),
        max(0, int(after.dead_letters - before.dead_letters)),
        quantile(MEDIAN, counts, bounds_s),
        quantile(HIGH, counts, bounds_s),
        None if after.lag_s is None else round(after.lag_s, 4),
        after.held_count,
    )


def quantile(share: float, counts: Sequence[int], bounds_s: Sequence[float]) -> float | None:
    """Return the bound of the bucket with the latency that *share* of the operations do not exceed.

    *counts* are those up to each bound, and of the rest, for which the last bound stands. None without operations.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    passed = accumulate(counts)
    return next((bound_s for count, bound_s in zip(passed, bounds_s, strict=False) if count >= wanted), bounds_s[-1])


def totals_of(
    operations: Mapping[str, float],
    dead_letters: Mapping[str, float],
    latency: Sequence[int],
    *,
    lag_s: float | None,
    held_count: int,
) -> Totals:
    """Return the totals of a moment from counters."""
    succeeded = operations.get("succeeded", 0.0)
    repeated = operations.get("duplicate", 0.0)
    total = sum(operations.values())
    return Totals(
        operations=total,
        failed=total - succeeded - repeated,
        dead_letters=sum(dead_letters.values()),
        latency=tuple(latency),
        lag_s=lag_s,
        held_count=held_count,
    )


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
        hour, day = _lists(FleetPoint, self._hour), _lists(FleetPoint, days)
        return answers.FleetPoints(INTERVAL_S, **hour), answers.FleetPoints(DAY_INTERVAL_S, **day)


def fold(points: Sequence[FleetPoint]) -> FleetPoint:
    """Return the mean rate and the highest of all else, as of the last point."""
    columns = [[value for value in column if value is not None] for column in zip(*points, strict=True)]
    highest = FleetPoint(points[-1].at, *(max(known, default=None) for known in columns[1:]))
    rates = [one.records_per_second for one in points if one.records_per_second is not None]
    return highest._replace(records_per_second=round(sum(rates) / len(rates), 4) if rates else None)


def _combined(combine: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(combine(known), 4) if known else None


STREAM_SHARDS_MAX: Final = 256


class StreamHistory:
    """The points of each stream shard; of more than STREAM_SHARDS_MAX the furthest behind."""

    def __init__(self) -> None:
        self._points: dict[str, deque[tuple[float | None, float | None]]] = {}  # lag and rate
        self._noted_at: datetime | None = None

    def note(self, stream_shards: Iterable[Mapping[str, Any]], at: datetime) -> None:
        """Add a point of each row of `/fleet`; ended and gone ones are dropped.

        A stream shard keeps its place until then, so its points have no holes.
        """
        rows = [row for row in stream_shards if row["state"] != StreamShardState.ENDED]
        rows.sort(key=lambda row: (row["streamShard"] not in self._points, -(row["lagSeconds"] or 0.0)))
        before, self._noted_at = self._points, at
        self._points = {}
        for row in rows[:STREAM_SHARDS_MAX]:
            points = self._points[row["streamShard"]] = before.get(row["streamShard"]) or deque(maxlen=POINTS_MAX)
            points.append((row["lagSeconds"], row["recordsPerSecond"]))

    @property
    def noted_at(self) -> str | None:
        """The time of the last points."""
        return None if self._noted_at is None else self._noted_at.isoformat(timespec="seconds")

    def view(self) -> list[answers.StreamPoints]:
        """Return the points of each stream shard."""
        return [
            answers.StreamPoints(name, [lag_s for lag_s, _ in points], [rate for _, rate in points])
            for name, points in sorted(self._points.items())
        ]
