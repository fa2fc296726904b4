"""Catch up holds: find out when a target is back, and read its operations again from the stream.

A catch-up has its own position in the stream shard, and shares the Kinesis quota of the stream shard with the main
reader. It sends only the operations of its holds, and ends them when its next record is also the main reader's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
import structlog

from simplu_worker.consumers.kinesis.dispatch.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation
from simplu_worker.consumers.kinesis.dispatch.shard_lane import BATCH_MAX_BYTES, BATCH_MAX_COUNT
from simplu_worker.consumers.kinesis.fetch.cursor import Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord, RecordDecoder
from simplu_worker.consumers.kinesis.holding.holds import NO_SHARD, CatchUp, Hold, Target
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.stream.client import AtSequenceNumber, Record, Start
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, Position, RecordPosition, is_after
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import Absence
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event, wait_any

# At a time: they share the part of the quota that the main reader leaves. One is for the oldest hold.
CATCH_UPS_MAX: Final = 4
GROUP_WITHIN: Final = timedelta(seconds=60)  # holds that start so close to each other are caught up together
SENT_MAX_COUNT: Final = 2 * BATCH_MAX_COUNT  # pending, of one catch-up: those of other readers queue behind them
SENT_MAX_BYTES: Final = 2 * BATCH_MAX_BYTES
CHECK_INTERVAL_S: Final = 0.25
LOOKUP_WAIT_S: Final = 0.02
DECODED_AT_ONCE: Final = 250  # about two milliseconds, then other tasks run
PROBE_INTERVAL_S: Final = 0.1  # between two checks for due probes, while a Postgres shard is held
PROBE_BASE_S: Final = 0.25
PROBE_MAX_S: Final = 0.7  # a shard that is back is used within two seconds, including the probe and the first read
RELAPSE_S: Final = 5.0  # a shard that is held again so soon after its return answers probes, but takes no writes

Group = TypeVar("Group")

log = structlog.get_logger(__name__)


class CatchUpReader:
    """A running catch-up."""

    def __init__(
        self,
        catch_up: CatchUp,
        access: StreamShardAccess,
        decoder: RecordDecoder,
        dispatcher: Dispatcher,
        *,
        gateway: ShardGateway,
        main_position: Callable[[], RecordPosition | None],
        beginning: tuple[Start, Position | None],
        open_parent: Callable[[ParentRecords], tuple[StreamShardAccess, RecordDecoder]],
        retention: timedelta | None,
    ) -> None:
        """*main_position* returns that of the main reader; *beginning* is its first position, and its checkpoint there.

        *open_parent* returns the access to a parent of the stream shard, and the decoder of its records.
        """
        self.catch_up = catch_up
        self._access = access
        self._decoder = decoder
        self._dispatcher = dispatcher
        self._gateway = gateway
        self._main_position = main_position
        self._open_parent = open_parent
        self._retention = retention
        self._start, self._after = beginning
        if catch_up.start is not None:
            self._start = AtSequenceNumber(catch_up.start.sequence_number)
            self._after = catch_up.start.position
        self._started_at = loop_time()
        self._record_count = 0
        self._elsewhere_tenants: set[str] = set()  # of the current reply: on other shards, by the known routes
        self.is_reading = True
        self.is_oldest = False  # began with the oldest hold that was ready

    def __repr__(self) -> str:
        return f"CatchUpReader({self.catch_up!r}, read={self._record_count})"

    @property
    def lag_s(self) -> float:
        """How far it is behind the main reader, by the arrival times of the last records that both have read."""
        main, own = self._main_position(), self.catch_up.tracker.last_read or self.catch_up.start
        return 0.0 if main is None or own is None else max(0.0, (main.arrived_at - own.arrived_at).total_seconds())

    def status(self) -> dict[str, Any]:
        """Return the progress, for the status."""
        reached = self.catch_up.tracker.last_read
        took_s = max(loop_time() - self._started_at, 0.001)
        return {
            "targets": sorted(f"{hold.target} {hold.name}".strip() for hold in self.catch_up.holds)[:10],
            "position": None if reached is None else reached.sequence_number,
            "behindMainSeconds": round(self.lag_s, 1),
            "records": self._record_count,
            "recordsPerSecond": round(self._record_count / took_s, 1),
        }

    async def run(self, ending: asyncio.Event) -> None:
        """Read until it reaches the main reader, until its last hold is gone, or until *ending*."""
        for records in self.catch_up.parent_records:
            await self._send_parent_records(records, ending)
        if self.catch_up.is_reading_parents:
            await self._finish_parents(ending)
        with self._access.budget.open_catch_up(loop_time()) as pacing:
            cursor = Cursor(self._access, self._start, pacing, kind="catch_up", retention=self._retention)
            while self.catch_up.holds and not ending.is_set():
                is_at_end = self._access.is_gone or (cursor.is_at_end and cursor.child_shards)
                # An end without children may be false: there, the catch-up goes on until it reaches the main reader.
                if self._has_caught_up() or is_at_end:
                    self._finish()
                elif self._has_sent_enough() or self._access.memory.is_short:
                    self._dispatcher.has_settled.clear()
                    await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
                elif (reply := await cursor.read(ending)) is not None:
                    await self._send_reply(reply.records, ending)
                    cursor.release_memory()
        self.is_reading = False

    async def _send_parent_records(self, records: ParentRecords, ending: asyncio.Event) -> None:
        """Send the operations that may be lacking of a parent, up to the end of the parent."""
        access, decoder = self._open_parent(records)
        after = records.after
        with access.budget.open_catch_up(loop_time()) as pacing:
            cursor = Cursor(access, records.start, pacing, kind="catch_up")
            # A parent that is gone is past its retention: no record of it can be read.
            while self.catch_up.holds and not ending.is_set() and not cursor.is_at_end and not cursor.is_gone:
                if self._has_sent_enough() or access.memory.is_short:
                    self._dispatcher.has_settled.clear()
                    await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
                elif (reply := await cursor.read(ending)) is not None:
                    arrivals = decoder.decode(reply.records, after=after)
                    for count, (origin, record, decoded) in enumerate(arrivals, start=1):
                        after = None
                        if isinstance(decoded, Operation):
                            position = RecordPosition.from_record(origin).position
                            self._send_parent_operation(records.stream_shard_id, position, record, decoded)
                        if count % DECODED_AT_ONCE == 0:
                            await asyncio.sleep(0)
                    await self._check_residents(self.catch_up.tracker.last_read, ending)
                    cursor.release_memory()
        self.catch_up.parents_reached[records.stream_shard_id] = SHARD_END

    def _send_parent_operation(self, parent: str, position: Position, record: bytes, operation: Operation) -> None:
        catch_up, tenant_id = self.catch_up, operation.tenant_id
        shard_id, is_sent = self._locate(tenant_id)
        is_covered_elsewhere = self._dispatcher.holds.is_parent_record_covered_elsewhere
        if is_sent and not is_covered_elsewhere(tenant_id, parent, position, catch_up, shard_id):
            self._send(QueuedOperation(catch_up.tracker.start_at_last(), operation, record, catch_up.tracker))
        else:
            catch_up.incomplete_tenants.add(tenant_id)
        catch_up.parents_reached[parent] = position

    async def _finish_parents(self, ending: asyncio.Event) -> None:
        """Go on to the own records once all operations of the parents are applied, or held again."""
        while len(self.catch_up.tracker) and self.catch_up.holds and not ending.is_set():
            self._dispatcher.has_settled.clear()
            await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
        if len(self.catch_up.tracker) or not self.catch_up.holds:
            return
        self._dispatcher.finish_parents(self.catch_up)

    def _has_sent_enough(self) -> bool:
        """Return whether to wait until some operations are settled."""
        count = len(self.catch_up.tracker)
        return count >= SENT_MAX_COUNT or self._access.budget.expected_bytes(count) >= SENT_MAX_BYTES

    def _has_caught_up(self) -> bool:
        main = self._main_position()
        return main is None or not is_after(main, self.catch_up.tracker.last_read)

    def _finish(self) -> None:
        """End the holds. Must run in the same step as the check of the main reader's position: no await in between."""
        log.info(
            "catch_up.ended",
            stream_shard_id=self._access.stream_shard_id,
            records=self._record_count,
            took_s=round(loop_time() - self._started_at, 1),
        )
        self._dispatcher.holds.finish(self.catch_up)

    async def _send_reply(self, records: list[Record], ending: asyncio.Event) -> None:
        """Send the operations of its holds up to the position of the main reader at which all routes are known.

        While it asks for routes, the main reader goes on, and leaves the operations of the held tenants to the
        catch-up.
        """
        tracker, arrivals, is_any_left = self.catch_up.tracker, self._decoder.decode(records, after=self._after), True
        while is_any_left and self.catch_up.holds and not self._has_caught_up() and not ending.is_set():
            start, ticket = tracker.last_read, tracker.start_at_last()  # skipped operations stay pending until then
            is_any_left = await self._send_until_caught_up(arrivals, ending)
            await self._check_residents(start, ending)
            tracker.finish([ticket])

    async def _send_until_caught_up(self, arrivals: Iterator[DecodedRecord], ending: asyncio.Event) -> bool:
        """Send the operations of its holds, up to the position of the main reader; return whether any may be left."""
        count = 0
        while not self._has_caught_up() and self.catch_up.holds:
            arrival = next(arrivals, None)
            if arrival is None:
                return False
            origin, record, decoded = arrival
            position = RecordPosition.from_record(origin)
            self._after = None
            self._record_count += 1
            if isinstance(decoded, Operation):
                self._send_operation(position, record, decoded)
            else:
                self.catch_up.tracker.skip(position)
            count += 1
            if count % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
            while self._dispatcher.lookup.is_busy and not ending.is_set():  # tenants of the main reader come first
                await sleep_or_event(LOOKUP_WAIT_S, until=ending)
        return True

    def _send_operation(self, position: RecordPosition, record: bytes, operation: Operation) -> None:
        tracker, holds, tenant_id = self.catch_up.tracker, self._dispatcher.holds, operation.tenant_id
        shard_id, is_sent = self._locate(tenant_id)
        if is_sent and not holds.is_record_covered_elsewhere(tenant_id, position, self.catch_up, shard_id):
            self._send(QueuedOperation(tracker.start(position), operation, record, tracker))
        else:
            self.catch_up.incomplete_tenants.add(tenant_id)
            tracker.skip(position)

    def _locate(self, tenant_id: str) -> tuple[str | None, bool]:
        """Return the known shard of a tenant, and whether to send its operations.

        The operations of tenants that are held, or live on a shard that is held as a whole, are sent.
        """
        shard_id = NO_SHARD if tenant_id in self._elsewhere_tenants else self._dispatcher.shard_id_of(tenant_id)
        is_sent = self._dispatcher.holds.is_sent_by(tenant_id, self.catch_up, shard_id)
        if not is_sent and self.catch_up.whole_shard_ids:
            self._elsewhere_tenants.add(tenant_id)
        return shard_id, is_sent

    def _send(self, entry: QueuedOperation) -> None:
        catch_up, tenant_id = self.catch_up, entry.operation.tenant_id
        is_routed = not catch_up.whole_shard_ids or self._dispatcher.shard_id_of(tenant_id) is not None
        if not is_routed and not self._dispatcher.holds.is_sent_by(tenant_id, catch_up, NO_SHARD):
            catch_up.unrouted.setdefault(tenant_id, set()).add(entry.ticket)
        self._dispatcher.send([entry])

    async def _check_residents(self, start: RecordPosition | None, ending: asyncio.Event) -> None:
        """Ask the shards held as a whole for tenants of a reply that were skipped, as their routes may be old.

        The hold of a shard with such a tenant is restarted from *start*, the beginning of the reply.
        """
        for hold in [one for one in self.catch_up.holds if one.covers_whole_shard] if self._elsewhere_tenants else ():
            while hold.catch_up is self.catch_up and not ending.is_set():
                try:
                    residents = await self._gateway.find_resident_tenants(hold.name, sorted(self._elsewhere_tenants))
                except (RetryableError, PermanentError):
                    await sleep_or_event(CHECK_INTERVAL_S, until=ending)
                    continue
                if residents and hold.catch_up is self.catch_up:
                    self._dispatcher.restart_hold(hold, start, residents)
                break
        self._elsewhere_tenants.clear()


