"""The events of a row of the log. Pure.

A row may be no event at all: an operation that failed, or only reads; a copy that a move makes; the mark of a
departure, for which the feed of the target waits. A tenant that is made leaves one row, which tells of the tenant and
of its default row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from struct import unpack
from typing import Final, NamedTuple

import msgspec

from simplu_worker.feed.places import HeldTenant, Place
from simplu_worker.feed.types import EventBounds, FeedEvent, FeedTenant, Incarnation
from simplu_worker.shards.apply.durability import ReplicationFacts, facts_of
from simplu_worker.shards.log.keys import id_of_key
from simplu_worker.shards.log.marks import BulkChange, BulkOrigin, MarkOrigin
from simplu_worker.vocabulary import FeedKind

ARRIVAL: Final = "a"
MARK: Final = "m"
OPERATIONS: Final = {
    "c": FeedKind.RESOURCE_CREATED,
    "u": FeedKind.RESOURCE_UPDATED,
    "p": FeedKind.RESOURCE_PATCHED,
    "d": FeedKind.RESOURCE_DELETED,
}


class LogBatch(NamedTuple):
    """A row of `read_feed`: a batch, with its tenants that are there, and some of its rows by column, if it has any.

    Numbers of rows are in binary, which is quick to make and to read. Those in arrays are texts: for arrays of other
    types asyncpg would ask the server first.
    """

    timeline: str
    started_at: datetime
    log_position: int
    synchronous_commit: str
    synchronous_standby_names: str
    fsync: bool
    standbys: str
    forgotten: int | None
    forgotten_at: datetime | None
    batch_id: int
    completed_at: datetime
    token: str
    kind: str
    epoch: int | None
    tenant_no: int  # of the first of its tenants, and of a batch without rows the only one
    types: Sequence[str]
    origins: Sequence[str]
    tenants: Sequence[Sequence[str]]  # of each its number, what a `FeedTenant` has, and the `stored_names` of its type
    failed: Sequence[str]  # positions
    positions: bytes | None  # 2 bytes for each row
    row_tenant_nos: bytes | None  # 4 bytes
    kinds: str | None  # a letter
    types_at: bytes | None  # 2 bytes, and so on
    origins_at: bytes | None
    resources: Sequence[str | None] | None  # keys, in hexadecimal
    requests: Sequence[str] | None

    @property
    def facts(self) -> ReplicationFacts:
        """The facts of the answer."""
        return facts_of(self[:7])

    def rows(self) -> list[LogRow]:
        """Return the rows, one that has no kind if there are none."""
        tenants = {int(number): FeedTenant(*names) for number, *names, _ in self.tenants}
        if self.kinds is None:
            place, tenant = Place(self.batch_id, 0), tenants.get(self.tenant_no)
            return [LogRow(self, place, self.tenant_no, tenant, origin=self.origins[0] if self.origins else None)]
        failed = frozenset(map(int, self.failed))
        stored_names = {int(one[0]): one[-1] for one in self.tenants}
        small, large = f">{len(self.kinds)}h", f">{len(self.kinds)}i"
        return [
            LogRow(
                self,
                Place(self.batch_id, position),
                number,
                tenants.get(number),
                kind,
                self.types[type_at - 1],
                self.origins[origin_at - 1],
                resource,
                request,
                position in failed,
                _other_names(stored_names.get(number, "{}"), self.types[type_at - 1]),
            )
            for position, number, kind, type_at, origin_at, resource, request in zip(
                unpack(small, self.positions or b""),
                unpack(large, self.row_tenant_nos or b""),
                self.kinds,
                unpack(small, self.types_at or b""),
                unpack(small, self.origins_at or b""),
                self.resources or (),
                self.requests or (),
                strict=True,
            )
        ]


class LogRow(NamedTuple):
    """A row of the log, or what stands for a batch without rows."""

    batch: LogBatch
    place: Place
    tenant_no: int
    tenant: FeedTenant | None  # none: it was made here by mistake, and unmade
    kind: str | None = None
    resource_type: str | None = None
    origin: str | None = None
    resource: str | None = None  # the key of its id
    request: str | None = None  # the key of its id; of a mark, of something else
    is_failed: bool = False
    other_types: tuple[str, ...] = ()


@lru_cache(maxsize=1000)
def _other_names(stored_names: str, resource_type: str) -> tuple[str, ...]:
    """Return the other names of *resource_type*, which may be from before it got its present one.

    *stored_names* is JSON.
    """
    by_name: dict[str, str] = msgspec.json.decode(stored_names)
    name = by_name.get(resource_type, resource_type)
    names = (name, *(other for other, one in by_name.items() if one == name))
    return tuple(one for one in names if one != resource_type)


class ReadRow(msgspec.Struct, frozen=True):
    """A row of the log, with its place, its events, and what decides whether they are sent now."""

    place: Place
    token: str
    tenant_no: int
    events: tuple[FeedEvent, ...] = ()
    arrival: HeldTenant | None = None  # the tenant came here with this row


def read_row(row: LogRow, shard_id: str, incarnation: Incarnation) -> ReadRow:
    """Return what a row of the log tells a destination whose events are part of *incarnation*."""
    place, batch, tenant = row.place, row.batch, row.tenant
    if tenant is None:
        return ReadRow(place, batch.token, row.tenant_no)
    arrival = None
    if batch.kind == ARRIVAL and row.origin is not None and batch.epoch is not None:
        arrival = HeldTenant(row.tenant_no, tenant.tenant_id, batch.epoch, row.origin, *place.before)
    events = tuple([_event(row, tenant, shard_id, incarnation, kind) for kind in _kinds_of(row)])
    return ReadRow(place, batch.token, row.tenant_no, events, arrival)


def _kinds_of(row: LogRow) -> tuple[FeedKind, ...]:
    if row.kind is None:
        kind = _kind_of_batch(row.batch.kind, row.origin)
    elif row.kind == MARK:
        if row.origin == MarkOrigin.CREATION:
            return FeedKind.TENANT_CREATED, FeedKind.RESOURCE_CREATED
        kind = FeedKind.RESOURCE_CHANGED
    else:
        kind = None if row.is_failed else OPERATIONS.get(row.kind.lower())  # in capitals: see the table
    return () if kind is None else (kind,)


def _kind_of_batch(kind: str, origin: str | None) -> FeedKind | None:
    match kind, origin:
        case (BulkChange.COPIED, BulkOrigin.RESTORE | BulkOrigin.UNREAD) | (BulkChange.IMPORTED, _):
            return FeedKind.TENANT_REPLACED
        case BulkChange.DESTROYED, BulkOrigin.END:
            return FeedKind.TENANT_DESTROYED
        case "a", _:
            return FeedKind.TENANT_MOVED
    return None


def _event(row: LogRow, tenant: FeedTenant, shard_id: str, incarnation: Incarnation, kind: FeedKind) -> FeedEvent:
    suffix = "-tenant" if kind is FeedKind.TENANT_CREATED else ""  # its row has another event
    resource_type = resource_id = None
    other_types: tuple[str, ...] = ()
    if kind in RESOURCE_KINDS:
        other_types = row.other_types
        resource_type, resource_id = row.resource_type, None if row.resource is None else id_of_key(row.resource)
    return FeedEvent(
        id=f"{row.batch.token}-{row.place.position}{suffix}",
        kind=kind,
        shard_id=shard_id,
        time=row.batch.completed_at,
        position=row.place.label,
        incarnation=incarnation,
        tenant=tenant,
        resource_type=resource_type,
        resource_id=resource_id,
        other_types=other_types,
        request_id=id_of_key(row.request) if row.request is not None and row.kind != MARK else None,
    )


RESOURCE_KINDS: Final = frozenset({*OPERATIONS.values(), FeedKind.RESOURCE_CHANGED})


def undone_event(event: FeedEvent, incarnation: Incarnation, at: datetime) -> FeedEvent:
    """Return the event that takes *event* back: under its key, with an id that is the same when it is made again."""
    return msgspec.structs.replace(
        event,
        id=f"{event.id}-undone-{incarnation.id}",
        kind=FeedKind.UNDONE,
        time=at,
        incarnation=incarnation,
        reapplies=None,
        undoes=event.id,
        data=None,
    )


def undone_bounds_event(shard_id: str, behind: Place, incarnation: Incarnation, at: datetime) -> FeedEvent:
    """Return the event that takes back all events of earlier incarnations behind *behind* that do not come again."""
    return FeedEvent(
        id=f"{shard_id}-undone-{incarnation.id}",
        kind=FeedKind.UNDONE,
        shard_id=shard_id,
        time=at,
        position=behind.label,
        incarnation=incarnation,
        bounds=EventBounds(behind=behind.batch_id, to_time=at),
    )


def gap_event(
    shard_id: str,
    behind: Place,
    through: int,
    through_at: datetime | None,
    incarnation: Incarnation,
    at: datetime,
    *,
    tenant: FeedTenant | None = None,
) -> FeedEvent:
    """Return the event that tells of batches that the log no longer had when the feed came to them.

    Of all tenants of the shard, or of *tenant* alone.
    """
    of_tenant = "" if tenant is None else f"{tenant.tenant_id}-"
    return FeedEvent(
        id=f"{shard_id}-gap-{of_tenant}{behind.batch_id}-{through}",
        kind=FeedKind.GAP,
        shard_id=shard_id,
        time=at,
        position=behind.label,
        incarnation=incarnation,
        tenant=tenant,
        bounds=EventBounds(behind=behind.batch_id, through=through, to_time=through_at),
    )
