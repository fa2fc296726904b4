"""Catch up holds: find out when a target is back, and read its operations again from the stream.

A catch-up has its own position, and shares the quota of Kinesis with the main reader. It sends only the operations of
its holds, and ends them when its next record is also the main reader's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, Final, TypeVar

import structlog

from simplu_worker.consumers.kinesis.fetch.cursor import READ_MAX_BYTES, Cursor, StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.fetch.record_decoder import DecodedRecord
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, Hold
from simplu_worker.consumers.kinesis.holding.tenant_set import ParentRecords
from simplu_worker.consumers.kinesis.reader.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.reader.letter_outbox import Rejection
from simplu_worker.consumers.kinesis.reader.tenant_shares import TenantShares
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderProgress
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position, RecordPosition, Start, is_after
from simplu_worker.consumers.pipeline.lane import BATCH_MAX_BYTES, BATCH_MAX_COUNT
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.fairness import SHARE_S, TURN_S, WAITS_MAX, turns_of
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import backoff_s, sleep_or_event, wait_any
from simplu_worker.vocabulary import Absence, HeldTarget, HoldReason, HoldState, StreamReader

# At a time: they share the part of the quota that the main reader leaves. One is for the oldest hold.
CATCH_UPS_MAX: Final = 4
PACED_MAX: Final = 2  # besides these, of businesses that are over their share, and of shards that are behind
GROUP_WITHIN: Final = timedelta(seconds=60)  # holds that start so close to each other are caught up together
SENT_MAX_COUNT: Final = 2 * BATCH_MAX_COUNT  # pending, of one catch-up: those of other readers queue behind them
SENT_MAX_BYTES: Final = 2 * BATCH_MAX_BYTES
PACED_S: Final = 2 * TURN_S  # of work, queued of a hold for a share: a batch is ready when the one before ends
PACED_REPLY_BYTES: Final = 64 * 1024  # of the first reply, and while others take long to send
PACED_REPLY_S: Final = 1.5  # of work, at least, in a reply: there is another one within WINDOW_S
KEPT_UP_S: Final = SHARE_S / turns_of(WAITS_MAX)  # with less queued its lane keeps up: it is not held again at once
CHECK_INTERVAL_S: Final = 0.25
LOOKUP_WAIT_S: Final = 0.02
SILENT_S: Final = 1.0  # of a shard that is backfilled, before the others go on without it
DECODED_AT_ONCE: Final = 250  # about two milliseconds, then other tasks run
TENANTS_ASKED_MAX: Final = 100_000  # answers of a shard that are remembered; then it is asked again
PROBE_INTERVAL_S: Final = 0.1  # between two checks for due probes, while a Postgres shard is held
PROBE_BASE_S: Final = 0.25
PROBE_MAX_S: Final = 0.7  # a shard that is back is used within two seconds, including the probe and the first read
INTERNAL_ERROR_MAX_S: Final = 60.0  # between two tries where the worker itself fails
GAP_CHECK_S: Final = 3.0  # until a person accepts a gap, which the stream cannot close
# Holds of tenants that are caught up after a time.
RETRIED: Final = frozenset({HoldReason.FAILING, HoldReason.LOCKED, HoldReason.OVER_LIMIT})
RELAPSE_S: Final = 5.0  # a shard that is held again so soon after its return answers probes, but takes no writes

Group = TypeVar("Group")

log = structlog.get_logger(__name__)


class CatchUpReader:
    """A running catch-up."""

    def __init__(
        self,
        catch_up: CatchUp,
        progress: ReaderProgress,
        access: StreamShardAccess,
        dispatcher: Dispatcher,
        shares: TenantShares,
        gateway: ShardGateway,
    ) -> None:
        self.catch_up = catch_up
        self._access = access
        self._progress = progress
        self._dispatcher = dispatcher
        self._shares = shares
        self._gateway = gateway
        self._started_at = loop_time()
        self._record_count = 0
        self._residents: dict[str, dict[str, bool]] = {}  # by Postgres shard: the tenants asked for, and its answers
        self._silent_since: float | None = None  # a shard that is backfilled, when asked for residents
        self._most_bytes = PACED_REPLY_BYTES  # of the next reply of one that is paced
        self.is_oldest = False  # began with the oldest hold that was ready
        self.is_paced = False  # for a business that is over its share, or a shard that is behind

    @property
    def lag_s(self) -> float:
        """How far it is behind the main reader, by arrivals."""
        main, own = self._progress.read_to, self.catch_up.tracker.last_read
        return 0.0 if main is None or own is None else max(0.0, (main.arrived_at - own.arrived_at).total_seconds())

    def is_near(self, hold: Hold) -> bool:
        """Return whether it comes to the start of *hold* soon."""
        reached = self.catch_up.tracker.last_read
        return reached is not None and hold.arrived_at - reached.arrived_at <= GROUP_WITHIN

    def status(self) -> dict[str, Any]:
        """Return the progress, for the status."""
        reached = self.catch_up.tracker.last_read
        took_s = max(loop_time() - self._started_at, 0.001)
        return {
            "targets": sorted(hold.title for hold in self.catch_up.holds)[:10],
            "position": None if reached is None else reached.sequence_number,
            "behindMainSeconds": round(self.lag_s, 1),
            "records": self._record_count,
            "recordsPerSecond": round(self._record_count / took_s, 1),
        }

    async def run(self, ending: asyncio.Event) -> None:
        """Read until it reaches the main reader, its last hold is gone, or *ending*."""
        while self.catch_up.parents and self.catch_up.holds and not ending.is_set():
            await self._read_parent(self.catch_up.parents[0], ending)
        with self._access.pacing.open_catch_up(loop_time()):
            start, after = self._own_start()
            cursor = Cursor(self._access, start, kind=StreamReader.CATCH_UP, retention=self._progress.retention)
            while self.catch_up.holds and not ending.is_set():
                is_at_end = self._access.is_gone or (cursor.is_at_end and cursor.child_shards)
                # An end without children may be false: there, the catch-up goes on until it reaches the main reader.
                if not self._has_caught_up() and not is_at_end:
                    await self._read_on(cursor, self._access, after, ending)
                elif self._keeps_up():
                    self._meet()
                else:
                    await self._wait_for_settled(ending)

    async def _read_parent(self, records: ParentRecords, ending: asyncio.Event) -> None:
        access = self._access.open_parent(records.stream_shard_id, records.hash_range)
        with access.pacing.open_catch_up(loop_time()):
            cursor = Cursor(access, records.start, kind=StreamReader.CATCH_UP)
            # A parent that is gone is past its retention: no record of it can be read.
            while self.catch_up.holds and not ending.is_set() and not cursor.is_at_end and not cursor.is_gone:
                await self._read_on(cursor, access, records.after, ending)
            if cursor.is_at_end or cursor.is_gone:
                self.catch_up.pass_parent()

    def _own_start(self) -> tuple[Start, Position | None]:
        after = self.catch_up.unread.after
        return self._progress.beginning if after is None else (AtSequenceNumber(after.sequence_number), after.position)

    async def _read_on(
        self, cursor: Cursor, access: StreamShardAccess, after: Position | None, ending: asyncio.Event
    ) -> None:
        count = len(self.catch_up.tracker)
        has_sent_enough = count >= SENT_MAX_COUNT or self._access.pacing.expected_bytes(count) >= SENT_MAX_BYTES
        if has_sent_enough or access.memory.is_short:
            self._shares.hold_excess()
            await self._wait_for_settled(ending)
        elif count and (delay_s := access.pacing.delay_s(loop_time(), is_main=False)) > 0:
            await self._wait_for_settled(ending, within_s=delay_s)  # its holds may leave: the read is the next one's
        else:
            if self.is_paced:
                cursor.most_bytes = self._most_bytes
            if (reply := await cursor.read(ending)) is not None:
                replied_at = loop_time()
                await self._send_reply(access.decoder.decode(reply.records, after=after), ending)
                cursor.release_memory()
                self._most_bytes = next_reply_bytes(self._most_bytes, loop_time() - replied_at)

    async def _wait_for_settled(self, ending: asyncio.Event, *, within_s: float = CHECK_INTERVAL_S) -> None:
        self._dispatcher.has_settled.clear()
        await wait_any(self._dispatcher.has_settled, ending, within_s=within_s)

    def _has_caught_up(self) -> bool:
        main = self._progress.read_to
        return not self.catch_up.parents and (main is None or not is_after(main, self.catch_up.tracker.last_read))

    def _keeps_up(self) -> bool:
        # Its last dead letters are stored: the successor of a reader learns of them by their hold alone.
        holds = self.catch_up.holds
        return self._shares.paced_s(holds) < KEPT_UP_S and not self._shares.letters_s(holds)

    def _meet(self) -> None:
        # In the same step as the check of the main reader's position: no await in between.
        log.info(
            "catch_up.ended",
            stream_shard_id=self._access.stream_shard_id,
            records=self._record_count,
            took_s=round(loop_time() - self._started_at, 1),
        )
        self._dispatcher.ownership.meet(self.catch_up)

    async def _send_reply(self, arrivals: Iterator[DecodedRecord], ending: asyncio.Event) -> None:
        decoded: deque[DecodedRecord] = deque()
        while not self._is_over(ending):
            if not decoded:
                decoded.extend(islice(arrivals, DECODED_AT_ONCE))
            if not decoded:
                return
            # What is decoded beyond the main reader's position is kept: it may go on before the lane keeps up.
            is_enough = self._shares.paced_s(self.catch_up.holds) >= PACED_S or self._owed_letters_s() >= PACED_S
            if self._has_caught_up() or is_enough:
                await self._wait_for_settled(ending)
            elif await self._ask_for_residents(decoded, ending):
                self._send_decoded(decoded)
            await asyncio.sleep(0)
            lookup = self._dispatcher.pipeline.lookup
            while lookup.is_busy and not ending.is_set():  # tenants of the main reader come first
                await sleep_or_event(LOOKUP_WAIT_S, until=ending)

    def _owed_letters_s(self) -> float:
        """Return the seconds that its dead letters may take, where these are why it reads: those of all it has sent."""
        if all(hold.target is not HeldTarget.LETTERS for hold in self.catch_up.holds):
            return 0.0
        count = len(self.catch_up.tracker)
        size_bytes = self._access.pacing.expected_bytes(count) + count * OPERATION_OVERHEAD_BYTES
        return self._dispatcher.letters.expected_s(size_bytes)

    def _is_over(self, ending: asyncio.Event) -> bool:
        return (self._has_caught_up() and self._keeps_up()) or not self.catch_up.holds or ending.is_set()

    def _send_decoded(self, decoded: deque[DecodedRecord]) -> None:
        # No await in between: all homes were asked for.
        in_memory = self._dispatcher.pipeline.undecided_of(_tenants_of(decoded))
        lookup, left_s = self._dispatcher.pipeline.lookup, PACED_S
        letters, rejected = self._dispatcher.letters, list[Rejection]()
        while decoded and left_s > 0 and self.catch_up.holds and not self._has_caught_up() and not lookup.is_busy:
            origin, record, operation = decoded.popleft()
            self._record_count += 1
            position = RecordPosition.from_origin(origin)
            tenant_id = operation.tenant_id
            is_operation = isinstance(operation, Operation)
            is_sent = self._may_send(tenant_id, in_memory) if is_operation else self._owns(tenant_id)
            parents, tracker = self.catch_up.parents, self.catch_up.tracker
            ticket = None
            if parents:
                ticket = tracker.start_at_last() if is_sent else None
                self.catch_up.pass_parent_record(position.position)
            elif is_sent:
                ticket = tracker.start(position)
            else:
                tracker.skip(position)
            if ticket is None:
                continue
            left_s -= letters.expected_s(len(record) + OPERATION_OVERHEAD_BYTES) if self.is_paced else 0.0
            if isinstance(operation, Operation):
                left_s -= self._shares.cost_s(operation) if self.is_paced else 0.0
                self._dispatcher.send([QueuedOperation(ticket, operation, record, tracker, parents)])
            else:
                rejected.append((ticket, operation, record))
        if rejected:
            self._dispatcher.reject(rejected, self.catch_up.tracker)

    def _owns(self, tenant_id: str) -> bool:
        owner = self._dispatcher.ownership.owner_of(tenant_id)
        return owner is not None and owner.catch_up is self.catch_up

    def _may_send(self, tenant_id: str, in_memory: dict[str, list[QueuedOperation]]) -> bool:
        # Later operations *in_memory* are dropped, as they will be read again.
        if not self._owns(tenant_id):
            homes = [hold for hold in self._backfills() if self._residents[hold.name][tenant_id]]
            if not homes or not self._dispatcher.meet_resident(tenant_id, homes[0], in_memory.get(tenant_id, ())):
                return False
        own = in_memory.pop(tenant_id, None)
        return own is None or self._dispatcher.drop_later_than(tenant_id, self.catch_up, own)

    def _backfills(self) -> list[Hold]:
        return [hold for hold in self.catch_up.holds if hold.is_backfill]

    async def _ask_for_residents(self, decoded: Iterable[DecodedRecord], ending: asyncio.Event) -> bool:
        # An answer is good for all of the catch-up: a move changes the token of the row, which restarts it.
        for hold in self._backfills():
            answers = self._residents.setdefault(hold.name, {})
            unknown = _tenants_of(decoded) - answers.keys()
            if not unknown:
                continue
            if len(answers) > TENANTS_ASKED_MAX:
                answers.clear()
                unknown = _tenants_of(decoded)
            try:
                residents = await self._gateway.find_resident_tenants(hold.name, sorted(unknown))
            except (RetryableError, PermanentError):
                self._note_silence(hold)
                await sleep_or_event(CHECK_INTERVAL_S, until=ending)
                return False
            self._silent_since = None
            answers |= {tenant_id: tenant_id in residents for tenant_id in unknown}
        return all(_tenants_of(decoded) <= self._residents.get(hold.name, {}).keys() for hold in self._backfills())

    def _note_silence(self, hold: Hold) -> None:
        now = loop_time()
        self._silent_since = self._silent_since or now
        if now - self._silent_since >= SILENT_S and len(self.catch_up.holds) > 1:
            self._silent_since = None
            lane = self._dispatcher.pipeline.lane_to(hold.name)
            if lane is None or not len(lane):  # it waits for its shard apart from the others
                self._dispatcher.ownership.open_shard_hold(hold.name, hold.first_arrival, now=now)


def _tenants_of(decoded: Iterable[DecodedRecord]) -> set[str]:
    return {operation.tenant_id for _, _, operation in decoded if isinstance(operation, Operation)}


def next_reply_bytes(before: int, took_s: float) -> int:
    """Return how much to read after a reply that *took_s* to send.

    What waits for a lane in memory is little, or the main reader would wait for memory, and with it everybody.
    """
    if took_s > 2 * PACED_REPLY_S:
        return max(PACED_REPLY_BYTES, before // 2)
    return before if took_s > PACED_REPLY_S else min(READ_MAX_BYTES, before * 2)


def next_to_catch_up(groups: Sequence[Group], running: Sequence[bool]) -> list[Group]:
    """Return the *groups* of holds, oldest first, that may start now.

    The shortest first; one place is for the oldest, which short ones would delay without end. *running* has True for a
    running catch-up that began as the oldest.
    """
    room = max(0, CATCH_UPS_MAX - len(running))
    oldest_count = 1 if room and not any(running) else 0
    oldest, others = groups[:oldest_count], groups[oldest_count:]
    shortest = others[max(0, len(others) - (room - oldest_count)) :]
    return [*oldest, *shortest][::-1]


class CatchUps:
    """Finds out when holds can be caught up, and does so for a few at a time."""

    def __init__(
        self,
        gateway: ShardGateway,
        dispatcher: Dispatcher,
        shares: TenantShares,
        access: StreamShardAccess,
        progress: ReaderProgress,
    ) -> None:
        self._gateway = gateway
        self._dispatcher = dispatcher
        self._shares = shares
        self._access = access
        self._progress = progress
        self._probes: dict[str, asyncio.Task[None]] = {}  # by Postgres shard
        self._ready_at: dict[str, float] = {}  # when its hold last became ready; it has not been held since
        self._relapse_counts: dict[str, int] = {}  # how often it was held again soon after that
        self.running: list[CatchUpReader] = []

    async def run(self, ending: asyncio.Event) -> None:
        """Probe and catch up until *ending*; by the clock only while operations are in memory or held."""
        has_ready, has_arrivals = self._dispatcher.has_ready, self._dispatcher.has_arrivals
        async with asyncio.TaskGroup() as tasks:
            while not ending.is_set():
                self._shares.shed_stuck_lanes(is_memory_short=self._access.memory.is_short)
                self._ready_due_holds()
                self._shares.look_after_paced()
                is_probing = self._start_probes(tasks)
                self._start_ready(tasks, ending)
                has_ready.clear()
                if not len(self._dispatcher.ownership) and self._dispatcher.pipeline.is_empty:
                    has_arrivals.clear()
                    await wait_any(has_ready, has_arrivals, ending)
                else:
                    interval_s = PROBE_INTERVAL_S if is_probing else CHECK_INTERVAL_S
                    await wait_any(has_ready, ending, within_s=interval_s)
            for probe in self._probes.values():
                probe.cancel()

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all, or *target* as people see it; return how many."""
        now, count = loop_time(), 0
        for hold in self._dispatcher.ownership.holds():
            is_tried = hold.target not in (HeldTarget.PARENTS, HeldTarget.PREDECESSOR)
            if hold.is_waiting and is_tried and target in (None, hold.title):
                count += 1
                hold.next_attempt_at = now
                if hold.target is HeldTarget.TENANT:
                    self._dispatcher.pipeline.lookup.retry(hold.name)
        self._dispatcher.has_ready.set()
        return count

    def _ready_due_holds(self) -> None:
        now = loop_time()
        for hold in self._dispatcher.ownership.holds():
            is_by_time = hold.reason in RETRIED or hold.target is HeldTarget.OVERFLOW
            if is_by_time and hold.is_waiting and now >= hold.next_attempt_at:
                self._dispatcher.make_ready(hold)

    def _start_probes(self, tasks: asyncio.TaskGroup) -> bool:
        is_any_held = False
        for hold in self._dispatcher.ownership.holds():
            if hold.target is HeldTarget.SHARD and hold.is_waiting:
                is_any_held = True
                if hold.name not in self._probes and self._is_probe_due(hold):
                    self._probes[hold.name] = tasks.create_task(self._probe(hold), name=f"probe:{hold.name}")
        return is_any_held

    def _is_probe_due(self, hold: Hold) -> bool:
        # A shard that answers probes but takes no writes seems back after each: its back-off goes on where it was.
        now = loop_time()
        if (ready_at := self._ready_at.pop(hold.name, None)) is not None:
            relapsed = self._relapse_counts.get(hold.name, 0) + 1 if now - ready_at < RELAPSE_S else 0
            self._relapse_counts[hold.name] = hold.attempt_count = relapsed
            hold.next_attempt_at = now + (self._delay_s(hold) if relapsed else 0.0)
        return now >= hold.next_attempt_at

    def _delay_s(self, hold: Hold) -> float:
        max_s = INTERNAL_ERROR_MAX_S if hold.reason == HoldReason.INTERNAL_ERROR else PROBE_MAX_S
        return backoff_s(hold.attempt_count, draw=self._access.draw(), base_s=PROBE_BASE_S, max_s=max_s)

    async def _probe(self, hold: Hold) -> None:
        hold.attempt_count += 1
        is_gap = False
        try:
            await self._gateway.probe(hold.name)
            is_gap = await self._is_held_for_gap(hold)
        except (RetryableError, PermanentError):
            await self._find_moved_tenant(hold)
        else:
            if not is_gap and hold.catch_up is None and self._dispatcher.pipeline.is_idle_to(hold.name):
                self._ready_at[hold.name] = loop_time()
                self._dispatcher.make_ready(hold)
        finally:
            hold.next_attempt_at = loop_time() + (GAP_CHECK_S if is_gap else self._delay_s(hold))
            del self._probes[hold.name]

    async def _is_held_for_gap(self, hold: Hold) -> bool:
        if hold.reason != HoldReason.GAP:
            return False
        is_open = await self._dispatcher.shard_positions.has_open_gap(hold.name)
        if not is_open and hold.is_waiting:
            hold.reason = HoldReason.SHARD_UNAVAILABLE  # whatever keeps it from now on
        return is_open

    async def _find_moved_tenant(self, hold: Hold) -> None:
        names = sorted(hold.tenants.names) or [hold.sample_tenant]
        tenant_id = names[hold.attempt_count % len(names)]
        try:
            found = await self._gateway.find_again(tenant_id)
        except (RetryableError, PermanentError):
            return
        if found != hold.name and not isinstance(found, Absence) and tenant_id in hold.tenants.names:
            self._dispatcher.on_tenant_moved(hold, tenant_id)

    def _start_ready(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        ready = [hold for hold in self._dispatcher.ownership.holds() if hold.state is HoldState.READY]
        self._start_groups([hold for hold in ready if not hold.is_paced], tasks, ending)
        self._start_paced([hold for hold in ready if hold.is_paced], tasks, ending)

    def _start_paced(self, ready: Sequence[Hold], tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        # Each by a catch-up of its own while there are few, or where all of these have passed it.
        for hold in ready:
            running = sorted((one for one in self.running if one.is_paced), key=lambda one: one.lag_s)
            may_join = len(running) >= PACED_MAX
            if not (may_join and any(one.catch_up.take_along(hold) for one in running)):
                self._start([hold], tasks, ending, is_paced=True)

    def _start_groups(self, ready: Iterable[Hold], tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        groups: list[list[Hold]] = []
        running = [one for one in self.running if not one.is_paced]
        for hold in sorted(ready, key=lambda one: one.arrived_at):
            if self._join_any(hold, [one for one in running if one.is_near(hold)]):
                continue
            is_alone = hold.unread.parents or (groups and groups[-1][0].unread.parents)
            if groups and not is_alone and hold.arrived_at - groups[-1][0].arrived_at <= GROUP_WITHIN:
                groups[-1].append(hold)
            else:
                groups.append([hold])
        oldest = groups[0] if groups else None
        chosen = next_to_catch_up(groups, [one.is_oldest for one in running])
        for group in chosen:
            self._start(group, tasks, ending, is_oldest=group is oldest)
        # Without a free catch-up they join the nearest, however far: short ones could delay them without end.
        by_lag = sorted((one for one in self.running if not one.is_paced), key=lambda one: one.lag_s)
        for hold in (hold for group in groups if group not in chosen for hold in group):
            self._join_any(hold, by_lag)

    def _join_any(self, hold: Hold, running: Iterable[CatchUpReader]) -> bool:
        return any(one.catch_up.take_along(hold) for one in running)

    def _start(
        self,
        holds: Sequence[Hold],
        tasks: asyncio.TaskGroup,
        ending: asyncio.Event,
        *,
        is_oldest: bool = False,
        is_paced: bool = False,
    ) -> None:
        reader = self._create_reader(self._dispatcher.ownership.start_catch_up(holds))
        reader.is_oldest, reader.is_paced = is_oldest, is_paced
        self.running.append(reader)
        tasks.create_task(self._run_reader(reader, ending), name=f"catch-up:{self._access.stream_shard_id}")

    def _create_reader(self, catch_up: CatchUp) -> CatchUpReader:
        return CatchUpReader(catch_up, self._progress, self._access, self._dispatcher, self._shares, self._gateway)

    async def _run_reader(self, reader: CatchUpReader, ending: asyncio.Event) -> None:
        try:
            await reader.run(ending)
        finally:
            self.running.remove(reader)
            self._dispatcher.has_ready.set()  # another may start
