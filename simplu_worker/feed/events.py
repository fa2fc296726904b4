"""The events of a row of the log. Pure.

A row may be no event at all: an operation that failed, or only reads; a copy that a move makes; the mark of a
departure, for which the feed of the target waits. A tenant that is made leaves one row, which tells of the tenant and
of its default row.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from simplu_worker.feed.places import HeldTenant, Place
from simplu_worker.feed.types import EventBounds, FeedEvent, FeedTenant, Incarnation
from simplu_worker.shards.apply.durability import Server
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
NO_INCARNATION: Final = Incarnation("")


class LogRow(NamedTuple):
    """A row of `read_feed`. Columns are null of a batch without rows, and of a tenant that is not there any more."""

    timeline: str
    started_at: datetime
    forgotten: int | None
    forgotten_at: datetime | None
    batch_id: int
    position: int
    completed_at: datetime
    token: str
    batch_kind: str
    epoch: int | None
    origin: str | None
    kind: str | None
    resource_type: str | None
    resource_key: bytes | None
    request_key: bytes | None
    is_failed: bool | None
    tenant_no: int | None
    tenant_id: str | None
    business_id: str
    location_id: str
    business_type: str

    @property
    def server(self) -> Server:
        """The run of the server that the row was read from."""
        return Server(self.timeline, self.started_at)


class ReadRow(msgspec.Struct, frozen=True):
    """A row of the log, with its place, its events, and what decides whether they are sent now."""

    place: Place
    token: str
    tenant_no: int | None
    events: tuple[FeedEvent, ...] = ()
    arrival: HeldTenant | None = None  # the tenant came here with this row


def read_row(row: LogRow, shard_id: str) -> ReadRow:
    """Return what a row of the log tells."""
    place = Place(row.batch_id, row.position)
    if row.tenant_id is None:  # it was made here by mistake, and unmade
        return ReadRow(place, row.token, row.tenant_no)
    arrival = None
    if row.batch_kind == ARRIVAL and row.origin is not None and row.tenant_no is not None and row.epoch is not None:
        before = place.before
        arrival = HeldTenant(row.tenant_no, row.tenant_id, row.epoch, row.origin, before.batch_id, before.position)
    return ReadRow(place, row.token, row.tenant_no, tuple(_events_of(row, shard_id)), arrival)


def _events_of(row: LogRow, shard_id: str) -> Iterator[FeedEvent]:
    if row.kind is None:
        kind = _kind_of_batch(row.batch_kind, row.origin)
        if kind is not None:
            yield _event(row, shard_id, kind)
    elif row.kind == MARK:
        if row.origin == MarkOrigin.CREATION:
            yield _event(row, shard_id, FeedKind.TENANT_CREATED, suffix="-tenant")
            yield _event(row, shard_id, FeedKind.RESOURCE_CREATED)
        else:
            yield _event(row, shard_id, FeedKind.RESOURCE_CHANGED)
    elif not row.is_failed and (kind := OPERATIONS.get(row.kind.lower())) is not None:  # in capitals: see the table
        yield _event(row, shard_id, kind)


def _kind_of_batch(kind: str, origin: str | None) -> FeedKind | None:
    match kind, origin:
        case (BulkChange.COPIED, BulkOrigin.RESTORE | BulkOrigin.UNREAD) | (BulkChange.IMPORTED, _):
            return FeedKind.TENANT_REPLACED
        case BulkChange.DESTROYED, BulkOrigin.END:
            return FeedKind.TENANT_DESTROYED
        case "a", _:
            return FeedKind.TENANT_MOVED
    return None


def _event(row: LogRow, shard_id: str, kind: FeedKind, *, suffix: str = "") -> FeedEvent:
    is_of_resource = kind in RESOURCE_KINDS
    return FeedEvent(
        id=f"{row.token}-{row.position}{suffix}",
        kind=kind,
        shard_id=shard_id,
        time=row.completed_at,
        position=f"{row.batch_id}-{row.position}",
        incarnation=NO_INCARNATION,
        tenant=FeedTenant(row.tenant_id or "", row.business_id, row.location_id, row.business_type),
        resource_type=row.resource_type if is_of_resource else None,
        resource_id=id_of_key(row.resource_key) if is_of_resource and row.resource_key is not None else None,
        request_id=None if row.request_key is None else id_of_key(row.request_key),
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
