"""How far one reader is: its checkpoint, how far it is ahead of that, and up to which time all is decided."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from simplu_worker.consumers.kinesis.fetch.cursor import Cursor
from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker, Hold, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import ParentRecords, TenantSet, Unread
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, format_position
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import ChildShard
from simplu_worker.consumers.pipeline.pipeline import Pipeline
from simplu_worker.operations.dead_letter import DeadLetter, dead_letter_of
from simplu_worker.operations.operation import Operation, RejectedRecord
from simplu_worker.operations.tries import GiveUp
from simplu_worker.shards.types import StreamPosition
from simplu_worker.timing.clock import UtcClock, loop_time
from simplu_worker.vocabulary import HeldTarget

VISIBLE_AFTER: Final = timedelta(seconds=2)  # a reply may lack a record that was put so shortly before


class QueuedOperation(msgspec.Struct, frozen=True, gc=False):
    """A decoded operation with its record and its ticket in the tracker of its cursor."""

    ticket: int
    operation: Operation
    record: bytes
    tracker: CheckpointTracker[positions.RecordPosition]
    parents: tuple[ParentRecords, ...] = ()

    @property
    def chain(self) -> str:
        """Its tenant."""
        return self.operation.tenant_id

    @property
    def unread(self) -> Unread:
        """The records from the operation on."""
        return Unread(self.tracker.position_before(self.ticket), self.parents)

    def dead_letter(self, given_up: GiveUp, *, failed_at: datetime) -> DeadLetter:
        """Return the dead letter of the operation."""
        one = self.operation
        ids = (one.business_id, one.location_id, one.request_id, one.resource_id)
        rejected = RejectedRecord(given_up.reason, given_up.error, one.origin, *ids)
        return dead_letter_of(rejected, self.record, failed_at=failed_at, attempts=given_up.attempts)


class ReaderAssignment(msgspec.Struct, frozen=True):
    """The stream shard to read, and where its last reader and the readers of its parents stopped.

    *checkpoint* is the position of the record at *start*. With *read_ahead* the main reader continues where its
    predecessor was. The tenants in *pending_at_parents* wait for `release_from_parents`. All that arrived before
    *read_up_to* was read.
    """

    stream_shard_id: str
    start: positions.Start
    checkpoint: positions.Position | None = None
    hash_range: positions.HashRange | None = None
    read_ahead: ReadAhead | None = None
    pending_at_parents: TenantSet | None = None
    retention: timedelta | None = None
    read_up_to: datetime | None = None


class ReaderLease(Protocol):
    """The lease under which a reader reads."""

    @property
    def started_at(self) -> datetime | None:
        """The time from which it is read, if not from its beginning."""

    async def confirm(self) -> bool:
        """Return whether the lease is still the replica's at this moment."""

    def lineage(self) -> Lineage:
        """Return the parents of the stream shard and their parents."""

    async def is_end(self, child_shards: tuple[ChildShard, ...]) -> bool:
        """Prepare the end of the stream shard, with these children; return whether that is done."""


