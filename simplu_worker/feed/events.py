"""The changes of a shard as events of a destination. Pure.

A row of the log may be no event: an operation that failed or only reads, a copy that a move makes, the mark of a
departure. The row of a new tenant tells of the tenant and of its default row. Documents are read only as many bytes at
a time as a window may hold.

A promotion or restore that loses commits takes the row of the publisher and the cursors back with the log. Whatever was
published behind the cursor as this server has it may be lost, so a new incarnation begins, and each destination has to
take a `reset` at its cursor first; not behind the newest batch, as standbys have commits in another order than that of
their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from struct import unpack
from typing import Final, NamedTuple, TypeAlias, cast

import msgspec

from simplu_worker.feed.types import (
    Arrival,
    DestinationTerms,
    EventBounds,
    FeedEvent,
    FeedTenant,
    Place,
    Publication,
)
from simplu_worker.shards.apply.durability import ReplicationFacts, facts_of
from simplu_worker.shards.log import BulkChange, BulkOrigin, MarkOrigin, id_of_key
from simplu_worker.timing.clock import EPOCH
from simplu_worker.timing.waits import jittered
from simplu_worker.vocabulary import FeedData, FeedKind, FeedStop

ARRIVAL: Final = "a"
MARK: Final = "m"
OPERATIONS: Final = {
    "c": FeedKind.RESOURCE_CREATED,
    "u": FeedKind.RESOURCE_UPDATED,
    "p": FeedKind.RESOURCE_PATCHED,
    "d": FeedKind.RESOURCE_DELETED,
}


_Columns: TypeAlias = tuple[bytes, bytes, str, bytes, bytes, Sequence[str | None], Sequence[str]]


class LogBatch(NamedTuple):
    """A row of `read_feed`: a batch, its tenants, and some of its rows by column. Arrays are texts."""

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
        """Return the rows; for a batch without any, one that has no kind."""
        tenants = {int(number): FeedTenant(*names) for number, *names, _ in self.tenants}
        if self.kinds is None:
            place, tenant = Place(self.batch_id, 0), tenants.get(self.tenant_no)
            return [LogRow(self, place, self.tenant_no, tenant, origin=self.origins[0] if self.origins else None)]
        failed = frozenset(map(int, self.failed))
        stored_names = {int(one[0]): one[-1] for one in self.tenants}
        positions, tenant_nos, kinds, types_at, origins_at, resources, requests = cast(_Columns, self[-7:])
        small, large = f">{len(kinds)}h", f">{len(kinds)}i"
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
                unpack(small, positions),
                unpack(large, tenant_nos),
                kinds,
                unpack(small, types_at),
                unpack(small, origins_at),
                resources,
                requests,
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
    by_name: dict[str, str] = msgspec.json.decode(stored_names)
    name = by_name.get(resource_type, resource_type)
    names = (name, *(other for other, one in by_name.items() if one == name))
    return tuple(one for one in names if one != resource_type)


class ReadRow(msgspec.Struct, frozen=True):
    """A row of the log, with its place, its events, and what decides whether they are sent now."""

    place: Place
    events: tuple[FeedEvent, ...] = ()
    arrival: Arrival | None = None  # the tenant came here with this row


def read_row(row: LogRow, publication: Publication) -> ReadRow:
    """Return what a row of the log tells a destination."""
    place, batch, tenant = row.place, row.batch, row.tenant
    if tenant is None:
        return ReadRow(place)
    arrival = None
    if batch.kind == ARRIVAL and row.origin is not None and batch.epoch is not None:
        arrival = Arrival(tenant.tenant_id, batch.epoch, row.origin)
    events = tuple([_event(row, tenant, publication, kind) for kind in _kinds_of(row)])
    return ReadRow(place, events, arrival)


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


def _event(row: LogRow, tenant: FeedTenant, publication: Publication, kind: FeedKind) -> FeedEvent:
    suffix = "-tenant" if kind is FeedKind.TENANT_CREATED else ""  # its row has another event
    resource_type = resource_id = None
    other_types: tuple[str, ...] = ()
    if kind in RESOURCE_KINDS:
        other_types = row.other_types
        resource_type, resource_id = row.resource_type, None if row.resource is None else id_of_key(row.resource)
    return FeedEvent(
        id=f"{row.batch.token}-{row.place.position}{suffix}",
        kind=kind,
        shard_id=publication.shard_id,
        time=row.batch.completed_at,
        position=row.place.label,
        incarnation=publication.incarnation,
        sender=publication.sender,
        tenant=tenant,
        resource_type=resource_type,
        resource_id=resource_id,
        other_types=other_types,
        request_id=id_of_key(row.request) if row.request is not None and row.kind != MARK else None,
    )


RESOURCE_KINDS: Final = frozenset({*OPERATIONS.values(), FeedKind.RESOURCE_CHANGED})


def reset_event(publication: Publication, behind: Place, at: datetime) -> FeedEvent:
    """Return the event by which what earlier incarnations have sent behind *behind* is void."""
    bounds = EventBounds(behind.batch_id)
    return _event_of_bounds(FeedKind.RESET, publication, publication.incarnation, behind, at, bounds)


def gap_event(
    publication: Publication, behind: Place, through: int, through_at: datetime | None, at: datetime
) -> FeedEvent:
    """Return the event about lost batches of the log."""
    bounds = EventBounds(behind.batch_id, through, through_at)
    return _event_of_bounds(FeedKind.GAP, publication, f"{behind.batch_id}-{through}", behind, at, bounds)


def _event_of_bounds(
    kind: FeedKind, publication: Publication, name: str, behind: Place, at: datetime, bounds: EventBounds
) -> FeedEvent:
    return FeedEvent(
        id=f"{publication.shard_id}-{kind}-{name}",
        kind=kind,
        shard_id=publication.shard_id,
        time=at,
        position=behind.label,
        incarnation=publication.incarnation,
        sender=publication.sender,
        bounds=bounds,
    )


def lets_through(chosen: DestinationTerms, event: FeedEvent) -> bool:
    """Return whether a destination with the terms *chosen* gets *event*.

    Shard-wide events pass every filter, events of a whole tenant one of types.
    """
    tenant = event.tenant
    if tenant is None:
        return True
    return (
        (chosen.tenants is None or tenant.tenant_id in chosen.tenants)
        and (chosen.business_types is None or tenant.business_type in chosen.business_types)
        and (
            chosen.resource_types is None
            or event.resource_type is None
            or not chosen.resource_types.isdisjoint((event.resource_type, *event.other_types))
        )
        and (chosen.kinds is None or event.kind in chosen.kinds)
    )


DOCUMENT_MAX_BYTES: Final = 1_000_000  # no destination takes more
READ_MAX_BYTES: Final = 2 * 1024 * 1024

Resource: TypeAlias = tuple[str, str, str]  # the ids of its tenant, its type and its own


class WantedDocuments:
    """The resources of *rows* whose documents a destination with one of *terms* gets, each once, in order."""

    def __init__(self, rows: Sequence[ReadRow], terms: Sequence[DestinationTerms]) -> None:
        filters = [one for one in terms if one.data is FeedData.CURRENT]
        self._event_ids: dict[Resource, list[str]] = {}
        self._first_rows: list[int] = []
        for index, row in enumerate(rows if filters else ()):
            for event in row.events:
                if event.tenant is None or event.resource_type is None or event.resource_id is None:
                    continue
                if event.kind is FeedKind.RESOURCE_DELETED or not any(lets_through(one, event) for one in filters):
                    continue
                resource = (event.tenant.tenant_id, event.resource_type, event.resource_id)
                if resource not in self._event_ids:
                    self._event_ids[resource] = []
                    self._first_rows.append(index)
                self._event_ids[resource].append(event.id)

    @property
    def resources(self) -> Sequence[Resource]:
        """The resources; a document is known by its number among them."""
        return list(self._event_ids)

    def row_count(self, left_at: int) -> int:
        """Return how many rows want none of the documents from number *left_at* on."""
        return self._first_rows[left_at]

    def by_event(self, documents: Mapping[int, bytes]) -> dict[str, bytes]:
        """Return *documents* by the ids of their events."""
        return {
            event_id: documents[number]
            for number, event_ids in enumerate(self._event_ids.values())
            if number in documents
            for event_id in event_ids
        }


LEASE_S: Final = 8.0  # without a renewal another replica may publish
RENEW_S: Final = 4.0  # an idle shard costs this statement alone, which tells whether there is more to read
RENEW_GRID_S: Final = 0.5  # those of many shards are sent together: by 0.1 s, eighty shards took a third more
MARGIN_S: Final = 0.5  # before the end of the lease nothing is published any more
CLAIM_DELAY_MAX_S: Final = 1.2  # so that a killed publisher is replaced within LEASE_S + this
EVEN_SHARDS: Final = 8  # with so many shards a replica waits for half of that
TIME_DIGITS: Final = 12  # of an incarnation's id: milliseconds


def claim_delay_s(published_count: int, draw: float) -> float:
    """Return how long a replica leaves a free row to others that publish less; *draw* is from 0 to 1."""
    share = published_count / (published_count + EVEN_SHARDS)
    return jittered(0.85 * CLAIM_DELAY_MAX_S * share + 0.05, ratio=0.1, draw=draw)


def incarnation_id(at: datetime, noise: str, known: Iterable[str] = ()) -> str:
    """Return the id of an incarnation that begins at *at*, as text greater than all that are *known* (docs/feed.md)."""
    latest = max((int(one[:TIME_DIGITS], 16) for one in known if one), default=-1)
    return f"{max((at - EPOCH) // timedelta(milliseconds=1), latest + 1):0{TIME_DIGITS}x}{noise}"


def run_of_server(timeline: str, started_at: datetime, batch_offset: int) -> str:
    """Return a text that differs wherever a server may have lost commits, or uses numbers of batches again."""
    return f"{timeline}/{started_at.timestamp():.6f}/{batch_offset}"


def skip_problem(stopped: FeedStop | None, event_id: str | None) -> str | None:
    """Return why a skip, of *event_id* if given, has nothing to pass."""
    if event_id is not None:
        return None if stopped is None else "the destination has stopped: leave out --event"
    return "the destination has not stopped: nothing is to be passed" if stopped is None else None
