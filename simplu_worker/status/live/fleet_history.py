"""The last hour and the last day of a fleet, for charts: a fixed number of points in memory. Pure.

A replica notes what it sees of the fleet, so its history begins with it. What is not known is None, and a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from simplu_worker.status.live.history import INTERVAL_S, POINTS_MAX

DAY_INTERVAL_S: Final = 600.0
DAY_POINTS_MAX: Final = 144
FOLDED: Final = round(DAY_INTERVAL_S / INTERVAL_S)  # points of the hour in one of the day


class FleetPoint(NamedTuple):
    """A fleet at a moment; *dead_letters* are those of the hour before."""

    at: datetime
    records_per_s: float | None
    lag_s: float | None
    latency_p99_s: float | None
    held_targets: float | None
    dead_letters: float | None
    replicas: float | None


def fleet_point(report: Mapping[str, Any], at: datetime) -> FleetPoint:
    """Return the point of a report, the members `replicas` and `streamShards` of `/fleet`."""
    rows = [one for one in report["streamShards"] if one["owner"] is not None]
    replicas = [one for one in report["replicas"] if not one["isSilent"]]
    return FleetPoint(
        at,
        _combined(sum, (one["recordsPerSecond"] for one in rows)),
        _combined(max, (one["lagSeconds"] for one in rows)),
        _combined(max, (one["latencyP99Seconds"] for one in replicas)),
        _combined(sum, (one["heldTargets"] for one in replicas)),
        _combined(sum, (one["deadLetters"] for one in replicas)),
        float(len(replicas)),
    )


class FleetHistory:
    """The points of the last hour, and of the last day, the oldest first."""

    def __init__(self) -> None:
        self._hour: deque[FleetPoint] = deque(maxlen=POINTS_MAX)
        self._day: deque[FleetPoint] = deque(maxlen=DAY_POINTS_MAX)
        self._unfolded: list[FleetPoint] = []

    def __repr__(self) -> str:
        return f"FleetHistory({len(self._hour)} of the hour, {len(self._day)} of the day)"

    def note(self, point: FleetPoint) -> None:
        """Add a point, INTERVAL_S after the last one."""
        self._hour.append(point)
        self._unfolded.append(point)
        if len(self._unfolded) == FOLDED:
            self._day.append(fold(self._unfolded))
            self._unfolded = []

    def view(self) -> dict[str, Any]:
        """Return the points as JSON members; the day ends with what is not a whole point yet."""
        day = [*self._day, *([fold(self._unfolded)] if self._unfolded else [])]
        return {"hour": _lists(self._hour, INTERVAL_S), "day": _lists(day, DAY_INTERVAL_S)}


def fold(points: Sequence[FleetPoint]) -> FleetPoint:
    """Return one point for *points*: the mean rate, and the highest of all else, as of the last one."""
    rates = [one.records_per_s for one in points if one.records_per_s is not None]
    return FleetPoint(
        points[-1].at,
        sum(rates) / len(rates) if rates else None,
        _combined(max, (one.lag_s for one in points)),
        _combined(max, (one.latency_p99_s for one in points)),
        _combined(max, (one.held_targets for one in points)),
        _combined(max, (one.dead_letters for one in points)),
        _combined(max, (one.replicas for one in points)),
    )


def _lists(points: Iterable[FleetPoint], interval_s: float) -> dict[str, Any]:
    """Return the members of *points* as lists; `at` are the times, in seconds since 1970."""
    points = list(points)
    return {
        "intervalSeconds": interval_s,
        "at": [round(one.at.timestamp()) for one in points],
        "recordsPerSecond": [_rounded(one.records_per_s) for one in points],
        "lagSeconds": [_rounded(one.lag_s) for one in points],
        "latencyP99Seconds": [_rounded(one.latency_p99_s) for one in points],
        "heldTargets": [_rounded(one.held_targets) for one in points],
        "deadLetters": [_rounded(one.dead_letters) for one in points],
        "replicas": [_rounded(one.replicas) for one in points],
    }


def _combined(combine: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return combine(known) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
