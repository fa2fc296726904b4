"""Know where each operation of one stream shard is until it is settled: in a lane, in the route lookup, or held.

The main reader and the catch-ups send through the same lanes and the same lookup, so a tenant's operations stay in
order, whichever of them read it. Operations that cannot be applied now are dropped from memory and held.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final, NamedTuple, assert_never

import structlog

from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation, cost_bytes_of
from simplu_worker.consumers.kinesis.dispatch.results import (
    BatchDecided,
    Found,
    GapFound,
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
from simplu_worker.consumers.kinesis.holding.hold import CatchUp, Hold
from simplu_worker.consumers.kinesis.holding.ownership import Meeting, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.holding.unread import Unread
from simplu_worker.consumers.kinesis.recovery.shard_positions import ReaderState, ShardPositions
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.consumers.outcome_counts import count_outcomes
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.errors import RetryableError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import Disposition
from simplu_worker.operations.unknown_tenants import is_overdue
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.vocabulary import DeadLetterReason, HeldTarget, HoldReason, Source, StreamRetry

TENANTS_REMEMBERED: Final = 10_000
STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
FAILING_RETRIES_S: Final = (1.0, 5.0, 15.0)  # before each retry of an operation that failed on a healthy shard
FAILING_TENANTS_MAX: Final = 3
LOCKED_BASE_S: Final = 0.5  # before the first retry of a tenant with locked rows; each costs other tenants a tenth
LOCKED_MAX_S: Final = 5.0
RETRIED: Final = frozenset({HoldReason.FAILING, HoldReason.LOCKED})  # holds of tenants that are caught up after a time
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
        main: CheckpointTracker[RecordPosition],
        tenant_wait: timedelta,
        store_dead_letters: Callable[[Sequence[DeadLetter]], Awaitable[None]],
        reader: ReaderState | None,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*name* is that of the stream shard, *main* the tracker of the main reader.

        *store_dead_letters* returns when the dead letters are stored.

        Without *reader* no positions are written on Postgres shards.
        """
        self._name = name
        self._gateway = gateway
        self._memory = memory
        self._tenant_wait = tenant_wait
        self._store_dead_letters = store_dead_letters
        self._draw = draw
        self._utc = utc
        self.ownership = Ownership(main)
        self.shard_positions = (
            None
            if reader is None
            else ShardPositions(gateway, self.ownership, reader, tenant_wait=tenant_wait, utc=utc)
        )
        self.lookup = RouteLookup(gateway, self.ownership, tenant_wait=tenant_wait, draw=draw, utc=utc)
        self._lanes: dict[str, ShardLane] = {}
        self._lane_by_tenant: dict[str, ShardLane] = {}  # the lane of its queued operations, or of its last ones
        self._failures: dict[str, _FailedOperation] = {}  # by tenant: the last one
        self._lock_waits: dict[str, _FailedOperation] = {}  # the same for operations behind a locked row
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
        return f"Dispatcher({self._name}, {list(self._lanes.values())}, {self.lookup!r}, {self.ownership!r})"

    @property
    def is_empty(self) -> bool:
        """Whether no operation is in memory."""
        return not any(map(len, self._lanes.values())) and not self.lookup.entries()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to check periodically; `has_arrivals` is set when that changes."""
        return not len(self.ownership) and self.is_empty

    def entries(self) -> list[QueuedOperation]:
        """Return all operations in memory."""
        return [entry for lane in self._lanes.values() for entry in lane.entries()] + self.lookup.entries()

    def pending_tenants(self) -> TenantSet:
        """Return all tenants that are held or have operations in memory."""
        tenants = self.ownership.held_tenants()
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
                self._wait_for_route(tenant_id, own)
            elif (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
                self.route_to_lane(tenant_id, shard_id, own)
            else:
                self._wait_for_route(tenant_id, own)

    def _wait_for_route(self, tenant_id: str, entries: Sequence[QueuedOperation], *, left: str | None = None) -> None:
        if (waited := self.lookup.add(tenant_id, entries, left=left)) is not None:
            self._hold_waited(waited)

    def route_to_lane(self, tenant_id: str, shard_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Put all operations of a tenant into the lane of its shard; later ones follow there.

        Those that the tenant's hold has still to come to are dropped: the shard may lack earlier ones.
        """
        owner = self.ownership.owner_of(tenant_id)
        dropped: list[QueuedOperation] = []
        kept: list[QueuedOperation] = []
        for entry in entries:
            (dropped if owner is not None and owner.unread.includes(entry.unread) else kept).append(entry)
        self._finish(dropped)
        if kept:
            self._enqueue(self._remember_lane(tenant_id, shard_id), kept)

    def _remember_lane(self, tenant_id: str, shard_id: str) -> ShardLane:
        lane = self._open_lane(shard_id)
        if len(self._lane_by_tenant) >= TENANTS_REMEMBERED:  # tenants without queued operations can be looked up again
            self._lane_by_tenant = {tenant: one for tenant, one in self._lane_by_tenant.items() if len(one)}
        self._lane_by_tenant[tenant_id] = lane
        return lane

    def _open_lane(self, shard_id: str) -> ShardLane:
        lane = self._lanes.get(shard_id)
        if lane is None:
            positions = self.shard_positions
            lane = ShardLane(
                shard_id, self._gateway, self.ownership, shard_positions=positions, draw=self._draw, utc=self._utc
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
                    self.hold_shard(lane.shard_id, result.entries, result.reason)
                case RowBehind():
                    self.start_backfill(lane.shard_id, result.unread, result.entries)
                case GapFound():
                    self.hold_shard(lane.shard_id, result.entries, HoldReason.GAP)
                case _:
                    assert_never(result)
            del result  # else the memory of its operations would be free only after the next batch

    async def _settle_batch(self, lane: ShardLane, batch: BatchDecided) -> None:
        """Settle, hold or look up each operation, together with those of its tenant behind it.

        Nothing is awaited before all operations that are not finished are in one place again.
        """
        failing: list[tuple[QueuedOperation, int, str, Hold]] = []
        for entry, error in batch.failing:
            tenant_id, attempts = entry.operation.tenant_id, self._count_failure(entry, lane.shard_id, self._failures)
            entries = [entry, *batch.not_here.pop(tenant_id, ()), *lane.take_tenants({tenant_id})]
            failing.append((entry, attempts, error, self._hold_tenant(entries, HoldReason.FAILING)))
        for tenant_id, entries in batch.locked.items():
            behind = [*batch.not_here.pop(tenant_id, ()), *lane.take_tenants({tenant_id})]
            self._hold_locked([*entries, *behind], lane.shard_id)
        may_give_up = bool(failing) and not self._fails_for_many(lane.shard_id)
        exhausted: list[tuple[QueuedOperation, int, str, Hold]] = []
        for entry, attempts, error, hold in failing:
            if may_give_up and attempts > len(FAILING_RETRIES_S):
                hold.next_attempt_at = float("inf")
                exhausted.append((entry, attempts, error, hold))
            else:
                hold.next_attempt_at = loop_time() + FAILING_RETRIES_S[min(attempts, len(FAILING_RETRIES_S)) - 1]
                ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
                instruments.RETRIES.labels(Source.KINESIS, StreamRetry.FAILING).inc()
                at = {"queue": None, "shard_id": lane.shard_id}
                log.warning("operation.failing", attempts=attempts, error=error, **at, **ids)
        for tenant_id, entries in batch.not_here.items():
            self.requeue_unrouted(tenant_id, [*entries, *lane.take_tenants({tenant_id})])
        await self.settle(batch.finished, batch.letters)
        for entry, attempts, error, hold in exhausted:
            await self._give_up(lane, entry, attempts, error, hold)

    def _hold_locked(self, entries: Sequence[QueuedOperation], shard_id: str) -> None:
        """Hold a tenant of which another transaction keeps rows locked, until its next try."""
        hold, operation = self._hold_tenant(entries, HoldReason.LOCKED), entries[0].operation
        attempts = self._count_failure(entries[0], shard_id, self._lock_waits)
        delay_s = backoff_s(attempts, draw=self._draw(), base_s=LOCKED_BASE_S, max_s=LOCKED_MAX_S)
        hold.next_attempt_at = loop_time() + delay_s
        instruments.RETRIES.labels(Source.KINESIS, StreamRetry.LOCKED).inc()
        log.warning(
            "tenant.locked",
            shard_id=shard_id,
            attempts=attempts,
            retry_in_s=round(delay_s, 2),
            business_id=operation.business_id,
            location_id=operation.location_id,
        )

    async def _give_up(self, lane: ShardLane, entry: QueuedOperation, attempts: int, error: str, hold: Hold) -> None:
        """Give up an operation after its last try: store its dead letter, mark its row, and catch up its tenant.

        Where the shard does not take the mark, operation, dead letter and row are tried again.
        """
        ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
        hold.next_attempt_at = loop_time() + FAILING_RETRIES_S[-1]
        letter = entry.dead_letter(
            DeadLetterReason.RETRIES_EXHAUSTED,
            f"it failed {attempts} times: {error}",
            failed_at=self._utc(),
            attempts=attempts,
        )
        await self.settle([], [letter])
        try:
            outcome = await lane.write_failure(entry.operation)
        except RetryableError:
            return
        count_outcomes([entry.operation], [outcome], now=self._utc())
        log.error("operation.given_up", queue=None, shard_id=lane.shard_id, attempts=attempts, error=error, **ids)
        if outcome.disposition is not Disposition.HOLD and hold.is_waiting:
            self._make_ready(hold)

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
                    shard_id = self._gateway.cached_shard_id(tenant_id)
                    if shard_id is not None:  # found for another reader since it was sent
                        self._route_found(self.lookup.take_found(tenant_id, shard_id))
                        continue
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
                    self._route_found(found)
                case Unregistered() as answer if not self._ending.is_set():
                    self._on_tenant_unregistered(tenant_id, answer.asked_at)
                case Overdue() as overdue if not self._ending.is_set():
                    await self.settle(overdue.entries, overdue.letters)
                    self.lookup.remove_overdue(overdue)
        finally:
            self.lookup.end(tenant_id)

    def _route_found(self, found: Found | None) -> None:
        """Put the operations of a tenant that waited into the lane of its shard."""
        if found is None:
            return
        if found.entries:
            if found.has_moved:
                self._open_lane(found.shard_id).expect_merge()
            self.route_to_lane(found.tenant_id, found.shard_id, found.entries)
        self.on_tenant_found(found.tenant_id)  # may be held too: the entries may have come for its shard's hold

    def _hold_waited(self, waited: Waited) -> None:
        """Hold a tenant without a route. With a shard that does not answer, with all others of that shard."""
        if waited.shard_id is not None:
            self.hold_shard(waited.shard_id, waited.entries)
            self.lookup.forget(waited.tenant_id)
        elif self._hold_tenant(waited.entries, waited.reason).target is not HeldTarget.TENANT:
            self.lookup.forget(waited.tenant_id)

    def _enqueue(self, lane: ShardLane, entries: Sequence[QueuedOperation]) -> None:
        hold = self.ownership.shard_hold(lane.shard_id)
        if hold is None:
            lane.enqueue(entries)
        elif hold.is_waiting:
            self.hold_shard(lane.shard_id, entries)
        elif hold.is_backfill:
            self._enqueue_beside_backfill(lane, hold, entries)
        else:
            lane.enqueue(entries)

    def _enqueue_beside_backfill(self, lane: ShardLane, hold: Hold, entries: Sequence[QueuedOperation]) -> None:
        """Queue operations for a shard that may lack earlier ones: not those that a backfill has still to come to."""
        by_tenant = _by_tenant(entries)
        queued: dict[str, list[QueuedOperation]] | None = None  # found only if needed: a backfill sends one by one
        for tenant_id, own in by_tenant.items():
            if hold.catch_up is None:
                self._split(hold, [*lane.take_tenants({tenant_id}), *own])
                continue
            if self.ownership.owner_of(tenant_id) is hold and not hold.catch_up.has_others(own):
                lane.enqueue(own)
                continue
            if queued is None:
                queued = self.in_memory_of(by_tenant.keys(), [lane])
            if self._meet(tenant_id, hold, [*queued.get(tenant_id, ()), *own]) is Meeting.LEFT:
                lane.enqueue(own)
            else:
                self._finish([*lane.take_tenants({tenant_id}), *own])

    def meet_resident(self, tenant_id: str, hold: Hold, in_memory: Sequence[QueuedOperation]) -> bool:
        """Return whether a backfill takes a tenant of its shard; *in_memory* are the tenant's operations."""
        meeting = self._meet(tenant_id, hold, in_memory)
        if meeting is Meeting.APART:
            self._drop(in_memory)
        elif meeting is Meeting.TAKEN:
            self._remember_lane(tenant_id, hold.name)
        return meeting is Meeting.TAKEN

    def make_way(self, tenant_id: str, catch_up: CatchUp, in_memory: Sequence[QueuedOperation]) -> bool:
        """Drop those *in_memory* of a tenant to which *catch_up* is about to come; return whether it may send.

        It may not where neither comes to all of the other; then the tenant gets a hold of its own.
        """
        later: list[QueuedOperation] = []
        for entry in in_memory:
            if entry.tracker is catch_up.tracker:
                continue
            if catch_up.comes_to(entry.unread):
                later.append(entry)
            elif not entry.unread.includes(catch_up.unread):
                self._set_apart(tenant_id, catch_up.unread, in_memory)
                self._drop(in_memory)
                return False
        self._drop(later)
        return True

    def _meet(self, tenant_id: str, hold: Hold, in_memory: Sequence[QueuedOperation]) -> Meeting:
        """Have a backfill meet a tenant. Unless the tenant is left, drop the operations *in_memory*."""
        meeting = self.ownership.meet_resident(tenant_id, hold, [entry.unread for entry in in_memory])
        if meeting is Meeting.APART:
            self._set_apart(tenant_id, hold.unread, in_memory)
        return meeting

    def _set_apart(self, tenant_id: str, unread: Unread, in_memory: Sequence[QueuedOperation]) -> None:
        """Give a tenant a hold of its own, for *unread* and the operations *in_memory*."""
        arrived_at = _first_arrival(in_memory) if in_memory else self._utc()
        parts = [unread, *(entry.unread for entry in in_memory)]
        hold = self.ownership.hold_tenant(tenant_id, HoldReason.BACKFILL, parts, arrived_at, now=loop_time())
        if hold.target is HeldTarget.TENANT:
            self._make_ready(hold)

    def in_memory_of(
        self, tenant_ids: AbstractSet[str], lanes: Iterable[ShardLane] | None = None
    ) -> dict[str, list[QueuedOperation]]:
        """Return the operations of tenants that are in *lanes*; by default, also those that wait for a lookup.

        Without those that are being settled.
        """
        found = [entry for lane in lanes or self._lanes.values() for entry in lane.in_memory()]
        if lanes is None:
            found += self.lookup.in_memory()
        return _by_tenant(entry for entry in found if entry.operation.tenant_id in tenant_ids)

    def start_backfill(self, shard_id: str, unread: Unread, entries: Sequence[QueuedOperation]) -> None:
        """Have *unread* read again for all tenants of a Postgres shard; drop *entries*, which are all of its lane.

        Must be called in the same step as the decision, with no batch in flight.
        """
        arrived_at = self._utc() if unread.after is None else unread.after.arrived_at
        hold = self.ownership.open_backfill(shard_id, unread, arrived_at, now=loop_time())
        own = {entry.operation.tenant_id for entry in self.entries()}
        own = {tenant_id for tenant_id in own if self.ownership.owner_of(tenant_id) is hold}
        self._split(hold, [*entries, *self._take(own)])
        self._make_ready(hold)

    def _split(self, hold: Hold, entries: Sequence[QueuedOperation]) -> None:
        """Give the tenants of *entries*, all their operations in memory, to a hold; drop *entries*."""
        for tenant_id, own in _by_tenant(entries).items():
            self.ownership.split(tenant_id, hold, [entry.unread for entry in own], _first_arrival(own))
        self._finish(entries)

    def _take(self, tenant_ids: AbstractSet[str]) -> list[QueuedOperation]:
        """Remove and return all operations of tenants in memory, but for those that are being settled."""
        entries = [entry for own in self.in_memory_of(tenant_ids).values() for entry in own]
        self._remove(entries)
        return entries

    def _drop(self, entries: Sequence[QueuedOperation]) -> None:
        """Drop operations: they will be read again."""
        self._remove(entries)
        self._finish(entries)

    def _remove(self, entries: Iterable[QueuedOperation]) -> None:
        ids = {id(entry) for entry in entries}
        if ids:
            self.lookup.remove(ids)
            for lane in self._lanes.values():
                lane.remove(ids)

    def request_row_read(self, shard_id: str) -> bool:
        """Make the lane to a Postgres shard read its row there again; return False where there is no lane."""
        lane = self._lanes.get(shard_id)
        if lane is not None:
            lane.request_row_read()
        return lane is not None

    def requeue_unrouted(self, tenant_id: str, entries: Sequence[QueuedOperation]) -> None:
        """Take back all operations of a tenant from its lane: its shard reports that it does not live there now."""
        left = self._lane_by_tenant.pop(tenant_id, None)
        self._wait_for_route(tenant_id, entries, left=None if left is None else left.shard_id)

    def hold_shard(
        self, shard_id: str, entries: Sequence[QueuedOperation], reason: HoldReason = HoldReason.SHARD_UNAVAILABLE
    ) -> None:
        """Hold a Postgres shard with the tenants of *entries*, all of which are dropped.

        *reason* is that of a new hold. A gap becomes the reason of a hold that exists, too.
        """
        hold = self.ownership.open_shard_hold(shard_id, _first_arrival(entries), now=loop_time())
        if reason is HoldReason.GAP or hold.reason == HoldReason.SHARD_UNAVAILABLE:
            hold.reason = reason
        hold.sample_tenant = entries[0].operation.tenant_id
        self._split(hold, entries)
        if self.is_lane_idle(shard_id):
            for tenant_id in {entry.operation.tenant_id for entry in entries}:
                self._lane_by_tenant.pop(tenant_id, None)

    async def is_held_for_gap(self, hold: Hold) -> bool:
        """Return whether a Postgres shard that answers lacks records that the stream no longer has.

        Until a person accepts that. Raises `RetryableError` when the shard does not answer.
        """
        positions = self.shard_positions
        if hold.reason != HoldReason.GAP or positions is None:
            return False
        is_open = await positions.has_open_gap(hold.name)
        if not is_open and hold.is_waiting:
            hold.reason = HoldReason.SHARD_UNAVAILABLE  # whatever keeps it from now on
        return is_open

    def on_tenant_moved(self, hold: Hold, tenant_id: str) -> None:
        """Catch up a tenant of a held Postgres shard that has another shard now."""
        entries = self._take({tenant_id})
        arrived_at = min([hold.first_arrival, *(entry.operation.origin.arrived_at for entry in entries)])
        unread = [entry.unread for entry in entries]
        own = self.ownership.hold_tenant(tenant_id, hold.reason, unread, arrived_at, now=loop_time())
        self._finish(entries)
        if own.target is HeldTarget.TENANT:
            self._make_ready(own)

    def _hold_tenant(self, entries: Sequence[QueuedOperation], reason: HoldReason) -> Hold:
        tenant_id = entries[0].operation.tenant_id
        unread = [entry.unread for entry in entries]
        hold = self.ownership.hold_tenant(tenant_id, reason, unread, _first_arrival(entries), now=loop_time())
        self._lane_by_tenant.pop(tenant_id, None)
        self._finish(entries)
        return hold

    def on_tenant_found(self, tenant_id: str) -> None:
        """Catch up a held tenant that has a shard now."""
        hold = self.ownership.owner_of(tenant_id)
        if hold is not None and hold.target is HeldTarget.TENANT and hold.catch_up is None:
            self._make_ready(hold)

    def _on_tenant_unregistered(self, tenant_id: str, asked_at: datetime) -> None:
        """Catch up a held tenant if it has overdue operations; the catch-up turns these into dead letters."""
        hold = self.ownership.owner_of(tenant_id)
        if hold is None or not self.ownership.needs_lookup(tenant_id) or loop_time() < hold.next_attempt_at:
            return
        if is_overdue(hold.arrived_at, now=asked_at, tenant_wait=self._tenant_wait):
            hold.next_attempt_at = loop_time() + min(OVERDUE_INTERVAL_S, self._tenant_wait.total_seconds())
            self._make_ready(hold)

    def _count_failure(self, entry: QueuedOperation, shard_id: str, failures: dict[str, _FailedOperation]) -> int:
        """Count one more failure of an operation on a healthy Postgres shard in *failures*; return the count."""
        tenant_id, origin = entry.operation.tenant_id, entry.operation.origin
        known = failures.get(tenant_id)
        position = (origin.sequence_number, origin.sub_sequence_number)
        times = 1 + (known.times if known is not None and known.position == position else 0)
        while len(failures) >= FAILURES_REMEMBERED:
            del failures[next(iter(failures))]
        failures[tenant_id] = _FailedOperation(shard_id, position, times)
        return times

    def _fails_for_many(self, shard_id: str) -> bool:
        """Return whether operations of many tenants fail on a Postgres shard.

        That is taken for a fault of the shard, for example a trigger that refuses every row: no operation is given up.
        """
        held = [self._failures.get(hold.name) for hold in self.ownership.holds() if hold.reason == HoldReason.FAILING]
        return sum(one is not None and one.shard_id == shard_id for one in held) > FAILING_TENANTS_MAX

    def _make_ready(self, hold: Hold) -> None:
        hold.is_ready = True
        self.has_ready.set()

    def ready_due_holds(self) -> None:
        """Make the holds ready that are due. Must be called a few times a second."""
        now = loop_time()
        holds = self.ownership.holds()
        for hold in holds:
            if hold.reason in RETRIED and hold.catch_up is None and now >= hold.next_attempt_at:
                self._make_ready(hold)
        overflow_holds = [hold for hold in holds if hold.target is HeldTarget.OVERFLOW]
        if not overflow_holds:
            self._overflow_interval_s = OVERFLOW_INTERVAL_FIRST_S
        if not overflow_holds or any(hold.catch_up or hold.is_ready for hold in overflow_holds):
            self._overflow_idle_since = now
        elif now - self._overflow_idle_since >= self._overflow_interval_s:
            self._overflow_interval_s = min(OVERFLOW_INTERVAL_MAX_S, 2 * self._overflow_interval_s)
            self._make_ready(overflow_holds[0])

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now, and not after their back-off; return how many. *target* is one as people see it.

        Parents, and the last owner of the lease, are waited for, not tried.
        """
        now, count = loop_time(), 0
        for hold in self.ownership.holds():
            is_tried = hold.target not in (HeldTarget.PARENTS, HeldTarget.PREDECESSOR)
            if hold.is_waiting and is_tried and target in (None, hold.title):
                count += 1
                hold.next_attempt_at = now
                if hold.target is HeldTarget.OVERFLOW:
                    self._make_ready(hold)
                elif hold.target is HeldTarget.TENANT:
                    self.lookup.retry(hold.name)
        self.has_ready.set()
        return count

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

    def _finish(self, entries: Sequence[QueuedOperation]) -> None:
        """Finish *entries* with the tracker of the cursor that read them, and release their memory."""
        tickets: defaultdict[CheckpointTracker[RecordPosition], list[int]] = defaultdict(list)
        for entry in entries:
            tickets[entry.tracker].append(entry.ticket)
        for tracker, own in tickets.items():
            tracker.finish(own)
        self._memory.release(cost_bytes_of(entries))
        self.has_settled.set()


class _FailedOperation(NamedTuple):
    """The operation of a tenant that failed, its Postgres shard, and how often it failed in a row."""

    shard_id: str
    position: tuple[str | None, int]
    times: int


class _DeadLetterBatch:
    """Dead letters that are stored together."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.is_stored = False


def _by_tenant(entries: Iterable[QueuedOperation]) -> dict[str, list[QueuedOperation]]:
    found: defaultdict[str, list[QueuedOperation]] = defaultdict(list)
    for entry in entries:
        found[entry.operation.tenant_id].append(entry)
    return found


def _first_arrival(entries: Iterable[QueuedOperation]) -> datetime:
    return min(entry.operation.origin.arrived_at for entry in entries)
