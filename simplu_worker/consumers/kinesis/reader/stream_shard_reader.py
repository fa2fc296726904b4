"""Read one stream shard: every record becomes an operation that is dispatched to a Postgres shard, or a dead letter.

The operations of one tenant reach its shard in stream order (architecture, idea 2). Those that cannot be applied are
held (idea 3), and the main reader goes on for all other tenants.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, PushedCursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import MemoryQuota, ReadSchedule
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord, RecordDecoder, with_wrong_keys
from simplu_worker.consumers.kinesis.holding.ownership import Hold
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet, Unread
from simplu_worker.consumers.kinesis.leases.lease import HeldTarget, first_held
from simplu_worker.consumers.kinesis.reader.catch_up import CatchUps
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.reader.letter_outbox import LetterOutbox, Rejection
from simplu_worker.consumers.kinesis.reader.tenant_shares import TenantShares
from simplu_worker.consumers.kinesis.recovery.reader_progress import (
    QueuedOperation,
    ReaderAssignment,
    ReaderLease,
    ReaderProgress,
)
from simplu_worker.consumers.kinesis.stream.client import Record, Stream
from simplu_worker.consumers.kinesis.stream.positions import LazyPositions, Start
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.consumers.pipeline.lane import BATCH_MAX_COUNT
from simplu_worker.consumers.rejection_notes import DeadLetterStore
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import PartitionKeyRule, StreamReader, StreamShardState

SETTLED_WAIT_S: Final = 0.25
WARNING_INTERVAL_S: Final = 600.0  # of wrong partition keys in one stream shard
SHOWN_MAX: Final = 64  # characters of a key
PUBLISH_END_S: Final = 2.0  # at most, until the last records are applied, held or stuck

log = structlog.get_logger(__name__)


TENANTS_NAMED_MAX: Final = 50  # of a hold
REPLY_WITHIN_S: Final = 10.0  # polls come each second, events of a push each five seconds


class ReaderView:
    """The view of one reader, which gives it its parts."""

    def __init__(
        self,
        progress: ReaderProgress,
        dispatcher: Dispatcher,
        catch_ups: CatchUps,
        *,
        utc: UtcClock,
    ) -> None:
        self._progress = progress
        self._cursor = progress.cursor
        self._dispatcher = dispatcher
        self._catch_ups = catch_ups
        self._utc = utc

    @property
    def lag_s(self) -> float | None:
        """The age of the first pending record, else the lag of the last reply. Held records do not count."""
        first = self._progress.tracker.first_pending
        if first is not None:
            return max(0.0, (self._utc() - first.arrived_at).total_seconds())
        if self._cursor.millis_behind is None:
            return None
        waited_s = loop_time() - self._cursor.replied_at
        is_late = waited_s > REPLY_WITHIN_S and not self._cursor.is_closed
        return self._cursor.millis_behind / 1000 + (waited_s if is_late else self.unread_for_s)

    @property
    def least_lag_s(self) -> float:
        """The lag for metrics: before the first reply, the time since the first try."""
        return self.unread_for_s if self.lag_s is None else self.lag_s

    @property
    def unread_for_s(self) -> float:
        """For how long every read has failed; 0 while reads succeed."""
        return loop_time() - self._cursor.replied_at if self._cursor.trouble else 0.0

    def lag_of(self, tenant_id: str | None) -> float | None:
        """Return how far a tenant's operations, or any tenant's, may be behind, held ones included."""
        owner = None if tenant_id is None else self.hold_of(tenant_id)
        holds = self._progress.holds() if tenant_id is None else [] if owner is None else [owner]
        return max((age for age in [self.lag_s, *map(self.held_age_s, holds)] if age is not None), default=None)

    @property
    def catch_up_lag_s(self) -> float:
        """The lag of the slowest catch-up behind the main reader; 0 without catch-ups."""
        return max((one.lag_s for one in self._catch_ups.running), default=0.0)

    @property
    def lag_retention_ratio(self) -> float:
        """The lag over the retention; at 1 the next records are lost. 0 while unknown."""
        return self._ratio(self.least_lag_s)

    @property
    def held_retention_ratio(self) -> float:
        """The age of the oldest held operation over the retention."""
        return self._ratio(max(map(self.held_age_s, self._progress.holds()), default=0.0))

    def _ratio(self, age_s: float) -> float:
        retention = self._progress.retention
        return 0.0 if retention is None else age_s / retention.total_seconds()

    def held_age_s(self, hold: Hold) -> float:
        """Return the age of the first operation of a hold."""
        return max(0.0, (self._utc() - hold.first_arrival).total_seconds())

    def is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        """Return whether an operation is in memory. Searches all of them."""
        return any(entry.operation.is_named(request_id, names) for entry in self._progress.entries())

    def has_operations_of(self, names: tuple[str, str]) -> bool:
        """Return whether operations with these ids wait for a shard, held ones included."""
        return self._dispatcher.pipeline.lookup.has_names(names)

    def hold_of(self, tenant_id: str) -> Hold | None:
        """Return the hold of a tenant; None without one."""
        return self._dispatcher.ownership.owner_of(tenant_id)

    def held_status(self) -> list[dict[str, Any]]:
        """Return every hold for the status."""
        now = loop_time()
        return [
            {
                "target": hold.title,
                "reason": hold.reason,
                "state": hold.state,
                "tenants": len(hold.tenants),
                "tenantIds": sorted(hold.tenants.names)[:TENANTS_NAMED_MAX],
                "operations": hold.passed_count,
                "ageSeconds": round(self.held_age_s(hold), 1),
                "heldForSeconds": round(now - hold.since, 1),
                "position": None if hold.reached is None else hold.reached.sequence_number,
            }
            for hold in self._progress.holds()
        ]

    def first_held(self) -> tuple[HeldTarget, ...]:
        """Return the oldest held targets, for the other replicas."""
        return first_held(HeldTarget(hold.title, hold.reason, self.held_age_s(hold)) for hold in self._progress.holds())


class ReaderServices(msgspec.Struct, frozen=True):
    """The opened services; with *subscriptions* the reader reads by push, with a *schedule* when other readers do."""

    stream: Stream
    gateway: ShardGateway
    dead_letters: DeadLetterStore
    subscriptions: Subscriptions | None = None
    schedule: ReadSchedule | None = None


class ReaderSettings(msgspec.Struct, frozen=True):
    """The settings of reading."""

    operation_max_bytes: int
    list_result_limit: int
    retries: RetryRules
    partition_key: PartitionKeyRule = PartitionKeyRule.RESOURCE_TYPE
    ahead_from_s: float = 30.0  # the lease row gets a read-ahead when the held records are so much older than the read
    drain_s: float = 20.0  # less than SHUTDOWN_GRACE_SECONDS: the leases are released after it


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
        self.stream_shard_id = assignment.stream_shard_id
        self._settings = settings
        self._memory = memory
        self._lease = lease
        self._utc = utc
        self.progress = progress = ReaderProgress(
            assignment, services.stream.name, lease, ahead_from_s=settings.ahead_from_s, utc=utc
        )
        start, self._read_after = progress.main_beginning  # until a record after it arrives
        self._warned_at = float("-inf")  # of wrong partition keys
        self._unwarned_count = 0  # operations with such, since then
        decoder = RecordDecoder(
            services.stream.name,
            self.stream_shard_id,
            operation_max_bytes=settings.operation_max_bytes,
            list_result_limit=settings.list_result_limit,
            hash_range=assignment.hash_range,
        )
        self._access = StreamShardAccess(services.stream, decoder, memory, draw, services.schedule)
        self.cursor = progress.cursor = self._open_cursor(start, services.subscriptions, assignment.read_up_to)
        self._letters = LetterOutbox(services.dead_letters, lambda: self._stopping)
        self._dispatcher = Dispatcher(
            progress,
            services.gateway,
            self._access,
            self._letters,
            rules=settings.retries,
            draw=draw,
            utc=utc,
        )
        self.shard_positions = self._dispatcher.shard_positions
        self._shares = TenantShares(progress, self._dispatcher, memory)
        self._catch_ups = CatchUps(services.gateway, self._dispatcher, self._shares, self._access, progress)
        self.view = ReaderView(progress, self._dispatcher, self._catch_ups, utc=utc)

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all of them, or *target*; return how many."""
        return self._catch_ups.retry_holds(target)

    def status(self) -> dict[str, Any]:
        """Return the progress, for the status."""
        checkpoint = self.progress.checkpoint
        return {
            "streamShard": self.stream_shard_id,
            "state": self._activity,
            "checkpoint": None if checkpoint is None else checkpoint.checkpoint,
            "pendingBytes": self._memory.held_bytes,
            "lagSeconds": self.view.lag_s,
            "held": dict(Counter(hold.reason for hold in self.progress.holds())),
            "catchUps": [one.status() for one in self._catch_ups.running],
            "trouble": self.cursor.trouble,
            "reads": "fan-out" if self.cursor.is_pushed else "polling",
        }

    @property
    def _activity(self) -> str:
        if self._stopping.is_set():
            return "draining"
        if self._memory.is_short:
            return StreamShardState.WAITS_FOR_MEMORY
        return StreamShardState.ENDED if self.progress.is_at_end else StreamShardState.READING

    @property
    def _stopping(self) -> asyncio.Event:
        return self._access.stopping

    def release_from_parents(self, pending: TenantSet) -> None:
        """Catch up the tenants held for the parents and no longer in *pending*.

        A shard may have lost what the parents' readers applied: the rows of all shards are read again before.
        """
        if not self.progress.ownership.release_from_parents(pending, now=loop_time()):
            return
        for shard_position in self.shard_positions.invalidate_parent_rows():
            self._dispatcher.pipeline.request_turn(shard_position.shard_id)
        self._dispatcher.has_ready.set()

    def start_backfill(self, shard_id: str, unread: Unread) -> None:
        """Read *unread* again for all tenants of a Postgres shard to which nothing was sent yet."""
        self._dispatcher.start_backfill(shard_id, unread, ())

    def is_backfilling(self, shard_id: str) -> bool:
        """Return whether a Postgres shard is backfilled."""
        return (hold := self.progress.ownership.shard_hold(shard_id)) is not None and hold.is_backfill

    def request_row_read(self, shard_id: str) -> bool:
        """Make the lane to a Postgres shard read its row; return False without a lane."""
        return self._dispatcher.pipeline.request_turn(shard_id)

    def abandon(self) -> None:
        """Treat the stream shard as read to its end."""
        self.progress.is_at_end = True
        self._access.is_gone = True

    async def run(self, stopping: asyncio.Event) -> None:
        """Read until *stopping* or the end; return when no batch is in flight.

        A batch without an answer is abandoned *drain_s* after the stop.
        """
        self._access.stopping = stopping
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
                tasks.create_task(self._letters.run(ending), name=f"letters:{self.stream_shard_id}")
                tasks.create_task(self._catch_ups.run(ending), name=f"catch-ups:{self.stream_shard_id}")
                try:
                    await self._read()
                finally:
                    self.cursor.close()
                    self._access.pacing.note_end()
                await self._publish_end()
                while not self.progress.is_finished and not self._stopping.is_set():
                    await self._wait_for_settled()
                ending.set()
                deadline.reschedule(loop_time() + self._settings.drain_s)
            await self._letters.finish(ending)  # the last batches may have had some
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
        if self.progress.is_at_end and not self._stopping.is_set():
            await self.shard_positions.write_final_positions()
            self.progress.has_published_end = True
            await self.shard_positions.confirm_lease()  # writes the lease row from which the children start

    def _open_cursor(self, start: Start, subscriptions: Subscriptions | None, read_up_to: datetime | None) -> Cursor:
        expires_at = None
        if read_up_to is not None and self.progress.retention is not None:
            expires_at = loop_time() + (read_up_to + self.progress.retention - self._utc()).total_seconds()
        access, retention = self._access, self.progress.retention
        if subscriptions is None:
            return Cursor(access, start, kind=StreamReader.MAIN, retention=retention, expires_at=expires_at)
        return PushedCursor(access, start, subscriptions, retention=retention, expires_at=expires_at)

    async def _read(self) -> None:
        while not self._stopping.is_set() and not self.progress.is_at_end:
            is_crowded = self._dispatcher.pipeline.lookup.is_crowded or self.progress.ownership.owners.is_full
            if self._memory.is_short or is_crowded:
                if not self._shares.hold_excess():
                    await self._wait_for_settled()
                continue
            reply = await self.cursor.read(self._stopping)
            if reply is None:
                continue
            self.progress.is_dispatching = True
            await self._dispatch_records(reply.records)
            self.progress.is_dispatching = False
            self.cursor.release_memory()
            if self.cursor.is_at_end and await self._lease.is_end(self.cursor.child_shards):
                self.progress.is_at_end = True

    async def _dispatch_records(self, records: list[Record]) -> None:
        arrivals = self._access.decoder.decode(records, after=self._read_after)
        tracker, ownership = self.progress.tracker, self.progress.ownership
        while decoded := await self._decode_batch(arrivals):
            self._read_after = None
            entries: list[QueuedOperation] = []
            rejected: list[Rejection] = []
            held: list[int] = []
            is_any_held = len(ownership) > 0
            tickets = tracker.start_all(LazyPositions([origin for origin, _, _ in decoded]))
            for ticket, (_, record, operation) in zip(tickets, decoded, strict=True):
                if is_any_held and (owner := ownership.owner_of(operation.tenant_id)) is not None:
                    owner.passed_count += 1
                    held.append(ticket)  # a catch-up will read it again
                elif isinstance(operation, Operation):
                    entries.append(QueuedOperation(ticket, operation, record, tracker))
                else:
                    rejected.append((ticket, operation, record))
            self._check_partition_keys([one for _, _, one in decoded if isinstance(one, Operation)])
            tracker.finish(held)
            self._dispatcher.send(entries)
            if rejected:
                self._dispatcher.reject(rejected, tracker)
            is_full = len(decoded) == BATCH_MAX_COUNT
            del decoded, entries, rejected  # else their memory would be free only after the next batch is decoded
            if is_full:
                await asyncio.sleep(0)  # other tasks run before the next batch is decoded
        instruments.KINESIS_LAG.labels(self.stream_shard_id).set(self.view.least_lag_s)

    def _check_partition_keys(self, operations: Sequence[Operation]) -> None:
        if not (wrong := with_wrong_keys(operations, self._settings.partition_key)):
            return
        instruments.KINESIS_WRONG_KEYS.inc(len(wrong))
        self._unwarned_count += len(wrong)
        if loop_time() < self._warned_at + WARNING_INTERVAL_S:
            return
        log.warning(
            "partition_key.wrong",
            stream_shard_id=self.stream_shard_id,
            business_id=wrong[-1].business_id,
            location_id=wrong[-1].location_id,
            partition_key=(wrong[-1].origin.partition_key or "")[:SHOWN_MAX],
            operations=self._unwarned_count,
            rule=self._settings.partition_key,
        )
        self._warned_at, self._unwarned_count = loop_time(), 0

    async def _decode_batch(self, arrivals: Iterator[DecodedRecord]) -> list[DecodedRecord]:
        # Undecoded records take half the memory, and those decoded together go to the lane as one batch.
        # Objects created alternately with those of other readers would be scattered in memory.
        decoded = list(islice(arrivals, 1))  # shows whether there are more
        while decoded and not self._shares.may_read_on() and not self._stopping.is_set():
            await self._wait_for_settled()
        decoded += islice(arrivals, BATCH_MAX_COUNT - len(decoded))
        return decoded

    async def _wait_for_settled(self) -> None:
        self._dispatcher.has_settled.clear()
        await sleep_or_event(SETTLED_WAIT_S, until=self._dispatcher.has_settled)
