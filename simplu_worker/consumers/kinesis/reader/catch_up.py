"""Catch up what is held: find out when a target is back, and read its operations again from the stream.

A catch-up has its own place in the stream shard and shares what Kinesis allows for it with the main reader. It sends
only the operations of its holds, and ends them when the next record is the next one for the main reader too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.consumers.kinesis.dispatch.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.dispatch.shard_lane import BATCH_MAX_BYTES, BATCH_MAX_COUNT, QueuedOperation
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

CATCH_UPS_MAX: Final = 4  # at a time; they share what the main reader leaves of the quota
GROUP_WITHIN: Final = timedelta(seconds=60)  # holds that begin so close to each other are caught up together
SENT_MAX_COUNT: Final = 2 * BATCH_MAX_COUNT  # by one catch-up and not settled: others' operations queue behind them
SENT_MAX_BYTES: Final = 2 * BATCH_MAX_BYTES
CHECK_INTERVAL_S: Final = 0.25
LOOKUP_WAIT_S: Final = 0.02
DECODED_AT_ONCE: Final = 250  # about two milliseconds, then the event loop gets its turn
PROBE_INTERVAL_S: Final = 0.1  # between two looks at what is due, while a Postgres shard is held
PROBE_BASE_S: Final = 0.25
PROBE_MAX_S: Final = 0.7  # a shard that is back is used within two seconds: with its look, and the reading of the first
RELAPSE_S: Final = 5.0  # a shard held again so soon after its return answers, and takes no writes

log = structlog.get_logger(__name__)


class CatchUpReader:
    """One catch-up at work."""

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
        """*main_at* is where the main reader is; *beginning* where it started, and what was done then.

        *read_parent* makes what reads the records of a stream shard that this one continues.
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
        self._elsewhere_tenants: set[str] = (
            set()
        )  # tenants of the reply in hand that live elsewhere, as far as anybody knows
        self.is_reading = True

    def __repr__(self) -> str:
        return f"CatchUpReader({self.catch_up!r}, read={self._record_count})"

    @property
    def lag_s(self) -> float:
        """How far it is behind the main reader, by the arrival of what they read last."""
        main, own = self._main_position(), self.catch_up.tracker.last_read or self.catch_up.start
        return 0.0 if main is None or own is None else max(0.0, (main.arrived_at - own.arrived_at).total_seconds())

    def status(self) -> dict[str, Any]:
        """Return how far it is, for people."""
        at = self.catch_up.tracker.last_read
        took_s = max(loop_time() - self._started_at, 0.001)
        return {
            "targets": sorted(f"{hold.target} {hold.name}".strip() for hold in self.catch_up.holds)[:10],
            "position": None if at is None else at.sequence_number,
            "behindMainSeconds": round(self.lag_s, 1),
            "records": self._record_count,
            "recordsPerSecond": round(self._record_count / took_s, 1),
        }

    async def run(self, ending: asyncio.Event) -> None:
        """Read until it meets the main reader, until no hold of it is left, or until *ending*."""
        for records in self.catch_up.parent_records:
            await self._send_parent_records(records, ending)
        if self.catch_up.is_reading_parents:
            await self._finish_parents(ending)
        with self._access.budget.open_catch_up(loop_time()) as pacing:
            cursor = Cursor(self._access, self._start, pacing, kind="catch_up", retention=self._retention)
            while self.catch_up.holds and not ending.is_set():
                is_at_end = self._access.is_gone or (cursor.is_at_end and cursor.child_shards)
                if self._has_caught_up() or is_at_end:  # not at an end that is only believed: there it will meet
                    self._finish()
                elif self._has_sent_enough() or self._access.memory.is_short:
                    self._dispatcher.has_settled.clear()
                    await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
                elif (reply := await cursor.read(ending)) is not None:
                    await self._send_reply(reply.records, ending)
                    cursor.release_memory()
        self.is_reading = False

    async def _send_parent_records(self, records: ParentRecords, ending: asyncio.Event) -> None:
        """Send, of the records of a parent, what may be lacking; it has an end."""
        access, decoder = self._open_parent(records)
        after = records.after
        with access.budget.open_catch_up(loop_time()) as pacing:
            cursor = Cursor(access, records.start, pacing, kind="catch_up")
            # What is refused was past its retention: there is nothing left to be read.
            while self.catch_up.holds and not ending.is_set() and not cursor.is_at_end and not cursor.is_gone:
                if self._has_sent_enough() or access.memory.is_short:
                    self._dispatcher.has_settled.clear()
                    await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
                elif (reply := await cursor.read(ending)) is not None:
                    arrivals = decoder.decode(reply.records, after=after)
                    for count, (place, record, decoded) in enumerate(arrivals, start=1):
                        after = None
                        if isinstance(decoded, Operation):
                            position = RecordPosition.from_record(place).position
                            self._send_parent_operation(records.stream_shard_id, position, record, decoded)
                        if count % DECODED_AT_ONCE == 0:
                            await asyncio.sleep(0)
                    await self._check_residents(self.catch_up.tracker.last_read, ending)
                    cursor.release_memory()
        self.catch_up.parents_reached[records.stream_shard_id] = SHARD_END

    def _send_parent_operation(self, parent: str, position: Position, record: bytes, operation: Operation) -> None:
        catch_up, tenant_id = self.catch_up, operation.tenant_id
        shard_id, is_its = self._locate(tenant_id)
        is_sent_by_another = self._dispatcher.holds.is_parent_record_covered_elsewhere
        if is_its and not is_sent_by_another(tenant_id, parent, position, catch_up, shard_id):
            self._send(QueuedOperation(catch_up.tracker.start_at_last(), operation, record, catch_up.tracker))
        else:
            catch_up.incomplete_tenants.add(tenant_id)
        catch_up.parents_reached[parent] = position

    async def _finish_parents(self, ending: asyncio.Event) -> None:
        """Go on to the own records once all that the parents owed is applied, or held by itself."""
        while len(self.catch_up.tracker) and self.catch_up.holds and not ending.is_set():
            self._dispatcher.has_settled.clear()
            await sleep_or_event(CHECK_INTERVAL_S, until=self._dispatcher.has_settled)
        if len(self.catch_up.tracker) or not self.catch_up.holds:
            return
        self._dispatcher.finish_parents(self.catch_up)

    def _has_sent_enough(self) -> bool:
        """Whether what it sent is to be settled first."""
        count = len(self.catch_up.tracker)
        return count >= SENT_MAX_COUNT or self._access.budget.expected_bytes(count) >= SENT_MAX_BYTES

    def _has_caught_up(self) -> bool:
        main = self._main_position()
        return main is None or not is_after(main, self.catch_up.tracker.last_read)

    def _finish(self) -> None:
        """End the holds. In the same step as the look at where the main reader is: nothing may come between."""
        log.info(
            "catch_up.ended",
            stream_shard_id=self._access.stream_shard_id,
            records=self._record_count,
            took_s=round(loop_time() - self._started_at, 1),
        )
        self._dispatcher.holds.finish(self.catch_up)

    async def _send_reply(self, records: list[Record], ending: asyncio.Event) -> None:
        """Send what is its holds', up to where the main reader is when nothing is to be asked any more.

        While it asks who lives where, the main reader goes on, and leaves to it what it had left to the main reader.
        """
        owed, arrivals, is_any_left = self.catch_up.tracker, self._decoder.decode(records, after=self._after), True
        while is_any_left and self.catch_up.holds and not self._has_caught_up() and not ending.is_set():
            at, ticket = owed.last_read, owed.start_at_last()  # what is left out is owed until the answer is there
            is_any_left = await self._send_until_caught_up(arrivals, ending)
            await self._check_residents(at, ending)
            owed.finish([ticket])

    async def _send_until_caught_up(self, arrivals: Iterator[DecodedRecord], ending: asyncio.Event) -> bool:
        """Send what is its holds', up to where the main reader is; return whether any may be left."""
        count = 0
        while not self._has_caught_up() and self.catch_up.holds:
            arrival = next(arrivals, None)
            if arrival is None:
                return False
            place, record, decoded = arrival
            mark = RecordPosition.from_record(place)
            self._after = None
            self._record_count += 1
            if isinstance(decoded, Operation):
                self._send_operation(mark, record, decoded)
            else:
                self.catch_up.tracker.skip(mark)
            count += 1
            if count % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
            while self._dispatcher.lookup.is_busy and not ending.is_set():  # the main reader's tenants come first
                await sleep_or_event(LOOKUP_WAIT_S, until=ending)
        return True

    def _send_operation(self, mark: RecordPosition, record: bytes, operation: Operation) -> None:
        owed, holds, tenant_id = self.catch_up.tracker, self._dispatcher.holds, operation.tenant_id
        shard_id, is_its = self._locate(tenant_id)
        if is_its and not holds.is_record_covered_elsewhere(tenant_id, mark, self.catch_up, shard_id):
            self._send(QueuedOperation(owed.start(mark), operation, record, owed))
        else:
            self.catch_up.incomplete_tenants.add(tenant_id)
            owed.skip(mark)

    def _locate(self, tenant_id: str) -> tuple[str | None, bool]:
        """Return where a tenant lives, as far as anybody knows, and whether to send what it reads of it.

        That is one that is held, or lives on a shard held as a whole.
        """
        shard_id = NO_SHARD if tenant_id in self._elsewhere_tenants else self._dispatcher.shard_id_of(tenant_id)
        is_its = self._dispatcher.holds.is_sent_by(tenant_id, self.catch_up, shard_id)
        if not is_its and self.catch_up.whole_shard_ids:
            self._elsewhere_tenants.add(tenant_id)
        return shard_id, is_its

    def _send(self, entry: QueuedOperation) -> None:
        catch_up, tenant_id = self.catch_up, entry.operation.tenant_id
        is_placed = not catch_up.whole_shard_ids or self._dispatcher.shard_id_of(tenant_id) is not None
        if not is_placed and not self._dispatcher.holds.is_sent_by(tenant_id, catch_up, NO_SHARD):
            catch_up.unrouted.setdefault(tenant_id, set()).add(entry.ticket)
        self._dispatcher.send([entry])

    async def _check_residents(self, at: RecordPosition | None, ending: asyncio.Event) -> None:
        """Ask the shards held as a whole for tenants of a reply that were left out, by routes that may be old.

        Where one of them lives there, the shard is read for again from *at* on, where the reply began.
        """
        for hold in [one for one in self.catch_up.holds if one.covers_whole_shard] if self._elsewhere_tenants else ():
            while hold.catch_up is self.catch_up and not ending.is_set():
                try:
                    here = await self._gateway.find_resident_tenants(hold.name, sorted(self._elsewhere_tenants))
                except (RetryableError, PermanentError):
                    await sleep_or_event(CHECK_INTERVAL_S, until=ending)
                    continue
                if here and hold.catch_up is self.catch_up:
                    self._dispatcher.restart_hold(hold, at, here)
                break
        self._elsewhere_tenants.clear()


