"""Read one stream shard: every record becomes an operation that is dispatched to a Postgres shard, or a dead letter.

The operations of one tenant reach its shard in stream order (architecture, idea 2). Those that cannot be applied are
held (idea 3), and the main reader goes on for all other tenants.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import BARE_ENDS_ACCEPTED, Cursor, PushedCursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import MemoryQuota, Pacing
from simplu_worker.consumers.kinesis.fetch.record_decoder import (
    DecodedRecord,
    PartitionKeys,
    RecordDecoder,
    RejectionCollector,
    shown_key,
)
from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker, Hold
from simplu_worker.consumers.kinesis.holding.tenant_set import ParentRecords, TenantSet, Unread
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReadAhead
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUps
from simplu_worker.consumers.kinesis.reader.claimed_batches import QueuedOperation
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.reader.reader_view import (
    ReaderAssignment,
    ReaderLease,
    ReaderServices,
    ReaderSettings,
    ReaderView,
)
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage, format_position
from simplu_worker.consumers.kinesis.recovery.shard_positions import Ahead, ShardPositions
from simplu_worker.consumers.kinesis.stream.client import ExpiredIteratorError, Record
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    AtSequenceNumber,
    AtTimestamp,
    HashRange,
    LazyPositions,
    Position,
    RecordPosition,
    Start,
    TrimHorizon,
)
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.consumers.pipeline.lane import BATCH_MAX_COUNT
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.types import StreamPosition
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import HeldTarget, StreamReader, StreamShardState

SETTLED_WAIT_S: Final = 0.25
VISIBLE_AFTER: Final = timedelta(seconds=2)  # a reply may lack a record that was put so shortly before
FINAL_WRITE_S: Final = 0.5  # for all Postgres shards together
PUBLISH_END_S: Final = 2.0  # at most, until the last records are applied, held or stuck

log = structlog.get_logger(__name__)


class StreamShardReader:
    """Reads one stream shard from its checkpoint to its end, or until it is stopped."""

    def __init__(
        self,
        services: ReaderServices,
        assignment: ReaderAssignment,
        settings: ReaderSettings,
        memory: MemoryQuota,
        *,
        lease: ReaderLease,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*memory* is the reader's part of the replica's memory."""
        ahead = assignment.read_ahead
        start, checkpoint = assignment.start, assignment.checkpoint
        self.stream_shard_id = assignment.stream_shard_id
        self.beginning = start, checkpoint
        self.checkpoint_at_start = None if checkpoint is None else RecordPosition.from_position(checkpoint, utc())
        read_to = None if ahead is None else ahead.read_to
        if read_to is not None:
            start, checkpoint = AtSequenceNumber(read_to.checkpoint), read_to
        self._read_after = checkpoint  # until a record after it arrives
        self._stream = services.stream
        self.stream_name = services.stream.name
        self._dead_letters = services.dead_letters
        self._settings = settings
        self._memory = memory
        self.retention = assignment.retention  # of the stream; the fleet sets it when it changes
        self._lease = lease
        self.started_at = lease.started_at
        self.predecessor_tenants = (TenantSet() if ahead is None else TenantSet.decode(ahead.held)).names
        self._draw = draw
        self._utc = utc
        self.decoder = self._create_decoder(self.stream_shard_id, assignment.hash_range)
        self._partition_keys = PartitionKeys(settings.partition_key)
        # Its last position is that of dispatch. None is before every record: no earlier record will ever be read.
        self._tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(
            None if checkpoint is None else RecordPosition.from_position(checkpoint, utc())
        )
        self.began_behind = self._tracker.last_read
        self._access = StreamShardAccess(services.stream, self.stream_shard_id, memory, draw)
        self._pacing = Pacing(self._access.budget, services.schedule)
        self.cursor = self._open_cursor(start, services.subscriptions, assignment.read_up_to)
        self._dispatcher = Dispatcher(
            self, services.gateway, memory, main=self._tracker, tenant_wait=settings.tenant_wait, draw=draw, utc=utc
        )
        self._catch_ups = CatchUps(services.gateway, self._dispatcher, self._access, self)
        self.view = ReaderView(self._tracker, self.cursor, self._dispatcher, self._catch_ups, utc=utc)
        ownership, unread = self._dispatcher.ownership, Unread(self.checkpoint_at_start)
        if ahead is not None:
            ownership.hold_predecessors(TenantSet.decode(ahead.held), unread, utc(), now=loop_time())
        if assignment.pending_at_parents:
            ownership.hold_parents(assignment.pending_at_parents, unread, utc(), now=loop_time())
        self._stopping = asyncio.Event()
        self.is_at_end = False
        self._is_dispatching = False  # some records of the last reply are not dispatched yet
        self._has_published_end = False  # to the Postgres shards that answered

    @property
    def checkpoint(self) -> Position | None:
        """The position up to which no record is pending, if any."""
        position = self._dispatcher.ownership.floor(self._tracker.checkpoint)
        return None if position is None else position.stored.position

    @property
    def read_to(self) -> RecordPosition | None:
        """The position of dispatch: the last record read; None before there is one."""
        return self._tracker.last_read

    @property
    def is_finished(self) -> bool:
        """Whether it is read to its end, with no record pending."""
        return self.is_at_end and not len(self._tracker) and self._dispatcher.ownership.is_settled()

    @property
    def is_caught_up(self) -> bool:
        """Whether it is at the tip or the end, with every record finished or held."""
        at_tip = self.is_at_end or (self.cursor.millis_behind == 0 and not self._is_dispatching)
        is_catching_up = not all(hold.is_waiting for hold in self.holds()) or self._catch_ups.running
        has_asked_all = self._dispatcher.pipeline.lookup.has_asked_all
        return at_tip and not len(self._tracker) and not is_catching_up and has_asked_all

    def holds(self) -> list[Hold]:
        """Return all holds, the oldest first."""
        return self._dispatcher.ownership.holds()

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all of them, or *target*; return how many."""
        return self._dispatcher.retry_holds(target)

    def status(self) -> dict[str, Any]:
        """Return the progress, for the status."""
        checkpoint = self.checkpoint
        return {
            "streamShard": self.stream_shard_id,
            "state": self._activity,
            "checkpoint": None if checkpoint is None else checkpoint.checkpoint,
            "pendingBytes": self._memory.held_bytes,
        } | self.view.activity_status()

    @property
    def _activity(self) -> str:
        if self._stopping.is_set():
            return "draining"
        if self._memory.is_short:
            return StreamShardState.WAITS_FOR_MEMORY
        return StreamShardState.ENDED if self.is_at_end else StreamShardState.READING

    @property
    def is_waiting_for_parents(self) -> bool:
        """Whether some tenants are held because their operations of the parents are pending."""
        return any(hold.is_waiting_for_parents for hold in self.holds())

    def pending_tenants(self) -> TenantSet | None:
        """Return the tenants with pending operations, once all is read and the rest may take long.

        The set only shrinks.
        """
        takes_long = self.holds() or self._dispatcher.pipeline.is_stuck
        return self._dispatcher.pending_tenants() if self._has_published_end and takes_long else None

    @property
    def ahead(self) -> ReadAhead | None:
        """How far the reader is ahead of its checkpoint; None while that is not worth noting."""
        main, holds = self._tracker.checkpoint, self.holds()
        if main is None or not holds:
            return None
        safe_checkpoint = self._dispatcher.ownership.floor(main)
        oldest = min(hold.arrived_at for hold in holds) if safe_checkpoint is None else safe_checkpoint.arrived_at
        # The age of a predecessor's holds is unknown; it was high enough to be noted. At the end, no record is added.
        is_noted_anyway = self.is_at_end or any(hold.target is HeldTarget.PREDECESSOR for hold in holds)
        # Where no record came after the held ones, the time up to which it has read counts: for `read_up_to`.
        read_to = max(main.arrived_at, self._passed_to() or main.arrived_at)
        if not is_noted_anyway and (read_to - oldest).total_seconds() < self._settings.ahead_from_s:
            return None
        tenants = self._dispatcher.ownership.held_tenants()
        for entry in self._dispatcher.pipeline.entries():
            if entry.tracker is not self._tracker:  # read by a catch-up, which may have ended
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
        instants = [passed_to]
        if ahead is None and not self._dispatcher.ownership.is_settled():
            if any(hold.target in (HeldTarget.PREDECESSOR, HeldTarget.PARENTS) for hold in holds):
                return None  # their first records are not known
            instants += [hold.arrived_at for hold in holds]
            others = (entry for entry in self._dispatcher.pipeline.entries() if entry.tracker is not self._tracker)
            instants += [entry.operation.origin.arrived_at for entry in others]
        return min(instants) - VISIBLE_AFTER

    def _passed_to(self) -> datetime | None:
        if (first := self._tracker.first_pending) is not None:
            return first.arrived_at
        if self.cursor.millis_behind is None or self._is_dispatching:
            return None
        return self._fully_read_to()

    def _fully_read_to(self) -> datetime:
        # The last reply of a closed stream shard may not name the end: then the time of its last record.
        if self.cursor.last_arrival is not None:
            return self.cursor.last_arrival
        unread_for = timedelta(seconds=loop_time() - self.cursor.asked_at)
        return self._utc() - unread_for - timedelta(milliseconds=self.cursor.millis_behind or 0)

    def with_progress(self, lease: Lease) -> Lease:
        """Return the lease as its next renewal will write it."""
        ahead, checkpoint = self.ahead, self.checkpoint
        highest = lease.checkpoint if checkpoint is None else max(checkpoint, lease.checkpoint)
        return msgspec.structs.replace(lease, checkpoint=highest, ahead=ahead, read_up_to=self.read_up_to(ahead))

    def release_from_parents(self, pending: TenantSet) -> None:
        """Catch up the tenants held for the parents and no longer in *pending*.

        A shard may have lost what the parents' readers applied: the rows of all shards are read again before.
        """
        if not self._dispatcher.ownership.release_from_parents(pending, now=loop_time()):
            return
        for shard_position in self.shard_positions.invalidate_parent_rows():
            self._dispatcher.request_row_read(shard_position.shard_id)
        self._dispatcher.has_ready.set()

    @property
    def shard_positions(self) -> ShardPositions:
        """The rows of this reader on the Postgres shards."""
        return self._dispatcher.shard_positions

    def start_backfill(self, shard_id: str, unread: Unread) -> None:
        """Read *unread* again for all tenants of a Postgres shard to which nothing was sent yet."""
        self._dispatcher.start_backfill(shard_id, unread, ())

    def is_backfilling(self, shard_id: str) -> bool:
        """Return whether a Postgres shard is backfilled."""
        return (hold := self._dispatcher.ownership.shard_hold(shard_id)) is not None and hold.is_backfill

    def request_row_read(self, shard_id: str) -> bool:
        """See `Dispatcher.request_row_read`."""
        return self._dispatcher.request_row_read(shard_id)

    def abandon(self) -> None:
        """Treat the stream shard as read to its end."""
        self.is_at_end = True
        self._access.is_gone = True

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until *stopping* or the end; return when no batch is in flight.

        A batch without an answer is abandoned *drain_s* after the stop.
        """
        self._stopping = stopping
        try:
            async with asyncio.timeout(None) as deadline:
                await self._run(deadline)
        except TimeoutError:
            log.warning("stream_shard.undrained", stream_shard_id=self.stream_shard_id, after_s=self._settings.drain_s)
        finally:
            self._memory.close()

    async def _run(self, deadline: asyncio.Timeout) -> None:
        ending = asyncio.Event()  # from then on, nothing is sent
        try:
            async with asyncio.TaskGroup() as tasks:
                self._dispatcher.pipeline.start(tasks, ending)
                tasks.create_task(self._catch_ups.run(ending), name=f"catch-ups:{self.stream_shard_id}")
                try:
                    await self._read()
                finally:
                    self.cursor.close()
                    self._pacing.note_end()
                await self._publish_end()
                while not self.is_finished and not self._stopping.is_set():
                    await self._wait_for_settled()
                ending.set()
                deadline.reschedule(loop_time() + self._settings.drain_s)
        except* RetryableError as group:
            if not self._stopping.is_set():
                raise
            # Some dead letters could not be stored before the stop. Their records stay pending.
            log.warning("stream_shard.left", stream_shard_id=self.stream_shard_id, error=str(group.exceptions[0]))

    async def _publish_end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_END_S):
                while self._dispatcher.pipeline.has_progress and not self._stopping.is_set():
                    await self._wait_for_settled()
        if self.is_at_end and not self._stopping.is_set():
            await self.write_final_positions()
            self._has_published_end = True
            await self.shard_positions.confirm_lease()  # writes the lease row from which the children start

    def progress(self) -> StreamPosition:
        """See `RowsReader`."""
        safe_checkpoint = self._dispatcher.ownership.floor(self._tracker.checkpoint)
        pending_from = SHARD_END.checkpoint if self.is_finished else format_position(safe_checkpoint)
        return StreamPosition(pending_from, None if safe_checkpoint is None else safe_checkpoint.arrived_at)

    def progress_ahead(self) -> Ahead | None:
        """See `RowsReader`."""
        if self.is_at_end:
            return SHARD_END.checkpoint, tuple(sorted(self._dispatcher.pending_tenants().encode()))
        ahead = self.ahead
        if ahead is None:
            return None
        return f"{ahead.read_to.checkpoint}/{ahead.read_to.sub_sequence_number}", tuple(sorted(ahead.held))

    async def write_final_positions(self) -> None:
        """Write the progress to the Postgres shards that answer at once, after `run`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINAL_WRITE_S), asyncio.TaskGroup() as tasks:
                for shard_position in self.shard_positions.current_positions():
                    work = self.shard_positions.write_final_position(shard_position)
                    tasks.create_task(work, name=f"final-position:{shard_position.shard_id}")

    def decided_up_to(self, *, is_ahead: bool) -> datetime | None:
        """See `RowsReader`."""
        return self.read_up_to(self.ahead if is_ahead else None)

    async def confirm_lease(self) -> bool:
        """See `RowsReader`."""
        return await self._lease.confirm()

    def lineage(self) -> Lineage:
        """See `RowsReader`."""
        return self._lease.lineage()

    async def find_first_since(self, instant: datetime) -> RecordPosition | None:
        """See `RowsReader`."""
        return await self._find_first(self.stream_shard_id, AtTimestamp(instant))

    async def find_oldest(self, stream_shard_id: str) -> RecordPosition | None:
        """See `RowsReader`.

        A reply may look like the end by mistake, so the absence of records has to show several times.
        """
        for _ in range(BARE_ENDS_ACCEPTED):
            if (found := await self._find_first(stream_shard_id, TrimHorizon())) is not None:
                return found
        return None

    async def _find_first(self, stream_shard_id: str, start: Start) -> RecordPosition | None:
        # Takes nothing from the memory quota: operations that wait for the answer may fill it.
        try:
            iterator: str | None = await self._stream.get_iterator(stream_shard_id, start)
            with self._access.budget.open_catch_up(loop_time()) as pacing:
                while iterator is not None and not self._access.is_gone:
                    if await sleep_or_event(pacing.delay_s(loop_time()), until=self._stopping):
                        raise RetryableError("the reader stops")
                    async with self._access.lock:
                        pacing.note_start(loop_time())
                        reply = await self._stream.get_records(iterator, limit=1)
                    pacing.note_reply(loop_time(), record_count=len(reply.records), size_bytes=reply.size_bytes)
                    if reply.records:
                        return RecordPosition.before_record(
                            reply.records[0].sequence_number, reply.records[0].arrived_at
                        )
                    if not reply.millis_behind:
                        return None
                    iterator = reply.next_iterator
        except (PermanentError, ExpiredIteratorError) as exc:
            raise RetryableError(str(exc)) from exc
        return None

    def open_parent(self, records: ParentRecords) -> tuple[StreamShardAccess, RecordDecoder]:
        """See `MainReader`."""
        access = StreamShardAccess(self._stream, records.stream_shard_id, self._memory, self._draw)
        return access, self._create_decoder(records.stream_shard_id, records.hash_range)

    def _open_cursor(self, start: Start, subscriptions: Subscriptions | None, read_up_to: datetime | None) -> Cursor:
        expires_at = None
        if read_up_to is not None and self.retention is not None:
            expires_at = loop_time() + (read_up_to + self.retention - self._utc()).total_seconds()
        access, pacing, retention = self._access, self._pacing, self.retention
        if subscriptions is None:
            return Cursor(access, start, pacing, kind=StreamReader.MAIN, retention=retention, expires_at=expires_at)
        return PushedCursor(access, start, pacing, subscriptions, retention=retention, expires_at=expires_at)

    def _create_decoder(self, stream_shard_id: str, hash_range: HashRange | None) -> RecordDecoder:
        return RecordDecoder(
            self._stream.name,
            stream_shard_id,
            operation_max_bytes=self._settings.operation_max_bytes,
            list_result_limit=self._settings.list_result_limit,
            hash_range=hash_range,
        )

    async def _read(self) -> None:
        while not self._stopping.is_set() and not self.is_at_end:
            if self._memory.is_short or self._dispatcher.pipeline.lookup.is_crowded:
                self._dispatcher.hold_over_share()
                await self._wait_for_settled()
                continue
            reply = await self.cursor.read(self._stopping)
            if reply is None:
                continue
            self._is_dispatching = True
            await self._dispatch_records(reply.records)
            self._is_dispatching = False
            self.cursor.release_memory()
            if self.cursor.is_at_end and await self._lease.is_end(self.cursor.child_shards):
                self.is_at_end = True

    async def _dispatch_records(self, records: list[Record]) -> None:
        rejections = RejectionCollector()
        rejected: list[list[int]] = []
        arrivals = self.decoder.decode(records, after=self._read_after)
        tracker, ownership = self._tracker, self._dispatcher.ownership
        while decoded := await self._decode_batch(arrivals):
            self._read_after = None
            entries: list[QueuedOperation] = []
            held: list[int] = []
            rejected_now: list[int] = []
            is_any_held = len(ownership) > 0
            tickets = tracker.start_all(LazyPositions([origin for origin, _, _ in decoded]))
            for ticket, (_, record, operation) in zip(tickets, decoded, strict=True):
                if not isinstance(operation, Operation):
                    rejections.add(operation, record)
                    rejected_now.append(ticket)
                elif is_any_held and (owner := ownership.owner_of(operation.tenant_id)) is not None:
                    owner.passed_count += 1
                    held.append(ticket)  # a catch-up will read it again
                else:
                    entries.append(QueuedOperation(ticket, operation, record, tracker))
            self._check_partition_keys([one for _, _, one in decoded if isinstance(one, Operation)])
            rejected.append(rejected_now)
            tracker.finish(held)
            ownership.mark_live({entry.operation.tenant_id for entry in entries})
            self._dispatcher.send(entries)
            is_full = len(decoded) == BATCH_MAX_COUNT
            del decoded, entries  # else their memory would be free only after the next batch is decoded
            if is_full:
                await asyncio.sleep(0)  # other tasks run before the next batch is decoded
        if len(rejections):
            await self.store_dead_letters(rejections.dead_letters(self._utc()))
            for batch in rejected:  # one batch after the other: rejections are often all of it
                tracker.finish(batch)
        instruments.KINESIS_LAG.labels(self.stream_shard_id).set(self.view.least_lag_s)

    def _check_partition_keys(self, operations: Sequence[Operation]) -> None:
        if count := self._partition_keys.note(operations):
            instruments.KINESIS_WRONG_KEYS.inc(count)
        if (warning := self._partition_keys.take_warning(loop_time())) is not None:
            last, count = warning
            log.warning(
                "partition_key.wrong",
                stream_shard_id=self.stream_shard_id,
                business_id=last.business_id,
                location_id=last.location_id,
                partition_key=shown_key(last.origin.partition_key or ""),
                operations=count,
                rule=self._settings.partition_key,
            )

    async def _decode_batch(self, arrivals: Iterator[DecodedRecord]) -> list[DecodedRecord]:
        # Undecoded records take half the memory, and those decoded together go to the lane as one batch.
        # Objects created alternately with those of other readers would be scattered in memory.
        decoded = list(islice(arrivals, 1))  # shows whether there are more
        while decoded and not self._dispatcher.may_read_on() and not self._stopping.is_set():
            await self._wait_for_settled()
        decoded += islice(arrivals, BATCH_MAX_COUNT - len(decoded))
        return decoded

    async def store_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Return when *letters* are stored. Raises RetryableError when the reader is stopped before."""
        await self._dead_letters.store(letters, stopping=self._stopping)

    async def _wait_for_settled(self) -> None:
        self._dispatcher.has_settled.clear()
        await sleep_or_event(SETTLED_WAIT_S, until=self._dispatcher.has_settled)
