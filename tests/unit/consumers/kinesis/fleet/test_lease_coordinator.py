"""The states of leases that a replica does not hold, as the status shows them; what is remembered of leases."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from simplu_worker.consumers.kinesis.fleet.lease_coordinator import LeaseCoordinator, Replica
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseHolder
from simplu_worker.consumers.kinesis.leases.balancing import Reach
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


async def test_failures_of_a_reader_are_forgotten_when_its_lease_is_gone() -> None:
    view = StreamView()
    lease = Lease("a", TRIM_HORIZON)
    view.update([lease], now=0.0)

    async def take(lease: Lease, me: str, *, start_at: object) -> Lease:
        return lease

    async def run(stopping: asyncio.Event) -> None:
        """Return at once: the reader failed."""

    holder = cast("LeaseHolder", SimpleNamespace(lease_key="a", run=run, has_failed=True))
    coordinator = LeaseCoordinator(
        cast("LeaseTable", SimpleNamespace(name="leases", take=take, begin=None)),
        view,
        cast("Replica", SimpleNamespace(create_holder=lambda _: holder, pinned_start=lambda _: None)),
        me="me",
        lease_duration_s=10,
        draw=lambda: 0.5,
    )
    async with asyncio.TaskGroup() as tasks:
        await coordinator.take(tasks, asyncio.Event(), Reach.ALL)
    assert (coordinator.are_all_failing, list(coordinator._failures)) == (True, ["a"])
    view.update([], now=1.0)
    async with asyncio.TaskGroup() as tasks:
        await coordinator.take(tasks, asyncio.Event(), Reach.ALL)
    assert coordinator._failures == {}
