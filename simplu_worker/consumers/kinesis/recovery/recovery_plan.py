"""What a reader owes a Postgres shard, by what that knows of the reader's stream shard (architecture, idea 8). Pure.

A shard may have lost its last commits: a replica without them took its place, it was restored. What its row says is
what survived. Before a reader writes there it reads the row, and where that is behind what the reader has done, all
tenants of the shard are read again from there on. The log drops what did survive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.holding.parent_records import HORIZON, ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream.client import AtSequenceNumber, AtTimestamp, Start
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    TRIM_HORIZON,
    HashRange,
    Position,
    RecordPosition,
)
from simplu_worker.shards.types import StoredPositions, StreamPosition

CLOCK_MARGIN: Final = timedelta(seconds=1)  # arrivals are rounded


class Ancestor(msgspec.Struct, frozen=True):
    """A stream shard that another one continues, directly or not, and whose records can still be read."""

    parents: frozenset[str]
    hash_range: HashRange | None
    started_at: datetime | None  # where reading it began, if not at its beginning


class Lineage(msgspec.Struct, frozen=True):
    """What a stream shard continues: its own parents and theirs, by id.

    *are_ended* says that to nobody anything of them is owed any more, as far as was known at the time.
    """

    parents: frozenset[str] = frozenset()
    ancestors: Mapping[str, Ancestor] = msgspec.field(default_factory=dict)
    is_ended: bool = True


def lineage_of(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> Lineage:
    """Return what a leased stream shard continues, by *leases*; without those of *gone*, which nobody can read."""
    ancestors: dict[str, Ancestor] = {}
    waiting = list(lease.parents)
    while waiting:
        key = waiting.pop()
        known = leases.get(key)
        if known is not None and key not in gone and key not in ancestors:
            ancestors[key] = Ancestor(known.parents, known.hash_range, known.started_at)
            waiting += known.parents
    are_ended = all(leases[key].checkpoint == SHARD_END for key in ancestors)
    return Lineage(lease.parents & ancestors.keys(), ancestors, are_ended)


ReplayStart: TypeAlias = RecordPosition | datetime | None  # behind a record; before the first that arrived since; none


def format_position(mark: RecordPosition | None) -> str:
    """Return how a row has the position behind which something is owed; None is where reading began."""
    return TRIM_HORIZON.checkpoint if mark is None else f"{mark.sequence_number}/{mark.sub_sequence_number}"


def parse_position(text: str, arrived_at: datetime) -> RecordPosition:
    """Return the position that a row has. Raises ValueError for what is none."""
    sequence_number, _, sub_sequence_number = text.partition("/")
    return RecordPosition(
        str(Position.from_sequence_number(sequence_number).number), int(sub_sequence_number), arrived_at
    )


def replay_start(
    row: StreamPosition | None,
    first_tenant_at: datetime | None,
    *,
    tenant_wait: timedelta,
    started_at: datetime | None,
    covers: Callable[[AbstractSet[str], RecordPosition | None], bool],
    now: datetime,
) -> ReplayStart:
    """Return behind which place the tenants of a shard may lack something; None when there is no such place.

    *covers* tells whether the reader itself sees to it that tenants get everything behind a place. *started_at* is
    where reading the stream shard began, if not at its beginning. Without a row nothing was ever applied there that
    arrived before the first tenant was made, less the wait (idea 7).
    """
    if row is None:
        if first_tenant_at is None:
            return None
        return max(first_tenant_at - tenant_wait - CLOCK_MARGIN, started_at or HORIZON)
    if row.owed_from == SHARD_END.checkpoint:
        return None
    is_beginning = row.owed_from == TRIM_HORIZON.checkpoint
    owed_from = None if is_beginning else parse_position(row.owed_from, row.owed_since or now)
    names = named_tenants(row.held)
    if row.read_to is not None and names is not None and covers(names, owed_from):
        return None if row.read_to == SHARD_END.checkpoint else parse_position(row.read_to, row.owed_since or now)
    return owed_from or started_at or HORIZON


def named_tenants(targets: tuple[str, ...]) -> frozenset[str] | None:
    """Return the tenants that targets name; None when they are not names."""
    names = frozenset(target.removeprefix(NAME_PREFIX) for target in targets)
    return names if all(target.startswith(NAME_PREFIX) for target in targets) else None


def missing_parent_records(
    lineage: Lineage, standing: StoredPositions, *, tenant_wait: timedelta
) -> tuple[ParentRecords, ...]:
    """Return which records of the ancestors a shard may lack, in the order in which they have to be applied.

    An ancestor whose row says SHARD_END has left nothing out; and where its row says that its parents were done, they
    had not either. A shard that has no tenant can lack nothing: who is made there later is not read for ahead of what
    the ancestors themselves owe.
    """
    if standing.first_tenant_at is None:
        return ()
    found: dict[str, ParentRecords] = {}
    first_tenant_at = standing.first_tenant_at

    def visit(stream_shard_id: str) -> None:
        ancestor = lineage.ancestors.get(stream_shard_id)
        if ancestor is None or stream_shard_id in found:
            return
        row = standing.rows.get(stream_shard_id)
        if row is None or not row.parents_done:
            for parent in sorted(ancestor.parents):
                visit(parent)
        records = _missing_records_of(stream_shard_id, ancestor, row, first_tenant_at, tenant_wait)
        if records is not None:
            found[stream_shard_id] = records

    for parent in sorted(lineage.parents):
        visit(parent)
    return tuple(found.values())


def ignoring_pending(standing: StoredPositions, waits_for: Callable[[AbstractSet[str]], bool]) -> StoredPositions:
    """Return what a shard knows, with ancestors at their end where all that they still owe is owed to some tenants.

    Those for whom the reader waits until the ancestors have applied it. Only of use where nothing at all is to be read
    again then: what is read is sent to everybody, to those tenants too, and what an ancestor owes them comes before it.
    """
    rows = {
        key: msgspec.structs.replace(row, owed_from=SHARD_END.checkpoint)
        if row.read_to == SHARD_END.checkpoint and (names := named_tenants(row.held)) is not None and waits_for(names)
        else row
        for key, row in standing.rows.items()
    }
    return msgspec.structs.replace(standing, rows=rows)


def _missing_records_of(
    stream_shard_id: str,
    ancestor: Ancestor,
    row: StreamPosition | None,
    first_tenant_at: datetime,
    tenant_wait: timedelta,
) -> ParentRecords | None:
    if row is not None and row.owed_from == SHARD_END.checkpoint:
        return None
    if row is not None and row.owed_from != TRIM_HORIZON.checkpoint:
        mark = parse_position(row.owed_from, HORIZON)
        start: Start = AtSequenceNumber(mark.sequence_number)
        return ParentRecords(stream_shard_id, start, mark.position, ancestor.hash_range)
    since = ancestor.started_at or HORIZON
    if row is None:
        since = max(since, first_tenant_at - tenant_wait - CLOCK_MARGIN)
    return ParentRecords(stream_shard_id, AtTimestamp(since), None, ancestor.hash_range)
