"""How far a whole stream is read for a tenant, by the rows of the lease table. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.shard_tree import first_hole
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.shards.types import Absence

OTHER_REPLICA: Final = "other_replica"  # the replica that holds the tenant knows why


class ReadStatus(msgspec.Struct, frozen=True, gc=False):
    """How far a stream is read for a tenant.

    Everything that arrived before *up_to* is decided; None while that is unknown, and while the tenant is held.
    *held_in* are the stream shards with the tenant in their list of held tenants.
    """

    up_to: datetime | None
    held_in: tuple[str, ...] = ()


def read_status(leases: Iterable[Lease], tenant_id: str | None) -> ReadStatus:
    """Return the status for a tenant, or with None for all tenants together.

    A stream shard that is read to its end constrains only the tenants that its row lists as pending. While rows are
    missing, of stream shards that no replica reads yet, the time is unknown.
    """
    readings: list[Lease] = []
    held_in: list[str] = []
    for lease in leases:
        if lease.checkpoint == SHARD_END:
            continue
        listed = lease.pending_tenants or (lease.ahead.held if lease.ahead is not None else None)
        if listed is not None and _may_contain(listed, tenant_id):
            held_in.append(lease.lease_key)
        elif lease.pending_tenants is None:
            readings.append(lease)
    instants = [lease.read_up_to for lease in readings if lease.read_up_to is not None]
    ranges = [lease.hash_range for lease in readings if lease.hash_range is not None]
    is_known = not held_in and len(instants) == len(ranges) == len(readings) and first_hole(ranges) is None
    return ReadStatus(min(instants) if is_known else None, tuple(held_in))


def hold_reason(home: str | Absence | None, status: ReadStatus | None) -> str | None:
    """Return why a tenant is held, as far as its *home* and the lease table show it; None where it is not held.

    Without a home nothing of it can be applied, and nothing that a shard says of it is new.
    """
    if isinstance(home, Absence):
        return home
    return OTHER_REPLICA if status is not None and status.held_in else None


def _may_contain(listed: Collection[str], tenant_id: str | None) -> bool:
    """Return whether a list of a row has the tenant; also when the list cannot be read."""
    if tenant_id is None:
        return True
    try:
        return tenant_id in TenantSet.decode(listed)
    except ValueError:
        return True
