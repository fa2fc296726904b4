"""Compute from which position a Postgres shard is read for again, given the positions stored on it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX
from simplu_worker.consumers.kinesis.holding.unread import HORIZON, ParentRecords
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    TRIM_HORIZON,
    AtSequenceNumber,
    AtTimestamp,
    HashRange,
    Position,
    RecordPosition,
    Start,
)
from simplu_worker.shards.types import StoredPositions, StreamPosition

CLOCK_MARGIN: Final = timedelta(seconds=1)  # arrivals are rounded


class Ancestor(msgspec.Struct, frozen=True):
    """A parent of a stream shard, or a parent's parent, with records that can still be read."""

    parents: frozenset[str]
    hash_range: HashRange | None
    started_at: datetime | None  # from which it was read, if not from its beginning
    checkpoint: Position = SHARD_END  # of its lease


class Lineage(msgspec.Struct, frozen=True):
    """The parents of a stream shard and the parents of these, by id.

    *is_ended*: no operation of any of them is pending, as far as was known when this was made. *unreadable_parents* are
    past their retention.
    """

    parents: frozenset[str] = frozenset()
    ancestors: Mapping[str, Ancestor] = msgspec.field(default_factory=dict)
    is_ended: bool = True
    unreadable_parents: frozenset[str] = frozenset()

    @property
    def stream_shard_ids(self) -> list[str]:
        """The ids of all of them, with the ancestors that cannot be read any more."""
        older = {parent for ancestor in self.ancestors.values() for parent in ancestor.parents}
        return sorted({*self.ancestors, *older, *self.unreadable_parents})


