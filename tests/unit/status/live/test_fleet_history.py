from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from simplu_worker.status.history import (
    DAY_POINTS_MAX,
    FOLDED,
    INTERVAL_S,
    POINTS_MAX,
    FleetHistory,
    FleetPoint,
    fleet_point,
    fold,
)

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
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
    _, day = history.view()
    assert (day.lag_seconds, day.records_per_second) == ([19.0, 20.0], [9.5, 20.0])
    for number in range(FOLDED + 1, (DAY_POINTS_MAX + 2) * FOLDED):
        history.note(point(number))
    assert len(history.view()[1].at) == DAY_POINTS_MAX


def test_fold_of_unknown_points_is_unknown() -> None:
    assert fold([UNKNOWN, point(1)]) == point(1)
    assert fold([point(0, held_targets=2.0), point(1)]).held_targets == 2.0
