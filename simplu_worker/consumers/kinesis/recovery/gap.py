"""Decide whether a Postgres shard lacks records that the stream no longer has. Pure.

A shard that was restored from a backup older than the stream's retention is behind by more than the stream can bring
back. The shard's own rows show it, if all of this holds for one of them:

- the row went back: it is behind the checkpoint of the lease, which never goes back;
- it was written longer ago than the stream keeps records. Readers write the rows of all shards again within an hour,
  with and without records, so a row is as old only on a shard that was restored, or unreachable for as long;
- the record at its position has left the stream;
- the fleet has read in the meantime: this reader knew the shard before, or the stream has the record to which the last
  owner of the lease had read. If the fleet was stopped for as long, all shards lack the same records, and a hold would
  let the remaining ones expire too.

A shard without a row, at a first contact or after an adoption, has nothing that could have gone back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.holding.unread import HORIZON
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Ancestor, Lineage, format_position, parse_position
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON, RecordPosition, is_after
from simplu_worker.consumers.pipeline.results import LaneStopError
from simplu_worker.shards.types import StoredPositions, StreamPosition

CLOCKS_MARGIN: Final = timedelta(minutes=1)  # between the clock of a reader and that of Kinesis


class Gap(msgspec.Struct, frozen=True):
    """The row of a stream shard to which the stream does not reach back; *pending_from* is the row's position."""

    stream_shard_id: str
    pending_from: str


class PositionGapError(LaneStopError):
    """A shard lacks records that the stream no longer has: nothing is written there until a person accepts that."""

    def __init__(self, gap: Gap) -> None:
        super().__init__(
            f"stream shard {gap.stream_shard_id}: expected the stream to reach back to the shard's position "
            f"{gap.pending_from}, got later records only"
        )
        self.gap = gap


def is_older_than_stream(row: StreamPosition, *, now: datetime, retention: timedelta | None) -> bool:
    """Return whether a row was written longer ago than the stream keeps records.

    True where that is unknown, unless the row is at the beginning of the stream shard, as each new row is.
    """
    if row.written_at is None or retention is None:
        return row.pending_from != TRIM_HORIZON.checkpoint
    return now - row.written_at >= retention - CLOCKS_MARGIN


def went_back(row: StreamPosition, behind: RecordPosition | datetime, checkpoint: RecordPosition | None) -> bool:
    """Return whether a shard that lacks records from *behind* on lacks some before *checkpoint*.

    *behind* is before the reader's position: an instant where the row is at the beginning of the stream shard, else the
    row's position, or its `read_to`. The checkpoint is behind that by the operations of the held tenants.
    """
    if isinstance(behind, datetime):
        return checkpoint is not None
    return row.read_to == format_position(behind) or (checkpoint is not None and is_after(checkpoint, behind))


def has_left_stream(behind: RecordPosition | datetime, oldest: RecordPosition | None) -> bool:
    """Return whether the record at *behind* has left the stream, where *oldest* is before the oldest one that it has.

    The beginning has left it: the row of the shard is older than all records that the stream has.
    """
    return isinstance(behind, datetime) or oldest is None or is_after(oldest, behind)


def has_read_on(read_to: RecordPosition | None, oldest: RecordPosition | None) -> bool:
    """Return whether the stream has the record to which earlier owners of the lease have read.

    Then the fleet was not stopped for as long as the stream keeps records.
    """
    return read_to is not None and oldest is not None and not is_after(oldest, read_to)


def rows_of_ancestors_behind(
    lineage: Lineage, stored: StoredPositions, stream_shard_id: str, *, is_old: Callable[[StreamPosition], bool]
) -> list[tuple[str, StreamPosition]]:
    """Return the rows of ancestors that went back, the parents' parents first, as far as records of them are missing.

    Of those that cannot be read any more too. *is_old* returns whether a row is older than the stream.
    """
    own = stored.rows.get(stream_shard_id)
    if stored.first_tenant_at is None or (own is not None and own.parents_done):
        return []
    seen: set[str] = set()
    found: list[tuple[str, StreamPosition]] = []

    def visit(key: str) -> None:
        if key in seen:
            return
        seen.add(key)
        ancestor, row = lineage.ancestors.get(key), stored.rows.get(key)
        if ancestor is not None and (row is None or not row.parents_done):
            for parent in sorted(ancestor.parents):
                visit(parent)
        if row is not None and (row.has_open_gap or (_is_ancestor_behind(row, ancestor) and is_old(row))):
            found.append((key, row))

    for key in sorted(lineage.parents | lineage.unreadable_parents):
        visit(key)
    return found


def _is_ancestor_behind(row: StreamPosition, ancestor: Ancestor | None) -> bool:
    """Return whether the row of an ancestor went back; of one that cannot be read any more (None), all was read."""
    if row.has_gap or row.pending_from == SHARD_END.checkpoint:
        return False
    is_beginning = row.pending_from == TRIM_HORIZON.checkpoint
    position = TRIM_HORIZON if is_beginning else parse_position(row.pending_from, HORIZON).position
    return ancestor is None or position < ancestor.checkpoint
