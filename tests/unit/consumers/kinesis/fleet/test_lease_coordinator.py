from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from simplu_worker.consumers.kinesis.fleet.lease_coordinator import LeaseCoordinator, Replica
from simplu_worker.consumers.kinesis.leases.lease import Lease, StreamView
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON


def test_status_tells_a_released_lease_from_one_that_is_elsewhere() -> None:
    view = StreamView()
    owners = {"a-own": "me", "b-theirs": "other", "c-free": None}
    leases = [Lease(key, TRIM_HORIZON, owner=owner) for key, owner in owners.items()]
    view.update([*leases, Lease("d-ended", SHARD_END, owner="me")], now=0.0)
    coordinator = LeaseCoordinator(
        cast("LeaseTable", SimpleNamespace(name="leases")),
        view,
        cast("Replica", None),
        me="me",
        lease_duration_s=10,
        draw=lambda: 0.5,
    )
    assert [(row["streamShard"], row["state"]) for row in coordinator.status()] == [
        ("a-own", "released"),
        ("b-theirs", "elsewhere"),
        ("c-free", "unowned"),
        ("d-ended", "ended"),
    ]
