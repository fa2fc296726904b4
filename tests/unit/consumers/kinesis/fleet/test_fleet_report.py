from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from simplu_worker.consumers.kinesis.fleet.fleet_report import fleet_report
from simplu_worker.consumers.kinesis.leases.lease import (
    HeldTarget,
    Lease,
    LeaseReport,
    Observation,
    ReplicaFigures,
    TopBusiness,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.vocabulary import HoldReason

ME, OTHER, KCL = "me:1:a", "other:2:b", "kcl-worker"
FIGURES = ReplicaFigures(0.75, 4)
UP_TO = datetime(2026, 11, 23, 12, tzinfo=UTC)


def lease(key: str, owner: str | None, **more: Any) -> Lease:
    metered_by = None if owner == KCL else owner
    return Lease(key, Position(17), owner=owner, metered_by=metered_by, throughput_kbps=2.5, **more)


def report_of(
    *leases: tuple[Lease, float],
    me: ReplicaFigures = ReplicaFigures(0.25, 2),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    observations = {one.lease_key: Observation(one, seen_at) for one, seen_at in leases}
    replica = LeaseReport(ME, "2", me)
    states = {"a": "reading", "c": "unowned"}
    return fleet_report(observations, states, replica, now=100.0)


def test_replica_has_the_sums_of_its_leases_and_the_highest_lag() -> None:
    found = report_of(
        (lease("a", ME, report=LeaseReport(ME, "2", lag_s=0.25, records_per_s=10.0, held_count=2)), 99.0),
        (
            lease(
                "b",
                OTHER,
                report=LeaseReport(OTHER, "1", lag_s=0.5, records_per_s=20.0, held_count=1, read_count=7),
                read_up_to=UP_TO,
            ),
            97.5,
        ),
        (lease("d", OTHER, report=LeaseReport(OTHER, "1", FIGURES, lag_s=4.0, records_per_s=30.0, held_count=0)), 98.5),
    )
    first, second = found["replicas"]
    assert first == {
        "replica": ME,
        "isThis": True,
        "version": "2",
        "leases": 1,
        "lagSeconds": 0.25,
        "recordsPerSecond": 10.0,
        "readKBps": 2.5,
        "latencyP99Seconds": 0.25,
        "deadLetters": 2,
        "unable": None,
        "heldTargets": 2,
        "held": [],
        "topBusinesses": [],
        "seenSecondsAgo": 0.0,
        "isSilent": False,
    }
    assert second == {
        "replica": OTHER,
        "isThis": False,
        "version": "1",
        "leases": 2,
        "lagSeconds": 4.0,
        "recordsPerSecond": 50.0,
        "readKBps": 5.0,
        "latencyP99Seconds": 0.75,
        "deadLetters": 4,
        "unable": None,
        "heldTargets": 1,
        "held": [],
        "topBusinesses": [],
        "seenSecondsAgo": 1.5,
        "isSilent": False,
    }
    assert found["streamShards"][1] == {
        "streamShard": "b",
        "owner": OTHER,
        "state": "elsewhere",
        "lagSeconds": 0.5,
        "recordsPerSecond": 20.0,
        "recordsRead": 7,
        "readKBps": 2.5,
        "heldTargets": 1,
        "readUpTo": "2026-11-23T12:00:00.000+00:00",
        "checkpoint": "17",
        "seenSecondsAgo": 2.5,
        "isSilent": False,
    }
    assert found["counts"] == {"replicas": 2, "leases": 3, "unowned": 0, "ended": 0}


def test_numbers_of_a_silent_replica_are_not_known() -> None:
    held = (HeldTarget("tenant t", HoldReason.GAP, 1.0),)
    report = LeaseReport(OTHER, "1", FIGURES, lag_s=0.0, records_per_s=21.0, held_count=1, held=held)
    found = report_of((lease("b", OTHER, report=report), 89.5))
    row, replica = found["streamShards"][0], found["replicas"][1]
    names = ("lagSeconds", "recordsPerSecond", "readKBps", "heldTargets")
    assert [one[name] for one in (row, replica) for name in names] == [None] * 8
    assert (replica["latencyP99Seconds"], replica["deadLetters"], replica["version"]) == (None, None, "1")
    assert (row["isSilent"], replica["isSilent"], len(replica["held"])) == (True, True, 1)


def test_replica_has_its_oldest_held_targets() -> None:
    rows = {
        key: LeaseReport(
            OTHER,
            "1",
            held=(HeldTarget(f"shard {key}", HoldReason.GAP, age_s), HeldTarget("tenant t", HoldReason.MOVING, 1)),
        )
        for key, age_s in (("b", 10.0), ("d", 30.0))
    }
    found = report_of(
        (lease("a", ME, report=LeaseReport(ME, held=(HeldTarget("shard a", HoldReason.GAP, 5.0),))), 98.0),
        *((lease(key, OTHER, report=report), 98.0) for key, report in rows.items()),
        (lease("e", None, report=LeaseReport(OTHER, held=(HeldTarget("shard e", HoldReason.GAP, 99.0),))), 98.0),
    )
    own, other = (one["held"] for one in found["replicas"])
    assert own == [{"streamShard": "a", "target": "shard a", "reason": "gap", "ageSeconds": 7.0}]
    assert [(one["streamShard"], one["target"], one["ageSeconds"]) for one in other] == [
        ("d", "shard d", 32.0),
        ("b", "shard b", 12.0),
        ("b", "tenant t", 3.0),
    ]


def test_replica_without_a_stream_is_alone_in_its_report() -> None:
    found = fleet_report({}, {}, LeaseReport(ME, "2"), now=0.0)
    (one,) = found["replicas"]
    assert (one["replica"], one["isThis"], one["version"], one["leases"], one["isSilent"]) == (ME, True, "2", 0, False)
    assert (found["streamShards"], found["counts"]) == ([], {"replicas": 1, "leases": 0, "unowned": 0, "ended": 0})


def test_states_are_those_of_the_replica_and_of_the_rows() -> None:
    held = (HeldTarget("tenant t", HoldReason.GAP, 1.0),)
    ended = structs.replace(lease("e", OTHER, report=LeaseReport(OTHER, "1", held=held)), checkpoint=SHARD_END)
    found = report_of(
        (lease("a", ME), 100.5),
        (lease("b", OTHER), 90.0),
        (lease("c", None, report=LeaseReport(OTHER, "1", held=held)), 10.0),
        (lease("d", KCL), 100.0),
        (ended, 10.0),
    )
    names = ("streamShard", "owner", "state", "readKBps", "isSilent", "seenSecondsAgo")
    assert [tuple(one[name] for name in names) for one in found["streamShards"]] == [
        ("a", ME, "reading", 2.5, False, 0.0),
        ("b", OTHER, "elsewhere", 2.5, False, 10.0),
        ("c", None, "unowned", None, False, 90.0),
        ("d", KCL, "elsewhere", None, False, 0.0),
        ("e", None, "ended", None, False, 90.0),
    ]
    assert found["counts"] == {"replicas": 3, "leases": 3, "unowned": 1, "ended": 1}
    replicas = [(one["replica"], one["version"], one["held"], one["seenSecondsAgo"]) for one in found["replicas"]]
    assert replicas == [(ME, "2", [], 0.0), (KCL, None, [], 0.0), (OTHER, "1", [], 10.0)]


def test_replica_is_silent_once_all_of_its_leases_are() -> None:
    found = report_of(
        (lease("a", ME), 1.0), (lease("b", OTHER), 1.0), (lease("d", OTHER), 99.0), (lease("f", KCL), 1.0)
    )
    assert [(one["replica"], one["isSilent"]) for one in found["replicas"]] == [
        (ME, False),
        (KCL, True),
        (OTHER, False),
    ]


def test_top_businesses_are_those_of_the_last_report_of_a_replica() -> None:
    reports = [
        LeaseReport(OTHER, "1", ReplicaFigures(top=(TopBusiness("t", shard, took_s),)))
        for shard, took_s in (("x", 1.0), ("y", 2.00049))
    ]
    found = report_of((lease("b", OTHER, report=reports[1]), 99.0), (lease("d", OTHER, report=reports[0]), 98.0))
    assert found["replicas"][1]["topBusinesses"] == [{"shardId": "y", "businessId": "t", "seconds": 2.0}]


def test_age_of_a_hold_grows_since_it_was_told() -> None:
    report = LeaseReport(OTHER, "1", held=(HeldTarget("tenant t", HoldReason.GAP, 1.0),))
    ages = [
        report_of((lease("b", OTHER, report=report), seen_at))["replicas"][1]["held"][0]["ageSeconds"]
        for seen_at in (101.0, 99.5)
    ]
    assert ages == [1.0, 1.5]
