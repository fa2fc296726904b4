"""Know where each operation of one stream shard is until it is settled: in a lane, in the route lookup, or held.

The main reader and the catch-ups send through the same lanes and the same lookup, so a tenant's operations stay in
order, whichever of them read it. Operations that cannot be applied now are dropped from memory and held.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, assert_never

import structlog

from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation, cost_bytes_of
from simplu_worker.consumers.kinesis.dispatch.results import (
    BatchDecided,
    Found,
    NoAnswer,
    Overdue,
    RowBehind,
    Unregistered,
    Waited,
)
from simplu_worker.consumers.kinesis.dispatch.route_lookup import RouteLookup
from simplu_worker.consumers.kinesis.dispatch.shard_lane import ShardLane
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import MemoryQuota
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.holds import CatchUp, Hold, Holds, Reason, Target
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.recovery.shard_positions import Backfill, ReaderState, ShardPositions
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition, is_after, lowest_position
from simplu_worker.consumers.outcome_counts import count_outcomes
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import DeadLetterReason, Disposition
from simplu_worker.operations.unknown_tenants import is_overdue
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now

TENANTS_REMEMBERED: Final = 10_000
STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
FAILING_RETRIES_S: Final = (1.0, 5.0, 15.0)  # before each retry of an operation that failed on a healthy shard
FAILING_TENANTS_MAX: Final = 3
FAILURES_REMEMBERED: Final = 1000
OVERFLOW_INTERVAL_FIRST_S: Final = 5.0  # between two catch-ups of the overflow hold, longer each time
OVERFLOW_INTERVAL_MAX_S: Final = 300.0
OVERDUE_INTERVAL_S: Final = 60.0  # between two catch-ups of a tenant that is not registered

log = structlog.get_logger(__name__)


class Dispatcher:
    """The lanes, the route lookup and the holds of one reader."""

    def __init__(
        self,
        name: str,
        gateway: ShardGateway,
        memory: MemoryQuota,
        *,
        tenant_wait: timedelta,
        store_dead_letters: Callable[[Sequence[DeadLetter]], Awaitable[None]],
        reader: ReaderState | None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*name* is that of the stream shard. *store_dead_letters* returns when the dead letters are stored.

        Without *reader* no positions are written on Postgres shards.
        """
        self._name = name
        self._gateway = gateway
        self._memory = memory
        self._tenant_wait = tenant_wait
        self._store_dead_letters = store_dead_letters
        self._draw = draw
        self._utc = utc
        self.holds = Holds()
        self.shard_positions = (
            None if reader is None else ShardPositions(gateway, self.holds, reader, tenant_wait=tenant_wait, utc=utc)
        )
        self.lookup = RouteLookup(gateway, self.holds, tenant_wait=tenant_wait, draw=draw, utc=utc)
        self._lanes: dict[str, ShardLane] = {}
        self._lane_by_tenant: dict[str, ShardLane] = {}  # the lane of its queued operations, or of its last ones
        self._failures: dict[str, tuple[str | None, int, int]] = {}  # by tenant: the operation, and how often it failed
        self._tasks = asyncio.TaskGroup()
        self._ending = asyncio.Event()
        self._open_batch = _DeadLetterBatch()
        self._store_lock = asyncio.Lock()
        self._overflow_idle_since = 0.0
        self._overflow_interval_s = OVERFLOW_INTERVAL_FIRST_S
        self.has_settled = asyncio.Event()
        self.has_ready = asyncio.Event()  # a hold is ready for its catch-up
        self.has_arrivals = asyncio.Event()  # an operation was sent; the waiting task clears it

    def __repr__(self) -> str:
        return f"Dispatcher({self._name}, {list(self._lanes.values())}, {self.lookup!r}, {self.holds!r})"

    @property
    def is_empty(self) -> bool:
        """Whether no operation is in memory."""
        return not any(map(len, self._lanes.values())) and not self.lookup.entries()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to check periodically; `has_arrivals` is set when that changes."""
        return not self.holds.all() and self.is_empty

    def entries(self) -> list[QueuedOperation]:
        """Return all operations in memory."""
        return [entry for lane in self._lanes.values() for entry in lane.entries()] + self.lookup.entries()

    def pending_tenants(self) -> TenantSet:
        """Return all tenants that are held or have operations in memory."""
        tenants = self.holds.held_tenants()
        for entry in self.entries():
            tenants.add(entry.operation.tenant_id)
        return tenants

    @property
    def is_stuck(self) -> bool:
        """Whether a batch has been in flight for so long that it may never be answered."""
        return any(lane.is_stuck for lane in self._lanes.values())

    @property
    def has_idle_lane(self) -> bool:
        """Whether new operations could be applied at once, or a lane is late and must not delay the others."""
        return not self._lanes or any(not len(lane) or lane.is_late for lane in self._lanes.values())

    @property
    def has_progress(self) -> bool:
        """Whether an operation is in memory that does not wait for a stuck batch."""
        return bool(self.lookup.entries()) or any(len(lane) and not lane.is_stuck for lane in self._lanes.values())

    def is_lane_idle(self, shard_id: str) -> bool:
        """Return whether no batch to a Postgres shard is in flight."""
        lane = self._lanes.get(shard_id)
        return lane is None or lane.is_idle

    def start(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        """Work in *tasks* until *ending*; then finish the batches in flight. The other operations stay pending."""
        self._tasks = tasks
        self._ending = ending
        tasks.create_task(self._run_lookups(), name=f"lookups:{self._name}")

    def send(self, entries: Sequence[QueuedOperation]) -> None:
        """Send operations read by one cursor, each behind those of its tenant that are in memory.

        Operations of a held tenant must come from a catch-up of its hold. All operations of a tenant go together: where
        they are held they are all dropped, so none can be sent before the others are read again.
        """
        self._memory.reserve(cost_bytes_of(entries))
        self.has_arrivals.set()
        waiting = self.lookup if len(self.lookup) else ()
        by_lane: defaultdict[ShardLane, list[QueuedOperation]] = defaultdict(list)
        without_lane: defaultdict[str, list[QueuedOperation]] = defaultdict(list)
        for entry in entries:
            tenant_id = entry.operation.tenant_id
            lane = self._lane_by_tenant.get(tenant_id)
            if lane is None or tenant_id in waiting:
                without_lane[tenant_id].append(entry)
            else:
                by_lane[lane].append(entry)
        for lane, own in by_lane.items():
            self._enqueue(lane, own)
        for tenant_id, own in without_lane.items():
            if tenant_id in waiting:
                self._enqueue_for_lookup(tenant_id, own)
            elif (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
                self.route_to_lane(tenant_id, shard_id, own)
            else:
                self._wait_for_route(tenant_id, own)

    def shard_id_of(self, tenant_id: str) -> str | None:
        """Return the id of the Postgres shard for a tenant's next operation; None if unknown."""
        lane = self._lane_by_tenant.get(tenant_id)
        return self._gateway.cached_shard_id(tenant_id) if lane is None else lane.shard_id

    def _enqueue_for_lookup(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Append operations read by one cursor to those of their tenant that wait for a lookup.

        Operations of a backfill come first: those of other cursors that wait already are dropped, and will be read
        again.
        """
        tracker = entries[0].tracker
        hold = self.holds.whole_shard_hold_of(tracker)
        waiting = [] if hold is None else self.lookup.take_entries(tenant_id)
        others = [one for one in waiting if one.tracker is not tracker]
        own: Sequence[QueuedOperation] = [*(one for one in waiting if one.tracker is tracker), *entries]
        if hold is not None and others:
            own = self._split_for_backfill(hold, others, own)
        if own:
            self._wait_for_route(tenant_id, own)

    def _wait_for_route(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        if (waited := self.lookup.add(tenant_id, entries)) is not None:
            self._hold_waited(waited)

    def route_to_lane(self, tenant_id: str, shard_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Put all waiting operations of a tenant into the lane of its shard; later ones follow there.

        Except those that a backfill of another shard sent while the tenant's shard was unknown: these are dropped.
        """
        own: list[QueuedOperation] = []
        misrouted: list[QueuedOperation] = []
        for entry in entries:
            is_misrouted = self.holds.is_misrouted(entry.tracker, entry.ticket, tenant_id, shard_id)
            (misrouted if is_misrouted else own).append(entry)
        self.holds.clear_unrouted(tenant_id)
        if misrouted:
            self._drop_for_reread(misrouted)
        if not own:
            return
        lane = self._open_lane(shard_id)
        if len(self._lane_by_tenant) >= TENANTS_REMEMBERED:  # tenants without queued operations can be looked up again
            self._lane_by_tenant = {tenant: one for tenant, one in self._lane_by_tenant.items() if len(one)}
        self._lane_by_tenant[tenant_id] = lane
        self._enqueue(lane, own)

    def _open_lane(self, shard_id: str) -> ShardLane:
        lane = self._lanes.get(shard_id)
        if lane is None:
            positions = self.shard_positions
            lane = ShardLane(
                shard_id, self._gateway, self.holds, shard_positions=positions, draw=self._draw, utc=self._utc
            )
            self._lanes[shard_id] = lane
            self._tasks.create_task(self._run_lane(lane), name=f"lane:{self._name}:{shard_id}")
        return lane

    async def _run_lane(self, lane: ShardLane) -> None:
        """Apply the batches of a lane, and deal with each result in the step in which it comes."""
        while (result := await lane.next_result(self._ending)) is not None:
            match result:
                case BatchDecided():
                    await self._settle_batch(lane, result)
                case NoAnswer():
                    self.hold_shard(lane.shard_id, result.entries)
                case RowBehind():
                    self.start_backfill(lane.shard_id, result.backfill, result.entries)
                case _:
                    assert_never(result)

    async def _settle_batch(self, lane: ShardLane, batch: BatchDecided) -> None:
        """Settle, hold or look up each operation, together with those of its tenant behind it."""
        for entry, error in batch.failing:
            if await self._give_up_if_exhausted(lane, entry, error):
                batch.finished.append(entry)
            else:
                tenant_id = entry.operation.tenant_id
                self._hold_failing([entry, *batch.not_here.pop(tenant_id, ()), *lane.take_tenant(tenant_id)])
        for tenant_id, entries in batch.not_here.items():
            self.requeue_unrouted(tenant_id, [*entries, *lane.take_tenant(tenant_id)])
        await self.settle(batch.finished, batch.letters)

    async def _give_up_if_exhausted(self, lane: ShardLane, entry: QueuedOperation, error: str) -> bool:
        """Give up an operation after its last try: store its dead letter, then mark its row; return True.

        Return False also where the shard does not take the mark: then operation, dead letter and row are tried again.
        """
        attempts = self._count_failure(entry)
        ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
        if attempts <= len(FAILING_RETRIES_S):
            instruments.RETRIES.labels("kinesis", "failing").inc()
            log.warning("operation.failing", shard_id=lane.shard_id, attempts=attempts, error=error, **ids)
            return False
        reason = DeadLetterReason.RETRIES_EXHAUSTED
        letter = entry.dead_letter(
            reason, f"it failed {attempts} times: {error}", failed_at=self._utc(), attempts=attempts
        )
        await self.settle([], [letter])
        try:
            outcome = await lane.write_failure(entry.operation)
        except RetryableError:
            return False
        count_outcomes([entry.operation], [outcome], now=self._utc())
        log.error("operation.given_up", shard_id=lane.shard_id, attempts=attempts, error=error, **ids)
        return outcome.disposition is not Disposition.HOLD

    async def _run_lookups(self) -> None:
        """Do the lookups that are due until the end; then cancel those that are still running.

        No lookup waits for another one, so a tenant of a shard that does not answer delays no other tenant.
        """
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()
            while not self._ending.is_set():
                for waited in self.lookup.take_long_waiting():
                    self._hold_waited(waited)
                for tenant_id in self.lookup.take_due():
                    self.lookup.begin(tenant_id)
                    task = tasks.create_task(self._look_up(tenant_id), name=f"ask:{tenant_id}")
                    running.add(task)
                    task.add_done_callback(running.discard)
                await self.lookup.wait_for_change(self._ending)
            for task in running:
                task.cancel()

    async def _look_up(self, tenant_id: str) -> None:
        """Look a tenant up, and deal with the result in the step in which it comes."""
        try:
            match await self.lookup.look_up(tenant_id):
                case Found() as found:
                    if found.entries:
                        self.route_to_lane(tenant_id, found.shard_id, found.entries)
                    self.on_tenant_found(tenant_id)  # may be held too: the entries may have come for its shard's hold
                case Unregistered() as answer if not self._ending.is_set():
                    self._on_tenant_unregistered(tenant_id, answer.asked_at)
                case Overdue() as overdue if not self._ending.is_set():
                    await self.settle(overdue.entries, overdue.letters)
                    self.lookup.remove_overdue(overdue)
        finally:
            self.lookup.end(tenant_id)

    def _hold_waited(self, waited: Waited) -> None:
        """Hold a tenant without a route. With a shard that does not answer, with all others of that shard."""
        if waited.shard_id is not None:
            self.hold_shard(waited.shard_id, waited.entries)
            self.lookup.forget(waited.tenant_id)
        elif self._hold_tenant(waited.entries, waited.reason).target is not Target.TENANT:
            self.lookup.forget(waited.tenant_id)

    def _enqueue(self, lane: ShardLane, entries: Sequence[QueuedOperation]) -> None:
        hold = self.holds.shard_hold(lane.shard_id)
        if hold is None:
            lane.enqueue(entries)
        elif hold.catch_up is None:
            self.hold_shard(lane.shard_id, entries)
        elif hold.covers_whole_shard:
            self._enqueue_for_whole_shard(lane, hold, hold.catch_up, entries)
        else:
            lane.enqueue(entries)

    def _enqueue_for_whole_shard(
        self, lane: ShardLane, hold: Hold, catch_up: CatchUp, entries: Sequence[QueuedOperation]
    ) -> None:
        """Queue the operations of *catch_up*, which reads for all tenants of the shard; drop those of other cursors.

        The catch-up will reach the dropped ones or has sent them already. Where it has passed one without sending it,
        it starts again before that one; the operations it has just sent are dropped as well, as they would be too
        early.
        """
        others = [entry for entry in entries if entry.tracker is not catch_up.tracker]
        own = [entry for entry in entries if entry.tracker is catch_up.tracker]
        lane.enqueue(self._split_for_backfill(hold, others, own))

    def _split_for_backfill(
        self, hold: Hold, others: Sequence[QueuedOperation], own: Sequence[QueuedOperation]
    ) -> Sequence[QueuedOperation]:
        """Drop *others*, to be read again for *hold*; return those of *own*, read for the hold, that may be sent.

        Returns none where the catch-up of the hold has passed one of the others without sending it: it is restarted.
        """
        parent_records = self._parent_records_of(others)
        dropped = list(others)
        if any(
            (parent_records or _has_passed(hold, entry)) and not _will_send(hold, entry, parent_records)
            for entry in others
        ):
            dropped += own
            hold.lower(lowest_position(entry.before for entry in dropped), _first_arrival(dropped))
            self.holds.require_parent_records(hold, parent_records, [entry.operation.tenant_id for entry in others])
            self._make_ready(hold)
        for tenant_id in {entry.operation.tenant_id for entry in others}:
            self.holds.add_tenant(hold, tenant_id)
        self._drop_for_reread(dropped)
        return () if len(dropped) > len(others) else own

    def _parent_records_of(self, entries: Iterable[QueuedOperation]) -> tuple[ParentRecords, ...]:
        """Return the records of parents that must precede the operations that are just being sent."""
        for entry in entries:
            if parent_records := self.holds.parent_records_of(entry.tracker):
                return parent_records
        return ()

    def start_backfill(self, shard_id: str, backfill: Backfill, entries: Sequence[QueuedOperation]) -> None:
        """Have the stream read again for all tenants of a Postgres shard; drop *entries*, which are all of its lane.

        Must be called in the same step as the decision, with no batch in flight.
        """
        before = lowest_position([backfill.before, *(entry.before for entry in entries)])
        arrived_at = self._utc() if before is None else before.arrived_at
        hold = self.holds.hold_whole_shard(
            shard_id, before, arrived_at, parent_records=backfill.parent_records, now=loop_time()
        )
        for tenant_id in sorted({entry.operation.tenant_id for entry in entries}):
            self.holds.add_tenant(hold, tenant_id)
        self._drop_for_reread(entries)
        self._make_ready(hold)

    def restart_hold(self, hold: Hold, before: RecordPosition | None, tenant_ids: Iterable[str]) -> None:
        """Restart *hold* from *before*: its catch-up skipped operations of *tenant_ids*, which live on its shard.

        A tenant with operations queued for another shard is skipped again until these have come back.
        """
        for tenant_id in tenant_ids:
            lane = self._lane_by_tenant.get(tenant_id)
            if lane is not None and not any(entry.operation.tenant_id == tenant_id for entry in lane.entries()):
                del self._lane_by_tenant[tenant_id]
        hold.lower(before, hold.arrived_at)
        self._make_ready(hold)

    def finish_parents(self, catch_up: CatchUp) -> None:
        """Record that all parents' records of a catch-up are applied, or held again with their parents' records."""
        catch_up.is_reading_parents = False
        for hold in catch_up.holds:
            hold.parent_records = ()
        if self.shard_positions is not None and not self.holds.has_parent_records:
            for hold in catch_up.holds:
                if hold.covers_whole_shard:
                    self.shard_positions.mark_parents_read(hold.name)

    def request_row_read(self, shard_id: str) -> bool:
        """Make the lane to a Postgres shard read its row there again; return False where there is no lane."""
        lane = self._lanes.get(shard_id)
        if lane is not None:
            lane.request_row_read()
        return lane is not None

    def requeue_unrouted(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Take back all operations of a tenant from its lane: its shard reports that it does not live there now."""
        self._lane_by_tenant.pop(tenant_id, None)
        self._wait_for_route(tenant_id, entries)

    def hold_shard(self, shard_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Hold a Postgres shard, from the first of *entries* on; all of them are dropped."""
        tenants = sorted({entry.operation.tenant_id for entry in entries})
        before, arrived_at = lowest_position(entry.before for entry in entries), _first_arrival(entries)
        parent_records = self._parent_records_of(entries)  # before the hold leaves its catch-up
        hold = self.holds.hold_shard(shard_id, tenants, before, arrived_at, now=loop_time())
        self.holds.require_parent_records(hold, parent_records, tenants)
        if self.is_lane_idle(shard_id):
            for tenant_id in tenants:
                self._lane_by_tenant.pop(tenant_id, None)
        self._drop_for_reread(entries)

    def on_tenant_moved(self, hold: Hold, tenant_id: str) -> None:
        """Catch up a tenant of a held Postgres shard that has another shard now."""
        own = self.holds.hold_tenant(tenant_id, hold.reason, hold.reached, hold.arrived_at, now=loop_time())
        self.holds.require_parent_records(own, hold.parent_records, [tenant_id])
        if own.target is Target.TENANT:
            self._make_ready(own)

    def _hold_tenant(self, entries: Sequence[QueuedOperation], reason: str) -> Hold:
        tenant_id = entries[0].operation.tenant_id
        before, arrived_at = lowest_position(entry.before for entry in entries), _first_arrival(entries)
        parent_records = self._parent_records_of(entries)
        hold = self.holds.hold_tenant(tenant_id, reason, before, arrived_at, now=loop_time())
        self.holds.require_parent_records(hold, parent_records, [tenant_id])
        self._lane_by_tenant.pop(tenant_id, None)
        self._drop_for_reread(entries)
        return hold

    def on_tenant_found(self, tenant_id: str) -> None:
        """Catch up a held tenant that has a shard now."""
        hold = self.holds.hold_of(tenant_id)
        if hold is not None and hold.target is Target.TENANT and hold.catch_up is None:
            self._make_ready(hold)

    def _on_tenant_unregistered(self, tenant_id: str, asked_at: datetime) -> None:
        """Catch up a held tenant if it has overdue operations; the catch-up turns these into dead letters."""
        hold = self.holds.hold_of(tenant_id)
        if hold is None or not self.holds.needs_lookup(tenant_id) or loop_time() < hold.next_attempt_at:
            return
        if is_overdue(hold.arrived_at, now=asked_at, tenant_wait=self._tenant_wait):
            hold.next_attempt_at = loop_time() + min(OVERDUE_INTERVAL_S, self._tenant_wait.total_seconds())
            self._make_ready(hold)

    def _count_failure(self, entry: QueuedOperation) -> int:
        """Count one more failure of an operation on a healthy shard; return the count.

        Failures of many tenants are taken for a fault of the shard, for example a trigger that refuses every row: then
        the count stays below the limit, and no operation is given up.
        """
        origin = entry.operation.origin
        known = self._failures.get(entry.operation.tenant_id)
        position = (origin.sequence_number, origin.sub_sequence_number)
        times = 1 + (known[2] if known is not None and known[:2] == position else 0)
        while len(self._failures) >= FAILURES_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._failures[entry.operation.tenant_id] = *position, times
        is_mass = sum(hold.reason == Reason.FAILING for hold in self.holds.all()) > FAILING_TENANTS_MAX
        return min(times, len(FAILING_RETRIES_S)) if is_mass else times

    def _hold_failing(self, entries: Sequence[QueuedOperation]) -> None:
        """Hold the tenant of *entries*, the first of which failed on a healthy shard, to try it again later."""
        *_, times = self._failures.get(entries[0].operation.tenant_id, (1,))
        hold = self._hold_tenant(entries, Reason.FAILING)
        hold.next_attempt_at = loop_time() + FAILING_RETRIES_S[min(times, len(FAILING_RETRIES_S)) - 1]

    def _make_ready(self, hold: Hold) -> None:
        hold.is_ready = True
        self.has_ready.set()

    def ready_due_holds(self) -> None:
        """Make the holds ready that are due. Must be called a few times a second."""
        now = loop_time()
        holds = self.holds.all()
        for hold in holds:
            if hold.reason == Reason.FAILING and hold.catch_up is None and now >= hold.next_attempt_at:
                self._make_ready(hold)
        overflow_holds = [hold for hold in holds if hold.target is Target.OVERFLOW]
        if not overflow_holds:
            self._overflow_interval_s = OVERFLOW_INTERVAL_FIRST_S
        if not overflow_holds or any(hold.catch_up or hold.is_ready for hold in overflow_holds):
            self._overflow_idle_since = now
        elif now - self._overflow_idle_since >= self._overflow_interval_s:
            self._overflow_interval_s = min(OVERFLOW_INTERVAL_MAX_S, 2 * self._overflow_interval_s)
            self._make_ready(overflow_holds[0])

    def shed_stuck_lanes(self, *, is_memory_short: bool) -> None:
        """Hold the operations behind a batch that may never be answered, so that they take no more memory.

        The batch itself is waited for, unless memory is short.
        """
        for lane in self._lanes.values():
            if not lane.is_stuck:
                continue
            if (is_memory_short or lane.queued_bytes > STUCK_QUEUE_MAX_BYTES) and (queue := lane.take_queue()):
                log.warning("shard.held", shard_id=lane.shard_id, operations=len(queue), error="no answer yet")
                self.hold_shard(lane.shard_id, queue)
            if is_memory_short:
                lane.give_up_batch()

    async def settle(self, entries: Sequence[QueuedOperation], letters: Sequence[DeadLetter]) -> None:
        """Finish *entries*, once their dead letters, if any, are stored.

        Dead letters that arrive during a store are collected and stored together by the next one.
        """
        if letters:
            batch = self._open_batch
            batch.letters += letters
            async with self._store_lock:
                if not batch.is_stored:  # by the previous holder of the lock
                    self._open_batch = _DeadLetterBatch()
                    await self._store_dead_letters(batch.letters)
                    batch.is_stored = True
        self._finish(entries)

    def _drop_for_reread(self, entries: Sequence[QueuedOperation]) -> None:
        """Drop *entries*: their hold re-reads them. Marks the catch-up that queued them as incomplete."""
        for entry in entries:
            self.holds.mark_incomplete(entry.tracker, entry.operation.tenant_id)
        self._finish(entries)

    def _finish(self, entries: Sequence[QueuedOperation]) -> None:
        """Finish *entries* with the tracker of the cursor that read them, and release their memory."""
        tickets: defaultdict[CheckpointTracker[RecordPosition], list[int]] = defaultdict(list)
        for entry in entries:
            tickets[entry.tracker].append(entry.ticket)
        for tracker, own in tickets.items():
            tracker.finish(own)
        self._memory.release(cost_bytes_of(entries))
        self.has_settled.set()


class _DeadLetterBatch:
    """Dead letters that are stored together."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.is_stored = False


def _has_passed(hold: Hold, entry: QueuedOperation) -> bool:
    """Return whether the catch-up of *hold* is past the position of *entry*."""
    return hold.reached is not None and is_after(hold.reached, entry.before)


def _will_send(hold: Hold, entry: QueuedOperation, parent_records: tuple[ParentRecords, ...]) -> bool:
    """Return whether the catch-up of *hold* sends *entry* itself, after *parent_records*."""
    catch_up = hold.catch_up
    return catch_up is not None and catch_up.covers(entry.operation.tenant_id, entry.before, parent_records)


def _first_arrival(entries: Iterable[QueuedOperation]) -> datetime:
    return min(entry.operation.origin.arrived_at for entry in entries)
