from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from simplu_worker.bulkheads import current_troubles
from simplu_worker.consumers.kinesis.fleet.lease_holder import (
    HasFigures,
    LeaseAncestry,
    LeaseHolder,
    LeaseRenewer,
    ReaderMaker,
    StreamShardEnd,
)
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReplicaFigures
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON


async def test_lease_is_released_when_something_below_its_renewals_cancels_them() -> None:
    released: list[str] = []

    async def renew(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    async def release(lease: Lease, me: str, checkpoint: object, *, ahead: object) -> bool:
        released.append(f"{lease.lease_key} of {me}, checkpoint {checkpoint}")
        return True

    async def find_pending_at_parents(lease: Lease) -> None: ...

    ancestry: Any = SimpleNamespace(find_pending_at_parents=find_pending_at_parents)
    table: Any = SimpleNamespace(name="leases", renew=renew, release=release)
    holder = LeaseHolder(
        LeaseRenewer(
            cast("LeaseTable", table),
            Lease("a", TRIM_HORIZON, owner="me"),
            me="me",
            duration_s=3600.0,
            replica=cast("HasFigures", SimpleNamespace(own_figures=ReplicaFigures)),
        ),
        cast("StreamShardEnd", None),
        cast("LeaseAncestry", ancestry),
        cast("ReaderMaker", None),
        duration_s=3600.0,
    )
    holder.check()  # renews at once
    async with asyncio.timeout(10):
        await holder.run(asyncio.Event())
    assert (holder.has_failed, released) == (True, ["a of me, checkpoint None"])
    assert "RenewalsCancelledError" in next(one.error for one in current_troubles() if one.name == "a")