class ReaderProgress:
    """What the main reader and the catch-ups of a stream shard have read, and what of it is pending."""

    cursor: Cursor  # of the main reader
    pipeline: Pipeline[QueuedOperation]  # has the operations in memory

    def __init__(
        self, assignment: ReaderAssignment, stream_name: str, lease: ReaderLease, *, ahead_from_s: float, utc: UtcClock
    ) -> None:
        """Begin where the last reader stopped; the lease row gets no read-ahead of less than *ahead_from_s*."""
        ahead, checkpoint = assignment.read_ahead, assignment.checkpoint
        self.stream_shard_id, self.stream_name = assignment.stream_shard_id, stream_name
        self.lease, self.started_at = lease, lease.started_at
        self.retention = assignment.retention  # of the stream; the fleet sets it when it changes
        self.beginning = assignment.start, checkpoint  # of what is pending
        self.checkpoint_at_start = (
            None if checkpoint is None else positions.RecordPosition.from_position(checkpoint, utc())
        )
        self.main_beginning = self.beginning  # of the main reader
        if ahead is not None:
            self.main_beginning = positions.AtSequenceNumber(ahead.read_to.checkpoint), ahead.read_to
            checkpoint = ahead.read_to
        # Its last position is that of dispatch. None is before every record: no earlier record will ever be read.
        self.tracker: CheckpointTracker[positions.RecordPosition] = CheckpointTracker(
            None if checkpoint is None else positions.RecordPosition.from_position(checkpoint, utc())
        )
        self.began_behind = self.tracker.last_read  # the position after which the main reading began
        self.ownership = Ownership(self.tracker)
        unread, held = Unread(self.checkpoint_at_start), None if ahead is None else TenantSet.decode(ahead.held)
        # Held from *checkpoint_at_start* on when it began.
        self.predecessor_tenants = frozenset() if held is None else held.names
        pending = assignment.pending_at_parents or TenantSet()
        self.ownership.inherit(held, pending, unread, utc(), now=loop_time())
        self.unstored: dict[int, QueuedOperation] = {}  # refused, and their dead letters not stored yet; by object id
        self._ahead_from_s = ahead_from_s
        self._utc = utc
        self.is_at_end = False
        self.is_dispatching = False  # some records of the last reply are not dispatched yet
        self.has_published_end = False  # to the Postgres shards that answered

    @property
    def safe_position(self) -> positions.RecordPosition | None:
        """The position up to which no record is pending, as it is stored; None before there is one."""
        position = self.ownership.floor(self.tracker.checkpoint)
        return None if position is None else position.stored

    @property
    def checkpoint(self) -> positions.Position | None:
        """The safe position as that of a lease."""
        position = self.safe_position
        return None if position is None else position.position

    @property
    def read_to(self) -> positions.RecordPosition | None:
        """The position of dispatch: the last record read; None before there is one."""
        return self.tracker.last_read

    @property
    def is_finished(self) -> bool:
        """Whether it is read to its end, with no record pending."""
        return self.is_at_end and not len(self.tracker) and self.ownership.is_settled()

    def entries(self) -> list[QueuedOperation]:
        """Return all operations in memory."""
        return [*self.pipeline.entries(), *self.unstored.values()]

    def is_half_over(self, arrived_at: datetime) -> bool:
        """Return whether a record is past half of the retention."""
        return self.retention is not None and arrived_at < self._utc() - self.retention / 2

    def holds(self) -> list[Hold]:
        """Return all holds, the oldest first."""
        return self.ownership.holds()

    def all_pending_tenants(self) -> TenantSet:
        """Return all tenants that are held or have operations in memory."""
        tenants = self.ownership.owners.tenants()
        for entry in self.entries():
            tenants.add(entry.operation.tenant_id)
        return tenants

    def pending_tenants(self) -> TenantSet | None:
        """Return the tenants with pending operations, once all is read and the rest may take long."""
        takes_long = self.holds() or self.pipeline.is_stuck
        return self.all_pending_tenants() if self.has_published_end and takes_long else None

    @property
    def ahead(self) -> ReadAhead | None:
        """How far the reader is ahead of its checkpoint; None while that is not worth noting."""
        main, holds = self.tracker.checkpoint, self.holds()
        if main is None or not holds:
            return None
        safe_checkpoint = self.ownership.floor(main)
        oldest = min(hold.arrived_at for hold in holds) if safe_checkpoint is None else safe_checkpoint.arrived_at
        # The age of a predecessor's holds is unknown; it was high enough to be noted. At the end, no record is added.
        is_noted_anyway = self.is_at_end or any(hold.target is HeldTarget.PREDECESSOR for hold in holds)
        # Where no record came after the held ones, the time up to which it has read counts: for `read_up_to`.
        read_to = max(main.arrived_at, self._passed_to() or main.arrived_at)
        if not is_noted_anyway and (read_to - oldest).total_seconds() < self._ahead_from_s:
            return None
        tenants = self.ownership.owners.tenants()
        for entry in self.entries():
            if entry.tracker is not self.tracker:  # read by a catch-up, which may have ended
                tenants.add(entry.operation.tenant_id)
        held = tenants.encode()  # empty where only whole shards are held: the successor reads their rows
        return ReadAhead(main.stored.position, held) if held else None

    def read_up_to(self, ahead: ReadAhead | None) -> datetime | None:
        """Return the time before which nothing arrived that is pending, but for the tenants in *ahead*.

        None while unknown, as of a closed stream shard: its children may have no lease yet.
        """
        passed_to, holds = self._passed_to(), self.holds()
        is_closed = self.is_at_end or self.cursor.is_closed
        if passed_to is None or is_closed or any(hold.is_backfill for hold in holds):
            return None
        # What is no operation has no tenant that *ahead* could name.
        letters = [hold.first_arrival for hold in holds if hold.target is HeldTarget.LETTERS]
        instants = [passed_to, *letters]
        if ahead is None and not self.ownership.is_settled():
            if any(hold.target in (HeldTarget.PREDECESSOR, HeldTarget.PARENTS) for hold in holds):
                return None  # their first records are not known
            instants += [hold.arrived_at for hold in holds]
            others = (entry for entry in self.entries() if entry.tracker is not self.tracker)
            instants += [entry.operation.origin.arrived_at for entry in others]
        return min(instants) - VISIBLE_AFTER

    def _passed_to(self) -> datetime | None:
        if (first := self.tracker.first_pending) is not None:
            return first.arrived_at
        if self.cursor.millis_behind is None or self.is_dispatching:
            return None
        return self._fully_read_to()

    def _fully_read_to(self) -> datetime:
        # The last reply of a closed stream shard may not name the end: then the time of its last record.
        if self.cursor.last_arrival is not None:
            return self.cursor.last_arrival
        unread_for = timedelta(seconds=loop_time() - self.cursor.asked_at)
        return self._utc() - unread_for - timedelta(milliseconds=self.cursor.millis_behind or 0)

    def apply_to(self, lease: Lease) -> Lease:
        """Return the lease as its next renewal will write it."""
        ahead, checkpoint = self.ahead, self.checkpoint
        highest = lease.checkpoint if checkpoint is None else max(checkpoint, lease.checkpoint)
        return msgspec.structs.replace(lease, checkpoint=highest, ahead=ahead, read_up_to=self.read_up_to(ahead))

    def row(self) -> StreamPosition:
        """Return the position that all tenants have reached, as a row on a Postgres shard contains it."""
        safe = self.safe_position
        pending_from = positions.SHARD_END.checkpoint if self.is_finished else format_position(safe)
        return StreamPosition(pending_from, None if safe is None else safe.arrived_at)

    def row_ahead(self) -> tuple[str, tuple[str, ...]] | None:
        """Return the position that all but the held tenants have reached, and these, as a row contains them."""
        if self.is_at_end:
            return positions.SHARD_END.checkpoint, tuple(sorted(self.all_pending_tenants().encode()))
        ahead = self.ahead
        if ahead is None:
            return None
        return f"{ahead.read_to.checkpoint}/{ahead.read_to.sub_sequence_number}", tuple(sorted(ahead.held))