def lineage_of(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> Lineage:
    """Return the ancestors of a leased stream shard among *leases*, without those of *gone*, which cannot be read."""
    ancestors: dict[str, Ancestor] = {}
    waiting = list(lease.parents)
    while waiting:
        key = waiting.pop()
        known = leases.get(key)
        if known is not None and key not in gone and key not in ancestors:
            ancestors[key] = Ancestor(known.parents, known.hash_range, known.started_at, known.checkpoint)
            waiting += known.parents
    are_ended = all(leases[key].checkpoint == SHARD_END for key in ancestors)
    return Lineage(lease.parents & ancestors.keys(), ancestors, are_ended, lease.parents - ancestors.keys())


# After a record; before the first one that arrived since an instant; nowhere.
ReplayStart: TypeAlias = RecordPosition | datetime | None


def format_position(position: RecordPosition | None) -> str:
    """Return the position as a row contains it; None is the start of reading."""
    if position is None:
        return TRIM_HORIZON.checkpoint
    stored = position.stored
    return f"{stored.sequence_number}/{stored.sub_sequence_number}"


def parse_position(text: str, arrived_at: datetime) -> RecordPosition:
    """Return the position that a row contains. Raises ValueError for any other text."""
    sequence_number, _, sub_sequence_number = text.partition("/")
    return RecordPosition(
        str(Position.from_sequence_number(sequence_number).number), int(sub_sequence_number), arrived_at
    )


def is_own_row(row: StreamPosition | None, known_tokens: Collection[str]) -> bool:
    """Return whether a row is as its reader left it, or is missing as it was then: *known_tokens* are empty."""
    return not known_tokens if row is None else row.fencing_token in known_tokens


def may_lack_writes(row: StreamPosition | None, stored: StoredPositions, known_tokens: Collection[str]) -> bool:
    """Return whether writes of this reader, or of earlier ones, may be lost: its row has none of the *known_tokens*."""
    return not stored.is_unchanged and (row is None or row.fencing_token not in known_tokens)


def compared_position(
    *,
    is_first: bool,
    was_tenant_moved_in: bool,
    began_behind: RecordPosition | None,
    read_to: RecordPosition | None,
) -> RecordPosition | None:
    """Return the position of a reader with which its row is compared; None is the start of reading.

    | its row | may be lost besides what earlier readers wrote | compared with |
    |---|---|---|
    | is read for the first time | nothing: all records since its start are in its memory | where it began |
    | … and a tenant was moved to the shard since | operations that the tenant's last shard has | where it is now |
    | was read before | what this reader wrote | where it is now |
    """
    return began_behind if is_first and not was_tenant_moved_in else read_to


def replay_start(
    row: StreamPosition | None,
    first_tenant_at: datetime | None,
    *,
    tenant_wait: timedelta,
    started_at: datetime | None,
    covers: Callable[[AbstractSet[str], RecordPosition | None], bool],
    now: datetime,
) -> ReplayStart:
    """Return the position after which the tenants of a shard may lack operations; None if they lack none.

    *covers* returns whether the reader re-reads everything after a position for the given tenants. *started_at* is the
    time from which the stream shard is read, if not from its beginning. Without a row, no operation was applied there
    that arrived before the first tenant was made, less *tenant_wait* (idea 7).
    """
    if row is None:
        if first_tenant_at is None:
            return None
        return max(first_tenant_at - tenant_wait - CLOCK_MARGIN, started_at or HORIZON)
    if row.pending_from == SHARD_END.checkpoint:
        return None
    is_beginning = row.pending_from == TRIM_HORIZON.checkpoint
    pending_from = None if is_beginning else parse_position(row.pending_from, row.pending_since or now)
    names = named_tenants(row.held)
    if row.read_to is not None and names is not None and covers(names, pending_from):
        return None if row.read_to == SHARD_END.checkpoint else parse_position(row.read_to, row.pending_since or now)
    return pending_from or started_at or HORIZON


def named_tenants(entries: tuple[str, ...]) -> frozenset[str] | None:
    """Return the tenants in *entries* (`TenantSet.encode`); None where an entry is not a name."""
    names = frozenset(entry.removeprefix(NAME_PREFIX) for entry in entries)
    return names if all(entry.startswith(NAME_PREFIX) for entry in entries) else None


def missing_parent_records(
    lineage: Lineage, stored: StoredPositions, *, tenant_wait: timedelta
) -> tuple[ParentRecords, ...]:
    """Return the records of ancestors that a shard may lack, in the order in which they must be applied.

    An ancestor with SHARD_END in its row lacks nothing there; with `parents_done` in its row, neither do its own
    parents. A shard without tenants lacks nothing: for tenants made later, no record may be read ahead of the
    operations pending at the ancestors.
    """
    if stored.first_tenant_at is None:
        return ()
    found: dict[str, ParentRecords] = {}
    first_tenant_at = stored.first_tenant_at

    def visit(stream_shard_id: str) -> None:
        ancestor = lineage.ancestors.get(stream_shard_id)
        if ancestor is None or stream_shard_id in found:
            return
        row = stored.rows.get(stream_shard_id)
        if row is None or not row.parents_done:
            for parent in sorted(ancestor.parents):
                visit(parent)
        records = _missing_records_of(stream_shard_id, ancestor, row, first_tenant_at, tenant_wait)
        if records is not None:
            found[stream_shard_id] = records

    for parent in sorted(lineage.parents):
        visit(parent)
    return tuple(found.values())


def ignoring_pending(stored: StoredPositions, waits_for: Callable[[AbstractSet[str]], bool]) -> StoredPositions:
    """Return the stored rows with SHARD_END for each ancestor that has only operations of waiting tenants pending.

    *waits_for* returns whether the reader holds all given tenants until the ancestors have applied these operations: no
    backfill takes them, and the rows are read again when they are released.
    """
    rows = {
        key: msgspec.structs.replace(row, pending_from=SHARD_END.checkpoint)
        if row.read_to == SHARD_END.checkpoint and (names := named_tenants(row.held)) is not None and waits_for(names)
        else row
        for key, row in stored.rows.items()
    }
    return msgspec.structs.replace(stored, rows=rows)


def _missing_records_of(
    stream_shard_id: str,
    ancestor: Ancestor,
    row: StreamPosition | None,
    first_tenant_at: datetime,
    tenant_wait: timedelta,
) -> ParentRecords | None:
    if row is not None and row.pending_from == SHARD_END.checkpoint:
        return None
    if row is not None and row.pending_from != TRIM_HORIZON.checkpoint:
        position = parse_position(row.pending_from, HORIZON)
        start: Start = AtSequenceNumber(position.sequence_number)
        return ParentRecords(stream_shard_id, start, position.position, ancestor.hash_range)
    since = ancestor.started_at or HORIZON
    if row is None:
        since = max(since, first_tenant_at - tenant_wait - CLOCK_MARGIN)
    return ParentRecords(stream_shard_id, AtTimestamp(since), None, ancestor.hash_range)