class _ProbeHistory(msgspec.Struct):
    """What is remembered of the looks at a Postgres shard, across its holds. Times are monotonic."""

    was_up: bool = False  # at the last look at its pool
    ready_at: float | None = None  # when it last was to be caught up; it has not been held since
    relapse_count: int = 0  # how often it was held again soon after that


class CatchUps:
    """Finds out when what is held can be caught up, and does it, a few at a time."""

    def __init__(
        self,
        gateway: ShardGateway,
        dispatcher: Dispatcher,
        access: StreamShardAccess,
        make: Callable[[CatchUp], CatchUpReader],
    ) -> None:
        """*make* makes the reader of a catch-up that has begun."""
        self._gateway = gateway
        self._dispatcher = dispatcher
        self._access = access
        self._make_reader = make
        self._probes: dict[str, asyncio.Task[None]] = {}  # by Postgres shard
        self._probe_history: dict[str, _ProbeHistory] = {}  # the same
        self.running: list[CatchUpReader] = []

    def __repr__(self) -> str:
        return f"CatchUps({self.running}, probing={sorted(self._probes)})"

    async def run(self, ending: asyncio.Event) -> None:
        """Look and catch up until *ending*.

        By the clock only while something is in hand, which may be stuck, or held, which may come due. Both begin with
        an operation that is sent or a hold that is ready, and those are events.
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
        """Ask the Postgres shards that are held and due whether they are back; return whether any is held."""
        is_any_held = False
        for hold in self._dispatcher.holds.all():
            if hold.target is Target.SHARD and hold.catch_up is None and not hold.is_ready:
                is_any_held = True
                if hold.name not in self._probes and self._is_probe_due(hold):
                    self._probes[hold.name] = tasks.create_task(self._probe(hold), name=f"probe:{hold.name}")
        return is_any_held

    def _is_probe_due(self, hold: Hold) -> bool:
        """Whether to ask a shard: after a pause, or when anybody's use of it or look at it has found it to work again.

        One that answers and takes no writes is back at each look, and each time the stream is read again for it: there
        the pauses go on where they were, from when it is held again.
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
        """Make a shard's hold ready when it is back, and nothing sent to it before is in flight."""
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
        """Ask for one of the tenants of a shard that does not answer: it, or the shard, may be at another place now."""
        names = sorted(hold.tenants.names) or [hold.sample_tenant]
        tenant_id = names[hold.attempt_count % len(names)]
        try:
            found = await self._gateway.find_again(tenant_id)
        except (RetryableError, PermanentError):
            return
        if found != hold.name and not isinstance(found, Absence) and tenant_id in hold.tenants.names:
            self._dispatcher.on_tenant_moved(hold, tenant_id)

    def _start_ready(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        """Catch up what is ready: with one at work that has not come to it, or the shortest first.

        So a long catch-up keeps no other waiting, and many holds do not each read the same again.
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
        for group in reversed(groups):
            if len(self.running) < CATCH_UPS_MAX:
                reader = self._make_reader(self._dispatcher.holds.start_catch_up(group))
                self.running.append(reader)
                tasks.create_task(self._run_reader(reader, ending), name=f"catch-up:{self._access.stream_shard_id}")

    async def _run_reader(self, reader: CatchUpReader, ending: asyncio.Event) -> None:
        try:
            await reader.run(ending)
        finally:
            self.running.remove(reader)
            self._dispatcher.has_ready.set()  # another may begin