class _ProbeHistory(msgspec.Struct):
    """The probes of a Postgres shard, across its holds. Times are monotonic."""

    was_up: bool = False  # by the pool, at the last check
    ready_at: float | None = None  # when its hold last became ready; it has not been held since
    relapse_count: int = 0  # how often it was held again soon after that


def next_to_catch_up(groups: Sequence[Group], running: Sequence[bool]) -> list[Group]:
    """Return the *groups* of holds that may start now, of *groups* in order of age.

    The shortest first, so that a long catch-up delays no other; but one of CATCH_UPS_MAX is the oldest, which new short
    ones would delay without end. *running* has True for a running catch-up that began as the oldest.
    """
    room = max(0, CATCH_UPS_MAX - len(running))
    oldest_count = 1 if room and not any(running) else 0
    oldest, others = groups[:oldest_count], groups[oldest_count:]
    shortest = others[max(0, len(others) - (room - oldest_count)) :]
    return [*oldest, *shortest][::-1]


class CatchUps:
    """Finds out when holds can be caught up, and catches up a few at a time."""

    def __init__(
        self,
        gateway: ShardGateway,
        dispatcher: Dispatcher,
        access: StreamShardAccess,
        create_reader: Callable[[CatchUp], CatchUpReader],
    ) -> None:
        """*create_reader* creates the reader of a catch-up that has started."""
        self._gateway = gateway
        self._dispatcher = dispatcher
        self._access = access
        self._create_reader = create_reader
        self._probes: dict[str, asyncio.Task[None]] = {}  # by Postgres shard
        self._probe_history: dict[str, _ProbeHistory] = {}  # the same
        self.running: list[CatchUpReader] = []

    def __repr__(self) -> str:
        return f"CatchUps({self.running}, probing={sorted(self._probes)})"

    async def run(self, ending: asyncio.Event) -> None:
        """Probe and catch up until *ending*.

        Check periodically only while operations are in memory, which may get stuck, or held, which may come due. Both
        start with an event: an operation is sent, or a hold is ready.
        """
        has_ready, has_arrivals = self._dispatcher.has_ready, self._dispatcher.has_arrivals
        async with asyncio.TaskGroup() as tasks:
            while not ending.is_set():
                self._dispatcher.shed_stuck_lanes(is_memory_short=self._access.memory.is_short)
                self._dispatcher.ready_due_holds()
                is_probing = self._start_probes(tasks)
                self._start_ready(tasks, ending)
                has_ready.clear()
                if self._dispatcher.is_idle:
                    has_arrivals.clear()
                    await wait_any(has_ready, has_arrivals, ending)
                else:
                    interval_s = PROBE_INTERVAL_S if is_probing else CHECK_INTERVAL_S
                    await wait_any(has_ready, ending, within_s=interval_s)
            for probe in self._probes.values():
                probe.cancel()

    def _start_probes(self, tasks: asyncio.TaskGroup) -> bool:
        """Probe the held Postgres shards that are due; return whether any is held."""
        is_any_held = False
        for hold in self._dispatcher.holds.all():
            if hold.target is Target.SHARD and hold.catch_up is None and not hold.is_ready:
                is_any_held = True
                if hold.name not in self._probes and self._is_probe_due(hold):
                    self._probes[hold.name] = tasks.create_task(self._probe(hold), name=f"probe:{hold.name}")
        return is_any_held

    def _is_probe_due(self, hold: Hold) -> bool:
        """Return whether to probe the shard now: its back-off expired, or another user of the pool succeeded.

        A shard that answers probes but takes no writes seems to be back after each probe, and each time the stream is
        read again for it. Its back-off continues where it was, from the time when the shard is held again.
        """
        probed = self._probe_history.setdefault(hold.name, _ProbeHistory())
        now = loop_time()
        if probed.ready_at is not None:
            probed.relapse_count = probed.relapse_count + 1 if now - probed.ready_at < RELAPSE_S else 0
            probed.ready_at = None
            hold.attempt_count = probed.relapse_count
            hold.next_attempt_at = now + (self._delay_s(hold) if hold.attempt_count else 0.0)
        was_up, probed.was_up = probed.was_up, self._gateway.is_up(hold.name)
        return now >= hold.next_attempt_at or (probed.was_up and not was_up and not probed.relapse_count)

    def _delay_s(self, hold: Hold) -> float:
        return backoff_s(hold.attempt_count, draw=self._access.draw(), base_s=PROBE_BASE_S, max_s=PROBE_MAX_S)

    async def _probe(self, hold: Hold) -> None:
        """Make the hold of a shard ready when the shard is back and no earlier batch to it is in flight."""
        hold.attempt_count += 1
        try:
            await self._gateway.probe(hold.name)
        except (RetryableError, PermanentError):
            await self._find_moved_tenant(hold)
        else:
            if hold.catch_up is None and self._dispatcher.is_lane_idle(hold.name):
                hold.is_ready = True
                self._probe_history[hold.name].ready_at = loop_time()
                self._dispatcher.has_ready.set()
        finally:
            hold.next_attempt_at = loop_time() + self._delay_s(hold)
            del self._probes[hold.name]

    async def _find_moved_tenant(self, hold: Hold) -> None:
        """Look up one tenant of a shard that does not answer: the tenant, or the shard, may have moved."""
        names = sorted(hold.tenants.names) or [hold.sample_tenant]
        tenant_id = names[hold.attempt_count % len(names)]
        try:
            found = await self._gateway.find_again(tenant_id)
        except (RetryableError, PermanentError):
            return
        if found != hold.name and not isinstance(found, Absence) and tenant_id in hold.tenants.names:
            self._dispatcher.on_tenant_moved(hold, tenant_id)

    def _start_ready(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        """Catch up the ready holds: by a running catch-up that has not reached their start, else by one of their own.

        So many holds do not each read the same records again.
        """
        groups: list[list[Hold]] = []
        ready = [hold for hold in self._dispatcher.holds.all() if hold.is_ready and hold.catch_up is None]
        for hold in sorted(ready, key=lambda one: one.arrived_at):
            if any(self._dispatcher.holds.attach(one.catch_up, hold) for one in self.running if one.is_reading):
                continue
            is_alone = hold.parent_records or (groups and groups[-1][0].parent_records)
            if groups and not is_alone and hold.arrived_at - groups[-1][0].arrived_at <= GROUP_WITHIN:
                groups[-1].append(hold)
            else:
                groups.append([hold])
        oldest = groups[0] if groups else None
        for group in next_to_catch_up(groups, [one.is_oldest for one in self.running]):
            reader = self._create_reader(self._dispatcher.holds.start_catch_up(group))
            reader.is_oldest = group is oldest
            self.running.append(reader)
            tasks.create_task(self._run_reader(reader, ending), name=f"catch-up:{self._access.stream_shard_id}")

    async def _run_reader(self, reader: CatchUpReader, ending: asyncio.Event) -> None:
        try:
            await reader.run(ending)
        finally:
            self.running.remove(reader)
            self._dispatcher.has_ready.set()  # another may start
