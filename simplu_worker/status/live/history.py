"""The last hour of a replica, for small charts: a fixed number of points in memory. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.leases.lease_report import ReplicaFigures

INTERVAL_S: Final = 30.0
POINTS_MAX: Final = 120  # an hour
MEDIAN: Final = 0.5
HIGH: Final = 0.99


class Totals(msgspec.Struct, frozen=True):
    """The counters and gauges of a moment; *latency* has the count of each bucket, that of the rest last."""

    operations: float
    failed: float
    dead_letters: float
    latency: Sequence[int]
    lag_s: float | None
    held_count: int


class HistoryPoint(msgspec.Struct, frozen=True):
    """The interval that ends at a moment. A latency is the bound below which it was, None without an operation."""

    operations_per_s: float
    failed_per_s: float
    dead_letters: int
    latency_p50_s: float | None
    latency_p99_s: float | None
    lag_s: float | None
    held_count: int


class History:
    """The points of the last hour, the oldest first; *bounds_s* are those of the buckets of latencies."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._points: deque[HistoryPoint] = deque(maxlen=POINTS_MAX)
        self._last: tuple[float, Totals] | None = None
        self._last_at: datetime | None = None

    def __repr__(self) -> str:
        return f"History({len(self._points)} points)"

    def note(self, totals: Totals, *, now: float, at: datetime) -> None:
        """Add the point of the interval since the last call, which ends *now* (monotonic), at the time *at*."""
        if self._last is not None and now > self._last[0]:
            before_at, before = self._last
            self._points.append(point_between(before, totals, passed_s=now - before_at, bounds_s=self._bounds_s))
        self._last, self._last_at = (now, totals), at

    def figures(self) -> ReplicaFigures:
        """Return the p99 latency of the last point, and the dead letters of all; unknown before the first point."""
        if not self._points:
            return ReplicaFigures()
        dead_letter_count = sum(point.dead_letters for point in self._points)
        return ReplicaFigures(_rounded(self._points[-1].latency_p99_s), dead_letter_count)

    def view(self) -> dict[str, Any]:
        """Return the points as JSON members: one list for each quantity."""
        points = list(self._points)
        last_at = self._last_at
        begin = None if last_at is None else last_at - timedelta(seconds=INTERVAL_S * max(len(points) - 1, 0))
        return {
            "intervalSeconds": INTERVAL_S,
            "from": None if begin is None else begin.isoformat(timespec="seconds"),
            "operationsPerSecond": [round(point.operations_per_s, 3) for point in points],
            "failedPerSecond": [round(point.failed_per_s, 3) for point in points],
            "deadLetters": [point.dead_letters for point in points],
            "latencyP50Seconds": [_rounded(point.latency_p50_s) for point in points],
            "latencyP99Seconds": [_rounded(point.latency_p99_s) for point in points],
            "lagSeconds": [_rounded(point.lag_s) for point in points],
            "heldTargets": [point.held_count for point in points],
        }


def point_between(before: Totals, after: Totals, *, passed_s: float, bounds_s: Sequence[float]) -> HistoryPoint:
    """Return the point of the interval between two moments, *passed_s* > 0 apart."""
    counts = [max(0, new - old) for old, new in zip(before.latency, after.latency, strict=True)]
    return HistoryPoint(
        operations_per_s=max(0.0, after.operations - before.operations) / passed_s,
        failed_per_s=max(0.0, after.failed - before.failed) / passed_s,
        dead_letters=max(0, int(after.dead_letters - before.dead_letters)),
        latency_p50_s=quantile(MEDIAN, counts, bounds_s),
        latency_p99_s=quantile(HIGH, counts, bounds_s),
        lag_s=after.lag_s,
        held_count=after.held_count,
    )


def quantile(share: float, counts: Sequence[int], bounds_s: Sequence[float]) -> float | None:
    """Return the bound of the bucket that has the latency which *share* of the operations do not exceed.

    Where within its bucket the latency is, nobody knows. *counts* are those of the buckets up to each bound, and of the
    rest last; there the last bound is returned. None without operations.
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
    """Return the totals of a moment, from the counters by outcome and by reason."""
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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
