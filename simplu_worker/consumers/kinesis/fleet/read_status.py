"""How far a whole stream is read for a tenant, by the rows of the lease table and of its shard. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.shard_tree import first_hole
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position
from simplu_worker.shards.types import ShardPositionRows, StreamPosition
from simplu_worker.vocabulary import OTHER_REPLICA, Absence, HoldReason


class ReadStatus(msgspec.Struct, frozen=True, gc=False):
    """How far a stream is read for a tenant, or with None for all tenants together.

    *readings* are the leases of the stream shards that may still have operations of the tenant; None while rows are
    missing, and while the tenant is held. *held_in* are the stream shards that have the tenant in their list.
    """

    tenant_id: str | None
    readings: tuple[Lease, ...] | None
    held_in: tuple[str, ...] = ()

    @property
    def stream_shard_ids(self) -> tuple[str, ...]:
        """The stream shards whose rows on Postgres shards `up_to` compares."""
        return tuple(sorted({key for lease in self.readings or () for key in (lease.lease_key, *lease.parents)}))

    def up_to(self, shards: Iterable[ShardPositionRows]) -> datetime | None:
        """Return the time before which everything that arrived is decided; None while that is unknown.

        *shards* are the rows of each shard on which the tenant may live, read together with the log. What a shard has
        lost is not decided: its rows go back together with its log, and the lease table does not.
        """
        instants = [_decided_on(rows, lease, self.tenant_id) for rows in shards for lease in self.readings or ()]
        known = [instant for instant in instants if instant is not None]
        return min(known) if known and len(known) == len(instants) else None


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
    ranges = [lease.hash_range for lease in readings if lease.hash_range is not None]
    is_known = not held_in and len(ranges) == len(readings) and first_hole(ranges) is None
    return ReadStatus(tenant_id, tuple(readings) if is_known else None, tuple(held_in))


def _decided_on(rows: ShardPositionRows, lease: Lease, tenant_id: str | None) -> datetime | None:
    """Return the time before which all operations of a stream shard are decided on one shard; None if unknown."""
    row = rows.get(lease.lease_key)
    if row is None or not (row.parents_done or all(_has_ended(rows.get(key), tenant_id) for key in lease.parents)):
        return None
    is_ahead = row.read_to is not None and not _may_contain(row.held, tenant_id)
    reached = row.read_to if is_ahead and row.read_to is not None else row.pending_from
    noted = lease.checkpoint if lease.ahead is None else lease.ahead.read_to
    if lease.read_up_to is not None and (noted.is_sentinel or _position_of(reached) >= noted):
        return lease.read_up_to
    return row.read_up_to if is_ahead or row.read_to is None else None


def _has_ended(row: StreamPosition | None, tenant_id: str | None) -> bool:
    """Return whether a shard has all operations of the tenant from a parent, by its row of the parent."""
    if row is None or row.pending_from == SHARD_END.checkpoint:
        return row is not None
    return row.read_to == SHARD_END.checkpoint and not _may_contain(row.held, tenant_id)


def _position_of(text: str) -> Position:
    number, _, sub_number = text.partition("/")
    if not sub_number:
        return Position.from_checkpoint(number)
    return Position(int(number), int(sub_number))


def hold_reason(home: str | Absence | None, status: ReadStatus | None, *, is_paused: bool) -> str | None:
    """Return why a tenant is held, as far as its *home*, its row and the lease table show it; None where it is not.

    Without a home nothing of it can be applied, and nothing that a shard says of it is new.
    """
    if isinstance(home, Absence):
        return home
    if is_paused:
        return HoldReason.PAUSED
    return OTHER_REPLICA if status is not None and status.held_in else None


def _may_contain(listed: Collection[str], tenant_id: str | None) -> bool:
    """Return whether a list of a row has the tenant; also when the list cannot be read."""
    if tenant_id is None:
        return True
    try:
        return tenant_id in TenantSet.decode(listed)
    except ValueError:
        return True
