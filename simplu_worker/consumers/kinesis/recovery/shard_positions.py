"""The rows of one reader on the Postgres shards: read them, compare them with the reader, and write its progress."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import msgspec
import structlog

from simplu_worker.consumers.kinesis.holding.holds import Holds
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import NAME_PREFIX
from simplu_worker.consumers.kinesis.recovery.recovery_plan import (
    Lineage,
    ReplayStart,
    format_position,
    ignoring_pending,
    missing_parent_records,
    replay_start,
)
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, RecordPosition, is_after
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionClaim, StoredPositions, StreamPosition
from simplu_worker.timing.clock import UtcClock, loop_time

WRITE_AFTER_S: Final = 30.0  # without a write, while the reader went on
AHEAD_MAX_AGE_S: Final = 1.0
CLOCKS_APART_MOST: Final = timedelta(hours=1)
MOVED_MARGIN_S: Final = 10.0  # between readings of different clocks

log = structlog.get_logger(__name__)


class ReaderProgress(msgspec.Struct, frozen=True):
    """How far a reader is: operations after *safe_checkpoint* may be pending; None is the start of reading."""

    safe_checkpoint: RecordPosition | None
    is_finished: bool = False


class PositionRow(msgspec.Struct, frozen=True):
    """The progress of a reader as a row contains it, with the names of the columns."""

    owed_from: str = ""
    read_to: str | None = None
    held: tuple[str, ...] | None = None


class Backfill(msgspec.Struct, frozen=True):
    """The records to be read again for all tenants of a Postgres shard: *parent_records*, then all after *before*."""

    before: RecordPosition | None
    parent_records: tuple[ParentRecords, ...]


class ShardPosition:
    """The row of one reader on one Postgres shard. Hold *lock* to write the row, or to decide about it."""

    def __init__(self, shard_id: str, claim: PositionClaim) -> None:
        self.shard_id = shard_id
        self.claim = claim
        self.lock = asyncio.Lock()
        self.was_read = False  # at least once
        self.is_current = False  # the row is known, and the operations that it lacks are being read again
        self.parents_had_ended = False  # before the row was read
        self.written_at = float("-inf")  # monotonic

    def forget_row(self) -> None:
        """Make the reader read the row again, and search again for lost operations."""
        self.is_current = False
        self.claim.fencing_tokens = []

    def __repr__(self) -> str:
        return f"ShardPosition({self.shard_id}, {'current' if self.is_current else 'unknown'}, {self.claim.owed_from})"


class ReaderState(msgspec.Struct, frozen=True):
    """The state of a reader, for its shard positions.

    - *began_behind*: the position after which its main reading began; None for the beginning of the stream shard.
    - *checkpoint*: the position from which *predecessor_tenants* were held when it began.
    - *read_to*: the position of its main reading now.
    - *progress*: the position that all tenants have reached.
    - *ahead_row*: the position that all but the held tenants have reached, as a row without `owed_from`.
    - *find_first_since*: returns the position before the first record that arrived since an instant; None without one.
    - *confirm_lease*: returns whether the reader still has the lease.
    - *lineage*, *started_at*: see `LeaseContext`.
    """

    stream_name: str
    stream_shard_id: str
    began_behind: RecordPosition | None
    checkpoint: RecordPosition | None
    predecessor_tenants: AbstractSet[str]
    read_to: Callable[[], RecordPosition | None]
    progress: Callable[[], ReaderProgress]
    ahead_row: Callable[[], PositionRow | None]
    find_first_since: Callable[[datetime], Awaitable[RecordPosition | None]]
    confirm_lease: Callable[[], Awaitable[bool]]
    lineage: Callable[[], Lineage]
    started_at: datetime | None


class ShardPositions:
    """The rows of one reader on all Postgres shards."""

    def __init__(
        self,
        gateway: ShardGateway,
        holds: Holds,
        reader: ReaderState,
        *,
        tenant_wait: timedelta,
        utc: UtcClock,
    ) -> None:
        self._gateway = gateway
        self._holds = holds
        self._reader = reader
        self._tenant_wait = tenant_wait
        self._utc = utc
        self._positions: dict[str, ShardPosition] = {}
        self._began_at = loop_time()
        # When it was made, and the row without its owed_from, which changes all the time.
        self._ahead: tuple[float, PositionRow | None] = (float("-inf"), None)

    def __repr__(self) -> str:
        return f"ShardPositions({list(self._positions.values())})"

    def position_on(self, shard_id: str) -> ShardPosition:
        """Return the position on a Postgres shard."""
        shard_position = self._positions.get(shard_id)
        if shard_position is None:
            claim = PositionClaim(self._reader.stream_name, self._reader.stream_shard_id)
            shard_position = self._positions[shard_id] = ShardPosition(shard_id, claim)
        return shard_position

    def current_positions(self) -> list[ShardPosition]:
        """Return the positions on shards with a known row."""
        return [shard_position for shard_position in self._positions.values() if shard_position.is_current]

    def prepare_claim(self, shard_position: ShardPosition) -> PositionClaim:
        """Return the claim for the next write of the row: where the reader is before that write, not after it.

        The outcomes of a batch are known only later, and an operation of the batch may not be applied.
        """
        claim, progress = shard_position.claim, self._reader.progress()
        row = self._row_of(progress)
        claim.owed_from, claim.read_to, claim.held = row.owed_from, row.read_to, row.held
        claim.owed_since = None if progress.safe_checkpoint is None else progress.safe_checkpoint.arrived_at
        shard_position.written_at = loop_time()
        return claim

    def is_write_due(self, shard_position: ShardPosition, *, within_s: float = WRITE_AFTER_S) -> bool:
        """Return whether a known row was not written for *within_s*, and its content would be different now."""
        if not shard_position.is_current or loop_time() - shard_position.written_at < within_s:
            return False
        claim = shard_position.claim
        return PositionRow(claim.owed_from, claim.read_to, claim.held) != self._row_of(self._reader.progress())

    def _row_of(self, progress: ReaderProgress) -> PositionRow:
        """Return the content of a row for *progress*: its checkpoint, and how far all but the held tenants are."""
        if progress.is_finished:
            return PositionRow(SHARD_END.checkpoint)
        owed_from, ahead = format_position(progress.safe_checkpoint), self._recent_ahead_row()
        return PositionRow(owed_from) if ahead is None else msgspec.structs.replace(ahead, owed_from=owed_from)

    async def write_final_position(self, shard_position: ShardPosition) -> None:
        """Write the final progress of the reader, without operations, where the shard is up and the row is not locked.

        Skip it where another reader owns the row or the shard fails: the next reader then reads a little more again.
        """
        self._ahead = (float("-inf"), None)
        is_free = self._gateway.is_up(shard_position.shard_id) and not shard_position.lock.locked()
        if not is_free or not self.is_write_due(shard_position, within_s=0.0):
            return
        async with shard_position.lock:
            if not shard_position.is_current:
                return
            with contextlib.suppress(RetryableError):
                changed = await self._gateway.write_positions(
                    shard_position.shard_id, [self.prepare_claim(shard_position)]
                )
                shard_position.is_current = not changed

    async def confirm_lease(self) -> bool:
        """Return whether the reader still has the lease, as far as the lease table answers."""
        return await self._reader.confirm_lease()

    async def reconcile(self, shard_position: ShardPosition) -> Backfill | None:
        """Read the row, and return the records that have to be read again; None if there are none.

        Must be called with the lock of *shard_position*. Raises `RetryableError` while that is unknown.
        """
        claim, lineage = shard_position.claim, self.lineage()  # the lineage before the rows are read
        shard_id, is_first = shard_position.shard_id, not shard_position.was_read
        if lineage.ancestors:
            stored = await self._gateway.fence_and_read_positions(
                shard_id, claim, sorted(lineage.ancestors), is_first=is_first
            )
        else:
            stored = await self._gateway.read_positions(
                shard_id, claim.stream, [claim.stream_shard_id], is_first=is_first
            )
        if stored is None:
            raise RetryableError(f"shard {shard_position.shard_id}: it has no schema yet")
        return await self.reconcile_with(shard_position, lineage, stored)

    def lineage(self) -> Lineage:
        """Return the ancestors of the stream shard."""
        return self._reader.lineage()

    def must_reread(self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions) -> bool:
        """Return whether a row must be read again: it has another token, or the parents have ended since."""
        row = stored.rows.get(self._reader.stream_shard_id)
        if (
            (row.fencing_token not in shard_position.claim.fencing_tokens)
            if row is not None
            else shard_position.claim.fencing_tokens
        ):
            return True
        return lineage.is_ended and not shard_position.claim.parents_done and not self._holds.has_parent_records

    async def reconcile_with(
        self, shard_position: ShardPosition, lineage: Lineage, stored: StoredPositions
    ) -> Backfill | None:
        """Do what `reconcile` does, with the rows that were just read from the shard.

        At the first read of the row, all records since the start of the reader are in its memory, unless a tenant was
        moved to the shard since. Later they may have been applied and lost, unless the row is unchanged.
        """
        row = stored.rows.get(self._reader.stream_shard_id)
        is_all_in_memory = not shard_position.was_read and not self._was_tenant_moved_in(stored)
        read_to = self._reader.began_behind if is_all_in_memory else self._reader.read_to()
        before, is_unchanged = None, _is_unchanged(shard_position, row, stored)
        if read_to is not None and not is_unchanged:
            start = replay_start(
                row,
                stored.first_tenant_at,
                tenant_wait=self._tenant_wait,
                started_at=self._reader.started_at,
                covers=partial(self._covers, was_read=shard_position.was_read),
                now=self._utc(),
            )
            before = await self._resolve_replay_start(start, read_to)
        are_done = row is not None and row.parents_done
        # Records of parents that are being read again may be lost once more.
        is_parent_reread = not is_unchanged and self._holds.is_rereading_parents_for(shard_position.shard_id)
        is_only_parents = before is None and not is_parent_reread
        parent_records = (
            () if are_done else self._missing_parent_records(lineage, stored, is_only_parents=is_only_parents)
        )
        shard_position.claim.fencing_tokens = [] if row is None else [row.fencing_token]
        shard_position.claim.move_token = stored.move_token
        shard_position.parents_had_ended = lineage.is_ended
        shard_position.claim.parents_done = are_done or (lineage.is_ended and not parent_records)
        shard_position.was_read = shard_position.is_current = True
        if before is None and not parent_records:
            return None
        self._ahead = (float("-inf"), None)
        instruments.SHARD_REFILLS.labels(shard_position.shard_id).inc()
        log.warning(
            "shard.refilling",
            shard_id=shard_position.shard_id,
            stream_shard_id=self._reader.stream_shard_id,
            owed_from=format_position(before or read_to),
            read_to=format_position(read_to),
            parents=[records.stream_shard_id for records in parent_records],
        )
        return Backfill(before or read_to, parent_records)

    def _missing_parent_records(
        self, lineage: Lineage, stored: StoredPositions, *, is_only_parents: bool
    ) -> tuple[ParentRecords, ...]:
        """Return the records of ancestors to be read again; with *is_only_parents*, no other record is.

        None are read while the ancestors lack only operations of tenants that are held here for them, and no such
        operation was sent from here, as it is when they are being read again.
        """
        if is_only_parents and not lineage.is_ended:
            rest = ignoring_pending(stored, self._holds.are_waiting_for_parents)
            if not missing_parent_records(lineage, rest, tenant_wait=self._tenant_wait):
                return ()
        return missing_parent_records(lineage, stored, tenant_wait=self._tenant_wait)

    def _was_tenant_moved_in(self, stored: StoredPositions) -> bool:
        """Return whether a tenant was moved to the shard since the reader began: it may have sent to the old shard."""
        return (
            stored.last_move_age_s is not None
            and stored.last_move_age_s < loop_time() - self._began_at + MOVED_MARGIN_S
        )

    def _covers(self, names: AbstractSet[str], owed_from: RecordPosition | None, *, was_read: bool) -> bool:
        """Return whether this reader re-reads everything after *owed_from* for these tenants.

        It does so for tenants that it holds, and, before it has sent anything to the shard, for those held at its
        start.
        """
        reader = self._reader
        if not was_read and names <= reader.predecessor_tenants and not _is_after(reader.checkpoint, owed_from):
            return True
        holds = [self._holds.named_hold_of(name) for name in names]
        return all(hold is not None and not _is_after(hold.reached, owed_from) for hold in holds)

    async def _resolve_replay_start(self, start: ReplayStart, read_to: RecordPosition) -> RecordPosition | None:
        """Return the position of *start* if it is before *read_to*, which is after the start of reading."""
        if isinstance(start, datetime):
            # The time of a position taken over is that of this replica's clock: the arrival of its record is unknown.
            if read_to.arrived_at < start - CLOCKS_APART_MOST:
                return None
            start = await self._reader.find_first_since(start)
        return start if start is not None and is_after(read_to, start) else None

    def mark_parents_read(self, shard_id: str) -> None:
        """Record that the shard has all operations of the parents; the next write notes that, if they had ended."""
        shard_position = self.position_on(shard_id)
        shard_position.claim.parents_done = shard_position.claim.parents_done or (
            shard_position.is_current and shard_position.parents_had_ended
        )

    def invalidate_parent_rows(self) -> list[ShardPosition]:
        """Have all rows without `parents_done` read again; return their positions.

        The shard may have lost operations since the parents' readers applied them.
        """
        invalidated = [one for one in self._positions.values() if one.is_current and not one.claim.parents_done]
        for shard_position in invalidated:
            shard_position.is_current = False
        return invalidated

    def _recent_ahead_row(self) -> PositionRow | None:
        """Return how far all but the held tenants are, if a row has room for the held tenants' names."""
        if self._holds.has_whole_shard_hold:
            return None  # not all of its tenants are known by name
        refreshed_at, row = self._ahead
        if loop_time() - refreshed_at > AHEAD_MAX_AGE_S:
            row = self._reader.ahead_row()
            if row is not None and not all(entry.startswith(NAME_PREFIX) for entry in row.held or ()):
                row = None
            self._ahead = loop_time(), row
        return row


def _is_unchanged(shard_position: ShardPosition, row: StreamPosition | None, stored: StoredPositions) -> bool:
    """Return whether no write of this reader on a shard is lost, so that it need not search for lost operations."""
    return stored.is_unchanged or (row is not None and row.fencing_token in shard_position.claim.fencing_tokens)


def _is_after(position: RecordPosition | None, other: RecordPosition | None) -> bool:
    """Return whether *position* is after *other*; None is the start of reading, before every record."""
    return position is not None and is_after(position, other)
