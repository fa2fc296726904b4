"""Read one stream shard: every record becomes an operation on its way to a shard, or a dead letter.

The reader applies a prefix (architecture, idea 2): operations of one tenant reach its shard in stream order, whatever
happens to those of others. What cannot be applied is held, and read again when it can be (idea 3): the main reader
goes on for all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.consumers.kinesis.dispatch.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.dispatch.shard_lane import BATCH_MAX_COUNT, QueuedOperation
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import Pacing
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import MemoryQuota
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord, RecordDecoder
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.holds import CatchUp, Hold, Target
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import ReadAhead
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUpReader, CatchUps
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage
from simplu_worker.consumers.kinesis.recovery.shard_positions import (
    Backfill,
    PositionRow,
    ReaderProgress,
    ReaderState,
    ShardPositions,
)
from simplu_worker.consumers.kinesis.stream.client import (
    AtSequenceNumber,
    AtTimestamp,
    ChildShard,
    ExpiredIteratorError,
    Record,
    Start,
    Stream,
)
from simplu_worker.consumers.kinesis.stream.positions import (
    SHARD_END,
    HashRange,
    LazyPositions,
    Position,
    RecordPosition,
)
from simplu_worker.dead_letters.letter import DeadLetter, dead_letter_of
from simplu_worker.dead_letters.queue import DeadLetterStore
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event

SETTLED_WAIT_S: Final = 0.25
FINAL_WRITE_S: Final = 0.5  # at the end, for all Postgres shards together
PUBLISH_END_S: Final = 2.0  # at most, until what was read last is applied, held or stuck

log = structlog.get_logger(__name__)


class ReaderSettings(msgspec.Struct, frozen=True):
    """What the settings say about reading."""

    operation_max_bytes: int
    list_result_limit: int
    tenant_wait: timedelta
    ahead_from_s: float = 30.0  # noted in the lease row when what is held is so much older than what is read
    drain_s: float = 20.0  # short of SHUTDOWN_GRACE_SECONDS: leases are given back after it


class LeaseContext(msgspec.Struct, frozen=True):
    """What a reader has by the lease under which it access.

    *confirm* tells, for the moment, whether it is still its own; *lineage* is what the stream shard continues;
    *started_at* is where reading that began, if not at its beginning.
    """

    confirm: Callable[[], Awaitable[bool]]
    lineage: Callable[[], Lineage]
    started_at: datetime | None


class StreamShardReader:
    """Reads one stream shard from its checkpoint on, to its end or until told to stop."""

    def __init__(
        self,
        stream: Stream,
        stream_shard_id: str,
        start: Start,
        *,
        done: Position | None = None,
        hash_range: HashRange | None = None,
        pending_at_parents: TenantSet | None = None,
        ahead: ReadAhead | None = None,
        gateway: ShardGateway,
        dead_letters: DeadLetterStore,
        rules: ReaderSettings,
        memory: MemoryQuota,
        retention: timedelta | None = None,
        is_end: Callable[[tuple[ChildShard, ...]], Awaitable[bool]] | None = None,
        ties: LeaseContext | None = None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*done* is the checkpoint, where *start* is its record: of an aggregate a part may be done with.

        With *ahead* the main reader goes on where its predecessor was, who held some tenants from the checkpoint on.
        Of the tenants in *pending_at_parents* nothing is applied before the parents owe it no more (`free_parents`).
        *memory* is its part of the replica's memory, *retention* that of the stream. *is_end* is asked, with the child
        shards named, whether a reply without an iterator is the end; otherwise it is read on. Without *ties* to a lease
        no Postgres shard is told how far it gets: it only reads beside the reader whose rows those are.
        """
        self.stream_shard_id = stream_shard_id
        self._beginning = start, done
        read_to = None if ahead is None else ahead.read_to
        if read_to is not None:
            start, done = AtSequenceNumber(read_to.checkpoint), read_to
        self._done = done  # until a record behind it is met
        self._stream = stream
        self._gateway = gateway
        self._draw = draw
        self._dead_letters = dead_letters
        self._settings = rules
        self._memory = memory
        self.retention = retention  # of the stream; whoever learns of a change sets it
        self._is_end = is_end
        self._utc = utc
        self._decoder = self._create_decoder(stream_shard_id, hash_range)
        # Its last position is that of dispatch. None is before everything: nothing is ever read that comes earlier.
        self._tracker: CheckpointTracker[RecordPosition] = CheckpointTracker(
            None if done is None else RecordPosition.from_position(done, utc())
        )
        self._checkpoint_before = (
            None if self._beginning[1] is None else RecordPosition.from_position(self._beginning[1], utc())
        )
        self._access = StreamShardAccess(stream, stream_shard_id, memory, draw)
        self._pacing = Pacing(self._access.budget)
        self._cursor = Cursor(self._access, start, self._pacing, kind="main", retention=retention)
        self._dispatcher = Dispatcher(
            stream_shard_id,
            gateway,
            memory,
            tenant_wait=rules.tenant_wait,
            store=self._store_letters,
            facts=None if ties is None else self._reader_state(ties, ahead),
            draw=draw,
            utc=utc,
        )
        self._catch_ups = CatchUps(gateway, self._dispatcher, self._access, self._make_catch_up_reader)
        if ahead is not None:
            held = TenantSet.decode(ahead.held)
            self._dispatcher.holds.hold_predecessors(held, self._checkpoint_before, utc(), now=loop_time())
        if pending_at_parents:
            self._dispatcher.holds.hold_parents(pending_at_parents, self._checkpoint_before, utc(), now=loop_time())
        self._stopping = asyncio.Event()
        self.is_at_end = False
        self._is_dispatching = False  # what the last reply brought is not all on its way
        self._has_published_end = False  # to the Postgres shards, as far as they answer

    def __repr__(self) -> str:
        return f"StreamShardReader({self.stream_shard_id}, {self._tracker!r}, {self._memory!r}, {self._dispatcher!r})"

    @property
    def checkpoint(self) -> Position | None:
        """The position up to which nothing is owed to anyone; None when nothing was finished yet."""
        mark = self._dispatcher.holds.safe_checkpoint(self._tracker.checkpoint)
        return None if mark is None or mark.is_between_records else mark.position

    @property
    def read_to(self) -> RecordPosition | None:
        """The last record read; None when there was none yet."""
        return self._position()

    @property
    def is_finished(self) -> bool:
        """Whether the stream shard was read to its end and nothing of it is owed."""
        return self.is_at_end and not len(self._tracker) and self._dispatcher.holds.is_settled()

    @property
    def is_caught_up(self) -> bool:
        """Whether it is at the tip or the end, and all that it read is done with or waits for its target."""
        at_tip = self.is_at_end or (self._cursor.millis_behind == 0 and not self._is_dispatching)
        is_waiting = any(hold.is_ready for hold in self._dispatcher.holds.all()) or self._catch_ups.running
        return at_tip and not len(self._tracker) and not is_waiting and self._dispatcher.lookup.has_asked_all

    @property
    def trouble(self) -> str | None:
        """Why the stream shard cannot be read now."""
        return self._cursor.trouble

    @property
    def refusal(self) -> str | None:
        """The trouble, where only a person can end it."""
        return self._cursor.refusal

    @property
    def lag_s(self) -> float | None:
        """The age of the first record in hand, or how far the last reply was behind the tip; None before it.

        While nothing can be read it grows: what came since is not known. What is held does not count: `held_age_s`.
        """
        first = self._tracker.first_pending
        if first is not None:
            return max(0.0, (self._utc() - first.arrived_at).total_seconds())
        if self._cursor.millis_behind is None:
            return None
        unread_for_s = loop_time() - self._cursor.replied_at if self.trouble else 0.0
        return self._cursor.millis_behind / 1000 + unread_for_s

    def lag_of(self, tenant_id: str | None) -> float | None:
        """Return how far a tenant's operations may be behind, what is held of it included; of any tenant without it."""
        holds = [hold for hold in self.holds() if tenant_id is None or tenant_id in hold.tenants]
        return max((age for age in [self.lag_s, *map(self.held_age_s, holds)] if age is not None), default=None)

    @property
    def catch_up_lag_s(self) -> float:
        """How far the last of its catch-ups is behind the main reader; 0 when there is none."""
        return max((one.lag_s for one in self._catch_ups.running), default=0.0)

    @property
    def catch_up_count(self) -> int:
        """How many catch-ups are at work."""
        return len(self._catch_ups.running)

    @property
    def held_retention_ratio(self) -> float:
        """The age of the oldest operation held, over the time the stream keeps it; 1 is when it is lost."""
        if self.retention is None:
            return 0.0
        return max(map(self.held_age_s, self.holds()), default=0.0) / self.retention.total_seconds()

    def held_age_s(self, hold: Hold) -> float:
        """Return the age of the first operation of a hold that is not applied."""
        at = hold.reached if hold.catch_up is not None else None
        arrived_at = hold.arrived_at if at is None else max(hold.arrived_at, at.arrived_at)
        return max(0.0, (self._utc() - arrived_at).total_seconds())

    def holds(self) -> list[Hold]:
        """Return what is held."""
        return self._dispatcher.holds.all()

    def is_pending(self, request_id: str, tenant_id: str | None) -> bool:
        """Whether an operation is in memory and not yet applied. Looks at all that is in hand: for people only."""
        return any(
            entry.operation.request_id == request_id and tenant_id in (None, entry.operation.tenant_id)
            for entry in self._dispatcher.entries()
        )

    def held_status(self) -> list[dict[str, Any]]:
        """Return what is held, for the status: what, why, since when, and how old its first operation is."""
        now = loop_time()
        return [
            {
                "target": f"{hold.target} {hold.name}".strip(),
                "reason": hold.reason,
                "state": "catching up" if hold.catch_up else "ready" if hold.is_ready else "held",
                "tenants": len(hold.tenants),
                "ageSeconds": round(self.held_age_s(hold), 1),
                "heldForSeconds": round(now - hold.since, 1),
                "position": None if hold.reached is None else hold.reached.sequence_number,
            }
            for hold in self.holds()
        ]

    def status(self) -> dict[str, Any]:
        """Return how far it is, for people."""
        checkpoint = self.checkpoint
        return {
            "streamShard": self.stream_shard_id,
            "state": "waits for memory" if self._memory.is_short else "ended" if self.is_at_end else "reading",
            "lagSeconds": self.lag_s,
            "checkpoint": None if checkpoint is None else checkpoint.checkpoint,
            "pendingBytes": self._memory.held_bytes,
            "held": dict(Counter(hold.reason for hold in self.holds())),
            "catchUps": [one.status() for one in self._catch_ups.running],
            "trouble": self.trouble,
        }

    @property
    def is_waiting_for_parents(self) -> bool:
        """Whether something is held that its parents still owe."""
        return any(hold.target is Target.PARENTS and not hold.is_ready for hold in self.holds())

    def pending_tenants(self) -> TenantSet | None:
        """Return to whom something is owed, once all was read and it may take long; None before.

        From then on it only shrinks: nothing new is read.
        """
        takes_long = self.holds() or self._dispatcher.is_stuck
        return self._dispatcher.pending_tenants() if self._has_published_end and takes_long else None

    @property
    def ahead(self) -> ReadAhead | None:
        """How far it is ahead of its checkpoint; None when that is not worth noting.

        A successor that begins at the checkpoint would keep all others waiting while it reads again what is held.
        """
        main, holds = self._tracker.checkpoint, self.holds()
        if main is None or not holds:
            return None
        floor = self._dispatcher.holds.safe_checkpoint(main)
        oldest = min(hold.arrived_at for hold in holds) if floor is None else floor.arrived_at
        # How old a predecessor's holds are is not known; it found them worth noting. At the end nothing new comes.
        is_worth_it = self.is_at_end or any(hold.target is Target.PREDECESSOR for hold in holds)
        if not is_worth_it and (main.arrived_at - oldest).total_seconds() < self._settings.ahead_from_s:
            return None
        tenants = self._dispatcher.holds.held_tenants()
        for entry in self._dispatcher.entries():
            if entry.tracker is not self._tracker:  # of a catch-up that has ended, perhaps
                tenants.add(entry.operation.tenant_id)
        held = tenants.encode()  # none where whole shards are held only: who comes next reads their rows
        return ReadAhead(main.position, held) if held else None

    def release_from_parents(self, owed: TenantSet) -> None:
        """Apply what was held for the parents, now that they owe only *owed*.

        What they applied meanwhile may be lost again: before those who are free now have anything applied on a shard,
        its rows are read once more.
        """
        if not self._dispatcher.holds.release_from_parents(owed, now=loop_time()):
            return
        if self.shard_positions is not None:
            for contact in self.shard_positions.invalidate_parent_rows():
                self._dispatcher.request_row_read(contact.shard_id)
        self._dispatcher.has_ready.set()

    @property
    def shard_positions(self) -> ShardPositions | None:
        """The rows of this reader on the Postgres shards."""
        return self._dispatcher.shard_positions

    def start_backfill(self, shard_id: str, refill: Backfill) -> None:
        """Read again for all tenants of a Postgres shard to which nothing was sent yet."""
        self._dispatcher.start_backfill(shard_id, refill, ())

    def is_backfilling(self, shard_id: str) -> bool:
        """Whether the stream is being read again for all tenants of a Postgres shard."""
        return self._dispatcher.holds.whole_shard_hold(shard_id) is not None

    def request_row_read(self, shard_id: str) -> bool:
        """Have the lane to a Postgres shard read its row there anew; False when there is no lane."""
        return self._dispatcher.request_row_read(shard_id)

    def abandon(self) -> None:
        """Take the stream shard for read to its end: it is past its retention, there is nothing left to read."""
        self.is_at_end = True
        self._access.is_gone = True

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until *stopping* or the end; return when no batch is in flight any more. What is left stays owed.

        A batch whose shard does not answer is given up *drain_s* after the stop; the log knows whether it was applied.
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
        ending = asyncio.Event()  # nothing is sent any more
        try:
            async with asyncio.TaskGroup() as tasks:
                self._dispatcher.start(tasks, ending)
                tasks.create_task(self._catch_ups.run(ending), name=f"catch-ups:{self.stream_shard_id}")
                await self._read()
                self._pacing.note_end()
                await self._publish_end()
                while not self.is_finished and not self._stopping.is_set():
                    await self._wait_for_settled()
                ending.set()
                deadline.reschedule(loop_time() + self._settings.drain_s)
        except* RetryableError as group:
            # Only a stop ends it this way: dead letters that could not be stored. Their records stay owed.
            log.warning("stream_shard.left", stream_shard_id=self.stream_shard_id, error=str(group.exceptions[0]))

    def _reader_state(self, ties: LeaseContext, ahead: ReadAhead | None) -> ReaderState:
        held = TenantSet() if ahead is None else TenantSet.decode(ahead.held)
        return ReaderState(
            stream_name=self._stream.name,
            stream_shard_id=self.stream_shard_id,
            began_behind=self._tracker.last_read,
            checkpoint=self._checkpoint_before,
            predecessor_tenants=held.names,
            read_to=self._position,
            progress=self._progress,
            ahead_row=self._ahead_row,
            find_first_since=self._find_first_since,
            confirm_lease=ties.confirm,
            lineage=ties.lineage,
            started_at=ties.started_at,
        )

    async def _publish_end(self) -> None:
        """Tell the Postgres shards what was read, before the children learn what is still owed and begin there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_END_S):
                while self._dispatcher.has_progress and not self._stopping.is_set():
                    await self._wait_for_settled()
        if self.is_at_end and not self._stopping.is_set():
            await self.write_final_positions()
            self._has_published_end = True
            if self.shard_positions is not None:
                await self.shard_positions.confirm_lease()  # the lease, by which the children begin

    def _progress(self) -> ReaderProgress:
        floor = self._dispatcher.holds.safe_checkpoint(self._tracker.checkpoint)
        return ReaderProgress(floor, is_finished=self.is_finished)

    def _ahead_row(self) -> PositionRow | None:
        """Return what `ahead` is as the Postgres shards have it; at the end that is to whom anything is owed at all."""
        if self.is_at_end:
            return PositionRow(
                read_to=SHARD_END.checkpoint, held=tuple(sorted(self._dispatcher.pending_tenants().encode()))
            )
        ahead = self.ahead
        if ahead is None:
            return None
        read_to = f"{ahead.read_to.checkpoint}/{ahead.read_to.sub_sequence_number}"
        return PositionRow(read_to=read_to, held=tuple(sorted(ahead.held)))

    async def write_final_positions(self) -> None:
        """Tell the Postgres shards, once `run` has returned, how far it got: who comes next need not read that again.

        As far as they answer at once.
        """
        if self.shard_positions is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINAL_WRITE_S), asyncio.TaskGroup() as tasks:
                for contact in self.shard_positions.current_positions():
                    tasks.create_task(
                        self.shard_positions.write_final_position(contact), name=f"last-word:{contact.shard_id}"
                    )

    async def _find_first_since(self, instant: datetime) -> RecordPosition | None:
        """Return the place before the first record that arrived since *instant*; None when there is none yet.

        Takes no part in the accounts of memory: all that may be in use by what waits for the answer.
        """
        try:
            iterator: str | None = await self._stream.get_iterator(self.stream_shard_id, AtTimestamp(instant))
            with self._access.budget.open_catch_up(loop_time()) as pacing:
                while iterator is not None and not self._access.is_gone:
                    if await sleep_or_event(pacing.delay_s(loop_time()), until=self._stopping):
                        raise RetryableError("it is to stop")
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

    def _open_parent(self, records: ParentRecords) -> tuple[StreamShardAccess, RecordDecoder]:
        access = StreamShardAccess(self._stream, records.stream_shard_id, self._memory, self._draw)
        return access, self._create_decoder(records.stream_shard_id, records.hash_range)

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
            if self._memory.is_short or self._dispatcher.lookup.is_crowded:
                await self._wait_for_settled()
                continue
            reply = await self._cursor.read(self._stopping)
            if reply is None:
                continue
            self._is_dispatching = True
            await self._dispatch_records(reply.records)
            self._is_dispatching = False
            self._cursor.release_memory()
            if self._cursor.is_at_end and (self._is_end is None or await self._is_end(self._cursor.child_shards)):
                self.is_at_end = True

    async def _dispatch_records(self, records: list[Record]) -> None:
        """Send the operations of a reply on their way; return when its dead letters are stored."""
        letters: list[DeadLetter] = []
        buried: list[int] = []
        arrivals = self._decoder.decode(records, after=self._done)
        owed, holds = self._tracker, self._dispatcher.holds
        while decoded := await self._decode_batch(arrivals):
            self._done = None
            entries: list[QueuedOperation] = []
            held: list[int] = []
            is_any_held = len(holds) > 0
            tickets = owed.start_all(LazyPositions([place for place, _, _ in decoded]))
            for ticket, (_, record, operation) in zip(tickets, decoded, strict=True):
                if not isinstance(operation, Operation):
                    letters.append(dead_letter_of(operation, record, failed_at=self._utc()))
                    buried.append(ticket)
                elif is_any_held and holds.hold_of(operation.tenant_id) is not None:
                    held.append(ticket)  # a catch-up will come to it
                else:
                    entries.append(QueuedOperation(ticket, operation, record, owed))
            owed.finish(held)
            holds.mark_live({entry.operation.tenant_id for entry in entries})
            self._dispatcher.send(entries)
            if len(decoded) == BATCH_MAX_COUNT:
                await asyncio.sleep(0)  # others have their turn before the next
        if letters:
            await self._store_letters(letters)
            owed.finish(buried)
        instruments.KINESIS_LAG.labels(self.stream_shard_id).set(self.lag_s or 0.0)

    async def _decode_batch(self, arrivals: Iterator[DecodedRecord]) -> list[DecodedRecord]:
        """Decode as many as a lane takes at once, when there is one that has nothing to do; none at the end.

        No earlier: undecoded they take half the memory, and what is decoded together goes to the lane as one batch. In
        one go, of some milliseconds: what is made by turns with other readers' lies scattered among that in memory, and
        takes a tenth more of the processor's time, from here to where it is let go.
        """
        decoded = list(islice(arrivals, 1))  # to see that there are more
        while decoded and not self._dispatcher.has_idle_lane and not self._stopping.is_set():
            await self._wait_for_settled()
        decoded += islice(arrivals, BATCH_MAX_COUNT - len(decoded))
        return decoded

    def _make_catch_up_reader(self, catch_up: CatchUp) -> CatchUpReader:
        return CatchUpReader(
            catch_up,
            self._access,
            self._decoder,
            self._dispatcher,
            gateway=self._gateway,
            main_at=self._position,
            beginning=self._beginning,
            read_parent=self._open_parent,
            retention=self.retention,
        )

    def _position(self) -> RecordPosition | None:
        """Return the position of dispatch."""
        return self._tracker.last_read

    async def _store_letters(self, letters: Sequence[DeadLetter]) -> None:
        await self._dead_letters.store(letters, stopping=self._stopping)

    async def _wait_for_settled(self) -> None:
        """Wait until something is settled, or long enough to look whether to stop."""
        self._dispatcher.has_settled.clear()
        await sleep_or_event(SETTLED_WAIT_S, until=self._dispatcher.has_settled)
