"""Why and since when the operations of a tenant are held, as the replicas have reported it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.commands.stream.show import Undecided, with_report
from simplu_worker.consumers.kinesis.leases.lease import HeldTarget, Lease, LeaseReport
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def lease(*held: HeldTarget) -> Lease:
    return Lease("shardId-0", TRIM_HORIZON, owner="me", report=LeaseReport("me", held=held))


@pytest.mark.parametrize(
    ("leases", "shard_id", "expected"),
    [
        ([lease(HeldTarget("tenant b-l", "paused", 60.0))], "s", ("paused", "tenant b-l", 60)),
        ([lease(HeldTarget("shard s", "shard_unavailable", 5.0))], "s", ("shard_unavailable", "shard s", 5)),
        (
            [lease(HeldTarget("tenant b-l", "failing", 5.0)), lease(HeldTarget("shard s", "gap", 9.0))],
            "s",
            ("gap", "shard s", 9),
        ),
    ],
)
def test_report_has_the_reason_and_the_time(leases: list[Lease], shard_id: str, expected: tuple[str, str, int]) -> None:
    reason, target, age_s = expected
    found = with_report(Undecided("other_replica"), leases, "b-l", shard_id, now=NOW)
    assert found == Undecided(reason, since=NOW - timedelta(seconds=age_s), target=target)
