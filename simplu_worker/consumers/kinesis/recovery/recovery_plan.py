"""From which position a Postgres shard is read for again, given the positions stored on it. Pure.

**Gaps.** A shard restored from a backup older than the retention lacks more than the stream can bring back. One of its
rows shows it, if all of this holds:

- the row is behind the checkpoint of the lease, which never goes back;
- it was written longer ago than the stream keeps records: readers write all rows again within an hour;
- the record at its position has left the stream;
- the fleet has read in the meantime: this reader knew the shard before, or the stream has the record to which the last
  owner of the lease had read. After a stop of the fleet all shards lack the same records, and a hold would let the
  remaining ones expire too.

**Moves.** When a tenant comes to a shard, the rows there get lower positions and new tokens (architecture, idea 8). A
reader need read nothing again if it knew the former token, wrote the carried token itself and has adopted no row since,
and knows the token that the source's row has now (`tests/model/transfer_reader.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.holding.tenant_set import HORIZON, NAME_PREFIX, ParentRecords
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.pipeline.results import LaneStopError
from simplu_worker.shards.types import PositionMerge, StoredPositions, StreamPosition

CLOCK_MARGIN: Final = timedelta(seconds=1)  # arrivals are rounded


class Lineage(msgspec.Struct, frozen=True):
    """The parents of a stream shard, and the leases of these and of their parents that can be read, by id.

    *is_ended*: no operation of any of them is pending. *unreadable_parents* are past their retention.
    """

    parents: frozenset[str] = frozenset()
    ancestors: Mapping[str, Lease] = msgspec.field(default_factory=dict)
    is_ended: bool = True
    unreadable_parents: frozenset[str] = frozenset()

    @property
    def stream_shard_ids(self) -> list[str]:
        """The ids of all of them, with the ancestors that cannot be read any more."""
        older = {parent for ancestor in self.ancestors.values() for parent in ancestor.parents}
        return sorted({*self.ancestors, *older, *self.unreadable_parents})


def lineage_of(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> Lineage:
    """Return the ancestors of a leased stream shard among *leases*, without those of *gone*."""
    ancestors: dict[str, Lease] = {}
    waiting = list(lease.parents)
    while waiting:
        key = waiting.pop()
        known = leases.get(key)
        if known is not None and key not in gone and key not in ancestors:
            ancestors[key] = known
            waiting += known.parents
    are_ended = all(one.checkpoint == positions.SHARD_END for one in ancestors.values())
    return Lineage(lease.parents & ancestors.keys(), ancestors, are_ended, lease.parents - ancestors.keys())


# After a record; before the first one that arrived since an instant; nowhere.
ReplayStart: TypeAlias = positions.RecordPosition | datetime | None


def format_position(position: positions.RecordPosition | None) -> str:
    """Return the position as a row contains it; None is the start of reading."""
    if position is None:
        return positions.TRIM_HORIZON.checkpoint
    stored = position.stored
    return f"{stored.sequence_number}/{stored.sub_sequence_number}"


def parse_position(text: str, arrived_at: datetime) -> positions.RecordPosition:
    """Return the position that a row contains. Raises ValueError for any other text."""
    sequence_number, _, sub_sequence_number = text.partition("/")
    return positions.RecordPosition(
        str(positions.Position.from_sequence_number(sequence_number).number), int(sub_sequence_number), arrived_at
    )


def is_own_row(row: StreamPosition | None, known_tokens: Collection[str]) -> bool:
    """Return whether a row is as its reader left it, or is missing as it was then."""
    return not known_tokens if row is None else row.fencing_token in known_tokens


def may_lack_writes(row: StreamPosition | None, stored: StoredPositions, known_tokens: Collection[str]) -> bool:
    """Return whether the row has none of the *known_tokens*."""
    return not stored.is_unchanged and (row is None or row.fencing_token not in known_tokens)


def replay_start(
    row: StreamPosition | None,
    first_tenant_at: datetime | None,
    *,
    tenant_wait: timedelta,
    started_at: datetime | None,
    covers: Callable[[AbstractSet[str], positions.RecordPosition | None], bool],
    now: datetime,
) -> ReplayStart:
    """Return the position after which the tenants of a shard may lack operations; None if they lack none.

    *covers* returns whether the reader re-reads everything after a position for the given tenants. Without a row,
    nothing was applied that arrived before the first tenant was made, less *tenant_wait* (idea 7).
    """
    if row is None:
        if first_tenant_at is None:
            return None
        return max(first_tenant_at - tenant_wait - CLOCK_MARGIN, started_at or HORIZON)
    if row.pending_from == positions.SHARD_END.checkpoint:
        return None
    is_beginning = row.pending_from == positions.TRIM_HORIZON.checkpoint
    pending_from = None if is_beginning else parse_position(row.pending_from, row.pending_since or now)
    names = named_tenants(row.held)
    if row.read_to is not None and names is not None and covers(names, pending_from):
        return (
            None
            if row.read_to == positions.SHARD_END.checkpoint
            else parse_position(row.read_to, row.pending_since or now)
        )
    return pending_from or started_at or HORIZON


def named_tenants(entries: tuple[str, ...]) -> frozenset[str] | None:
    """Return the tenants in *entries* (`TenantSet.encode`); None if one is not a name."""
    names = frozenset(entry.removeprefix(NAME_PREFIX) for entry in entries)
    return names if all(entry.startswith(NAME_PREFIX) for entry in entries) else None


def missing_parent_records(
    lineage: Lineage, stored: StoredPositions, *, tenant_wait: timedelta
) -> tuple[ParentRecords, ...]:
    """Return the records of ancestors that a shard may lack, in the order in which they must be applied.

    An ancestor with SHARD_END in its row lacks nothing there; with `parents_done` neither do its own parents.
    """
    if stored.first_tenant_at is None:
        return ()
    first_tenant_at = stored.first_tenant_at
    found = [
        _missing_records_of(lineage.ancestors[key], stored.rows.get(key), first_tenant_at - tenant_wait - CLOCK_MARGIN)
        for key in _parents_first(lineage, stored, lineage.parents)
        if key in lineage.ancestors
    ]
    return tuple(records for records in found if records is not None)


def _parents_first(lineage: Lineage, stored: StoredPositions, keys: Iterable[str]) -> list[str]:
    order: dict[str, None] = {}

    def visit(key: str) -> None:
        ancestor, row = lineage.ancestors.get(key), stored.rows.get(key)
        if key not in order and ancestor is not None and (row is None or not row.parents_done):
            for parent in sorted(ancestor.parents):
                visit(parent)
        order.setdefault(key)

    for key in sorted(keys):
        visit(key)
    return list(order)


def ignoring_pending(stored: StoredPositions, waits_for: Callable[[AbstractSet[str]], bool]) -> StoredPositions:
    """Return the rows with SHARD_END for each ancestor that has only operations of waiting tenants pending."""
    rows = {
        key: msgspec.structs.replace(row, pending_from=positions.SHARD_END.checkpoint)
        if row.read_to == positions.SHARD_END.checkpoint
        and (names := named_tenants(row.held)) is not None
        and waits_for(names)
        else row
        for key, row in stored.rows.items()
    }
    return msgspec.structs.replace(stored, rows=rows)


def _missing_records_of(ancestor: Lease, row: StreamPosition | None, first_at: datetime) -> ParentRecords | None:
    if row is not None and row.pending_from == positions.SHARD_END.checkpoint:
        return None
    if row is not None and row.pending_from != positions.TRIM_HORIZON.checkpoint:
        position = parse_position(row.pending_from, HORIZON)
        start: positions.Start = positions.AtSequenceNumber(position.sequence_number)
        return ParentRecords(ancestor.lease_key, start, position.position, ancestor.hash_range)
    since = max(ancestor.started_at or HORIZON, HORIZON if row is not None else first_at)
    return ParentRecords(ancestor.lease_key, positions.AtTimestamp(since), None, ancestor.hash_range)


CLOCKS_MARGIN: Final = timedelta(minutes=1)  # between the clock of a reader and that of Kinesis


class Gap(msgspec.Struct, frozen=True):
    """The row of a stream shard to which the stream does not reach back."""

    stream_shard_id: str
    pending_from: str


class PositionGapError(LaneStopError):
    """A shard lacks records that the stream no longer has; nothing is written until a person accepts that."""

    def __init__(self, gap: Gap) -> None:
        super().__init__(
            f"stream shard {gap.stream_shard_id}: expected the stream to reach back to the shard's position "
            f"{gap.pending_from}, got later records only"
        )
        self.gap = gap


def is_older_than_stream(row: StreamPosition, *, now: datetime, retention: timedelta | None) -> bool:
    """Return whether a row was written longer ago than the stream keeps records.

    True where that is unknown, unless the row is new: at the beginning of the stream shard.
    """
    if row.written_at is None or retention is None:
        return row.pending_from != positions.TRIM_HORIZON.checkpoint
    return now - row.written_at >= retention - CLOCKS_MARGIN


def went_back(
    row: StreamPosition, behind: positions.RecordPosition | datetime, checkpoint: positions.RecordPosition | None
) -> bool:
    """Return whether a shard that lacks records from *behind* on lacks some before *checkpoint*."""
    if isinstance(behind, datetime):
        return checkpoint is not None
    return row.read_to == format_position(behind) or (checkpoint is not None and positions.is_after(checkpoint, behind))


def has_left_stream(behind: positions.RecordPosition | datetime, oldest: positions.RecordPosition | None) -> bool:
    """Return whether the record at *behind* has left; *oldest* is before the oldest one of the stream."""
    return isinstance(behind, datetime) or oldest is None or positions.is_after(oldest, behind)


def rows_of_ancestors_behind(
    lineage: Lineage, stored: StoredPositions, stream_shard_id: str, *, is_old: Callable[[StreamPosition], bool]
) -> list[tuple[str, StreamPosition]]:
    """Return the rows of ancestors that went back, the oldest ancestors first."""
    own = stored.rows.get(stream_shard_id)
    if stored.first_tenant_at is None or (own is not None and own.parents_done):
        return []
    return [
        (key, row)
        for key in _parents_first(lineage, stored, lineage.parents | lineage.unreadable_parents)
        if (row := stored.rows.get(key)) is not None
        and (row.has_open_gap or (_is_ancestor_behind(row, lineage.ancestors.get(key)) and is_old(row)))
    ]


def _is_ancestor_behind(row: StreamPosition, ancestor: Lease | None) -> bool:
    if row.has_gap or row.pending_from == positions.SHARD_END.checkpoint:
        return False
    is_beginning = row.pending_from == positions.TRIM_HORIZON.checkpoint
    position = positions.TRIM_HORIZON if is_beginning else parse_position(row.pending_from, HORIZON).position
    return ancestor is None or position < ancestor.checkpoint


def merges_since(token: str, known_tokens: Collection[str], merges: Iterable[PositionMerge]) -> list[PositionMerge]:
    """Return the merges, the last one first, by which a row with a known token has got *token*."""
    by_token = {one.token: one for one in merges}
    found: list[PositionMerge] = []
    while (merge := by_token.pop(token, None)) is not None:
        found.append(merge)
        token = merge.former_token
        if token in known_tokens:
            return found
    return []
