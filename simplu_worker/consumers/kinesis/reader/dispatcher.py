"""Know where each operation of one stream shard is until it is settled: in a lane, in the lookup of homes, or held.

The main reader and the catch-ups send through the same lanes and lookup, so a tenant's operations stay in order.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

import structlog

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.fetch.cursor import StreamShardAccess
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, CheckpointTracker, Hold, Meeting
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderProgress
from simplu_worker.consumers.kinesis.recovery.recovery_plan import PositionGapError
from simplu_worker.consumers.kinesis.recovery.shard_positions import (
    ClaimedBatches,
    RowBehindError,
    ShardPositions,
    cost_bytes_of,
)
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.consumers.operation_taps import count_outcomes
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.consumers.pipeline.pipeline import Pipeline
from simplu_worker.consumers.pipeline.results import BatchCrashed, BatchDecided, Overdue, Paused, Unregistered, Waited
from simplu_worker.errors import InternalError, PermanentError, RetryableError, WorkerError
from simplu_worker.fairness import OVER_SHARE_S, TURN_S
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import is_overdue, unknown_tenant_error
from simplu_worker.operations.tries import Failed, GiveUp, Locked, RetryRules, next_try
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.vocabulary import DeadLetterReason, HeldTarget, HoldReason, HoldState, Source, StreamRetry

STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
FAILING_RETRIES_S: Final = (1.0, 5.0, 15.0)  # before each retry of an operation that failed on a healthy shard
FAILING_TENANTS_MAX: Final = 3
FAILING_COUNTS_S: Final = 60.0  # a few tries
TRIAL_COUNTS_S: Final = 5.0
# For so long operations of many tenants are not given up on a Postgres shard that refuses all. The alert for what is
# held comes after half of it. Then each is given up, as the shard may have refused no more than these and the trial.
FAILING_FOR_MANY_S: Final = 3600.0
LOCKED_BASE_S: Final = 0.5  # before the first retry of a tenant with locked rows; each costs other tenants a tenth
LOCKED_MAX_S: Final = 5.0
RETRIED: Final = frozenset({HoldReason.FAILING, HoldReason.LOCKED})  # holds of tenants that are caught up after a time
FAILURES_REMEMBERED: Final = 1000
AHEAD_MAX_COUNT: Final = 500  # in a lane, its batch included: more is in one large reply
AHEAD_MAX_S: Final = 2 * OVER_SHARE_S  # queued behind the batch: enough for a tenant to be seen beyond its share
OVERFLOW_INTERVAL_FIRST_S: Final = 5.0  # between two catch-ups of the overflow hold, longer each time
OVERFLOW_INTERVAL_MAX_S: Final = 300.0
OVERDUE_INTERVAL_S: Final = 60.0  # between two catch-ups of a tenant that is not registered

StreamLane: TypeAlias = Lane[QueuedOperation]

log = structlog.get_logger(__name__)


class Dispatcher:
    """The lanes, the lookup of homes and the holds of one reader."""

    def __init__(
        self,
        progress: ReaderProgress,
        gateway: ShardGateway,
        access: StreamShardAccess,
        store: Callable[[Sequence[DeadLetter]], Awaitable[None]],
        *,
        tenant_wait: timedelta,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*store* returns when dead letters are stored."""
        self._progress = progress
        self._gateway = gateway
        self._memory = access.memory
        self._store = store
        self._tenant_wait = tenant_wait
        self._draw = draw
        self._utc = utc
        self.ownership = progress.ownership
        self.shard_positions = ShardPositions(gateway, progress, access, tenant_wait=tenant_wait, utc=utc)
        self._batches = ClaimedBatches(gateway, self.ownership, self.shard_positions)
        self.pipeline: Pipeline[QueuedOperation] = Pipeline(
            progress.stream_shard_id,
            Source.KINESIS,
            gateway,
            self,
            self._batches,
            HomeLookup(gateway, self.ownership.needs_lookup, tenant_wait=tenant_wait, draw=draw, utc=utc),
            draw=draw,
            utc=utc,
        )
        progress.pipeline = self.pipeline
        self._failures: dict[str, _FailedOperation] = {}  # by tenant: the last one
        self._lock_waits: dict[str, _FailedOperation] = {}  # the same for operations behind a locked row
        self._trials: dict[str, tuple[float, str | None]] = {}  # when, and the error, by Postgres shard
        self._open_batch = _DeadLetterBatch()
        self._store_lock = asyncio.Lock()
        self._overflow_idle_since = 0.0
        self._overflow_interval_s = OVERFLOW_INTERVAL_FIRST_S
        self.has_settled = asyncio.Event()
        self.has_ready = asyncio.Event()  # a hold is ready for its catch-up
        self.has_arrivals = asyncio.Event()  # an operation was sent; the waiting task clears it

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to check periodically; `has_arrivals` is set when that changes."""
        return not len(self.ownership) and self.pipeline.is_empty

    def is_lane_idle(self, shard_id: str) -> bool:
        """Return whether no batch to a Postgres shard is in flight."""
        lane = self.pipeline.lane_to(shard_id)
        return lane is None or lane.is_idle

    def send(self, entries: Sequence[QueuedOperation]) -> None:
        """Send operations read by one cursor, each behind those of its tenant that are in memory.

        Those of a held tenant must come from a catch-up of its hold.
        """
        self._memory.reserve(cost_bytes_of(entries))
        self.has_arrivals.set()
        self.pipeline.send(entries)

    def without_held(self, entries: Sequence[QueuedOperation]) -> Sequence[QueuedOperation]:
        """Return those that the tenant's hold has not still to come to; drop the others."""
        owner = self.ownership.owner_of(entries[0].operation.tenant_id)
        if owner is None:
            return entries
        dropped: list[QueuedOperation] = []
        kept: list[QueuedOperation] = []
        for entry in entries:
            (dropped if owner.unread.includes(entry.unread) else kept).append(entry)
        self._finish(dropped)
        return kept

    def put_back_lane(self, shard_id: str, entries: Sequence[QueuedOperation], cause: WorkerError) -> None:
        """Have *entries*, all of a lane, read again once *cause* is over."""
        match cause:
            case RowBehindError():
                self.start_backfill(shard_id, cause.unread, entries)
            case _ if not entries:
                pass
            case PositionGapError():
                self.hold_shard(shard_id, entries, HoldReason.GAP)
            case InternalError():
                self.hold_shard(shard_id, entries, HoldReason.INTERNAL_ERROR)
            case _:
                log.warning("shard.held", shard_id=shard_id, operations=len(entries), error=str(cause))
                self.hold_shard(shard_id, entries)

    def crash(self, lane: StreamLane, crashed: BatchCrashed[QueuedOperation]) -> None:
        """Hold the shard of a lane: nothing that is remembered of it counts."""
        self._batches.forget(lane.shard_id)
        self.put_back_lane(lane.shard_id, lane.take_all(), crashed.error)

    async def settle(self, lane: StreamLane, batch: BatchDecided[QueuedOperation]) -> None:
        """Settle, hold or look up each operation, with those of its tenant behind it.

        Awaits nothing before all that are not finished are in one place again.
        """
        failing: list[tuple[QueuedOperation, _FailedOperation, str, Hold]] = []
        for entry, error in batch.failing:
            tenant_id, failed = entry.operation.tenant_id, self._count_failure(entry, lane.shard_id, self._failures)
            entries = [entry, *batch.not_here.pop(tenant_id, ()), *lane.take_tenant(tenant_id)]
            failing.append((entry, failed, error, self._hold_tenant(entries, HoldReason.FAILING)))
        for tenant_id, entries in batch.locked.items():
            behind = [*batch.not_here.pop(tenant_id, ()), *lane.take_tenant(tenant_id)]
            self._hold_locked([*entries, *behind], lane.shard_id)
        exhausted: list[tuple[QueuedOperation, _FailedOperation, str, Hold, GiveUp]] = []
        for entry, failed, error, hold in failing:
            following = next_try(Failed(error), failed.times, rules=self._rules)
            if isinstance(following, GiveUp):
                hold.next_attempt_at = loop_time() + FAILING_RETRIES_S[-1]
                exhausted.append((entry, failed, error, hold, following))
            else:
                hold.next_attempt_at = loop_time() + following.delay_s
                self._note_retry(entry, failed, error)
        self.pipeline.look_up_again(lane, batch.not_here)
        failed_at, unnamed = self._utc(), DeadLetterReason.INVALID_MESSAGE
        letters = [
            entry.dead_letter(outcome.reason or unnamed, outcome.error or "", failed_at=failed_at)
            for entry, outcome in batch.refused
        ]
        await self._finish_stored([*batch.applied, *(entry for entry, _ in batch.refused)], letters)
        may_be_shard = (
            bool(exhausted) and self._fails_for_many(lane.shard_id) and await self._refuses_all(lane.shard_id)
        )
        for entry, failed, error, hold, given_up in exhausted:
            if may_be_shard and loop_time() - failed.since < FAILING_FOR_MANY_S:
                self._note_retry(entry, failed, error)
            else:
                await self._give_up(lane, entry, given_up, hold)

    @property
    def _rules(self) -> RetryRules:
        return RetryRules(FAILING_RETRIES_S, self._tenant_wait, (LOCKED_BASE_S, LOCKED_MAX_S))

    def _note_retry(self, entry: QueuedOperation, failed: _FailedOperation, error: str) -> None:
        ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
        instruments.RETRIES.labels(Source.KINESIS, StreamRetry.FAILING).inc()
        at = {"queue": None, "shard_id": failed.shard_id}
        log.warning("operation.failing", attempts=failed.times, error=error, **at, **ids)

    def _hold_locked(self, entries: Sequence[QueuedOperation], shard_id: str) -> None:
        hold, operation = self._hold_tenant(entries, HoldReason.LOCKED), entries[0].operation
        attempts, now = self._count_failure(entries[0], shard_id, self._lock_waits).times, loop_time()
        following = next_try(Locked(), attempts, rules=self._rules, draw=self._draw())
        hold.next_attempt_at = now if isinstance(following, GiveUp) else now + following.delay_s
        instruments.RETRIES.labels(Source.KINESIS, StreamRetry.LOCKED).inc()
        log.warning(
            "tenant.locked",
            shard_id=shard_id,
            attempts=attempts,
            retry_in_s=round(hold.next_attempt_at - now, 2),
            business_id=operation.business_id,
            location_id=operation.location_id,
        )

    async def _give_up(self, lane: StreamLane, entry: QueuedOperation, given_up: GiveUp, hold: Hold) -> None:
        # Where the shard does not take the mark, the operation is tried again, and gets no other dead letter.
        ids = {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
        hold.next_attempt_at = loop_time() + FAILING_RETRIES_S[-1]
        failed = self._failures.get(entry.operation.tenant_id)
        if failed is None or not failed.has_letter:
            letter = entry.dead_letter(
                given_up.reason, given_up.error, failed_at=self._utc(), attempts=given_up.attempts
            )
            await self._finish_stored([], [letter])
        try:
            outcome = await self._batches.write_failure(lane.shard_id, entry.operation)
        except RetryableError as exc:
            if failed is not None:
                self._failures[entry.operation.tenant_id] = failed._replace(has_letter=True)
            log.warning("operation.not_marked", shard_id=lane.shard_id, error=str(exc), **ids)
            return
        count_outcomes([entry.operation], [outcome], now=self._utc())
        at = {"queue": None, "shard_id": lane.shard_id}
        log.error("operation.given_up", attempts=given_up.attempts, error=given_up.error, **at, **ids)
        if hold.is_waiting:
            self._make_ready(hold)

    async def give_up(self, overdue: Overdue[QueuedOperation]) -> None:
        """Store the dead letters of operations whose tenant was not registered in time."""
        error, failed_at = unknown_tenant_error(self._tenant_wait), self._utc()
        reason = DeadLetterReason.UNKNOWN_TENANT
        letters = [entry.dead_letter(reason, error, failed_at=failed_at) for entry in overdue.entries]
        await self._finish_stored(overdue.entries, letters)

    def put_back_tenant(self, waited: Waited[QueuedOperation]) -> None:
        """Hold a tenant without a route; where its shard does not answer, the shard."""
        operation, error = waited.entries[0].operation, None if waited.cause is None else str(waited.cause)
        ids = {"business_id": operation.business_id, "location_id": operation.location_id}
        log.warning("tenant.held", reason=waited.reason, error=error, **ids)
        if waited.shard_id is not None:
            self.hold_shard(waited.shard_id, waited.entries)
            self.pipeline.lookup.forget(waited.tenant_id)
        elif self._hold_tenant(waited.entries, waited.reason).target is not HeldTarget.TENANT:
            self.pipeline.lookup.forget(waited.tenant_id)

    def admitted(self, lane: StreamLane, entries: Sequence[QueuedOperation]) -> Sequence[QueuedOperation]:
        """Return all where the Postgres shard has no hold, and none while the hold waits."""
        hold = self.ownership.shard_hold(lane.shard_id)
        if hold is None:
            return entries
        if hold.is_waiting:
            self.hold_shard(lane.shard_id, entries)
            return ()
        return self._admitted_beside_backfill(lane, hold, entries) if hold.is_backfill else entries

    def _admitted_beside_backfill(
        self, lane: StreamLane, hold: Hold, entries: Sequence[QueuedOperation]
    ) -> Sequence[QueuedOperation]:
        by_tenant = _by_tenant(entries)
        queued: dict[str, list[QueuedOperation]] | None = None  # found only if needed: a backfill sends one by one
        admitted: list[QueuedOperation] = []
        for tenant_id, own in by_tenant.items():
            if hold.catch_up is None:
                self._split(hold, [*lane.take_tenant(tenant_id), *own])
                continue
            if self.ownership.owner_of(tenant_id) is hold and not hold.catch_up.has_others(own):
                admitted += own
                continue
            if queued is None:
                queued = self.in_memory_of(by_tenant.keys(), [lane])
            if self._meet(tenant_id, hold, [*queued.get(tenant_id, ()), *own]) is Meeting.LEFT:
                admitted += own
            else:
                self._finish([*lane.take_tenant(tenant_id), *own])
        return admitted

    def meet_resident(self, tenant_id: str, hold: Hold, in_memory: Sequence[QueuedOperation]) -> bool:
        """Return whether a backfill takes a tenant of its shard."""
        meeting = self._meet(tenant_id, hold, in_memory)
        if meeting is Meeting.APART:
            self._drop(in_memory)
        elif meeting is Meeting.TAKEN:
            self.pipeline.remember_home(tenant_id, hold.name)
        return meeting is Meeting.TAKEN

    def drop_later_than(self, tenant_id: str, catch_up: CatchUp, in_memory: Sequence[QueuedOperation]) -> bool:
        """Drop those *in_memory* to which *catch_up* is about to come; return whether it may send.

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
        meeting = self.ownership.meet_resident(tenant_id, hold, [entry.unread for entry in in_memory])
        if meeting is Meeting.APART:
            self._set_apart(tenant_id, hold.unread, in_memory)
        return meeting

    def _set_apart(self, tenant_id: str, unread: Unread, in_memory: Sequence[QueuedOperation]) -> None:
        arrived_at = _first_arrival(in_memory) if in_memory else self._utc()
        parts = [unread, *(entry.unread for entry in in_memory)]
        hold = self.ownership.hold_tenant(tenant_id, HoldReason.BACKFILL, parts, arrived_at, now=loop_time())
        if hold.target is HeldTarget.TENANT:
            self._make_ready(hold)

    def in_memory_of(
        self, tenant_ids: AbstractSet[str], lanes: Iterable[StreamLane] | None = None
    ) -> dict[str, list[QueuedOperation]]:
        """Return the operations of tenants in *lanes* that are not being settled; by default also in the lookup."""
        found = self.pipeline.undecided(lanes)
        return _by_tenant(entry for entry in found if entry.operation.tenant_id in tenant_ids)

    def start_backfill(self, shard_id: str, unread: Unread, entries: Sequence[QueuedOperation]) -> None:
        """Have *unread* read again for all tenants of a Postgres shard; drop *entries*, all of its lane.

        Must be called in the same step as the decision, with no batch in flight.
        """
        arrived_at = self._utc() if unread.after is None else unread.after.arrived_at
        hold = self.ownership.open_backfill(shard_id, unread, arrived_at, now=loop_time())
        own = {entry.operation.tenant_id for entry in self.pipeline.entries()}
        own = {tenant_id for tenant_id in own if self.ownership.owner_of(tenant_id) is hold}
        self._split(hold, [*entries, *self._take(own)])
        self._make_ready(hold)

    def _split(self, hold: Hold, entries: Sequence[QueuedOperation]) -> None:
        for tenant_id, own in _by_tenant(entries).items():
            self.ownership.split(tenant_id, hold, [entry.unread for entry in own], _first_arrival(own))
        self._finish(entries)

    def _take(self, tenant_ids: AbstractSet[str]) -> list[QueuedOperation]:
        entries = [entry for own in self.in_memory_of(tenant_ids).values() for entry in own]
        self.pipeline.remove(entries)
        return entries

    def _drop(self, entries: Sequence[QueuedOperation]) -> None:
        self.pipeline.remove(entries)
        self._finish(entries)

    def request_row_read(self, shard_id: str) -> bool:
        """Make the lane to a Postgres shard read its row; return False without a lane."""
        lane = self.pipeline.lane_to(shard_id)
        if lane is not None:
            lane.request_turn()
        return lane is not None

    def hold_shard(
        self, shard_id: str, entries: Sequence[QueuedOperation], reason: HoldReason = HoldReason.SHARD_UNAVAILABLE
    ) -> None:
        """Hold a Postgres shard with the tenants of *entries*, which are dropped."""
        hold = self.ownership.open_shard_hold(shard_id, _first_arrival(entries), now=loop_time())
        if reason is HoldReason.GAP or hold.reason == HoldReason.SHARD_UNAVAILABLE:
            hold.reason = reason
        hold.sample_tenant = entries[0].operation.tenant_id
        self._split(hold, entries)
        if self.is_lane_idle(shard_id):
            self.pipeline.forget_homes({entry.operation.tenant_id for entry in entries})

    def set_backfill_apart(self, hold: Hold) -> None:
        """Have a backfill wait for its silent shard apart from the others of its catch-up."""
        lane = self.pipeline.lane_to(hold.name)
        if lane is None or not len(lane):
            self.ownership.open_shard_hold(hold.name, hold.first_arrival, now=loop_time())

    async def is_held_for_gap(self, hold: Hold) -> bool:
        """Return whether a Postgres shard has a gap that no person has accepted. Raises `RetryableError`."""
        if hold.reason != HoldReason.GAP:
            return False
        is_open = await self.shard_positions.has_open_gap(hold.name)
        if not is_open and hold.is_waiting:
            hold.reason = HoldReason.SHARD_UNAVAILABLE  # whatever keeps it from now on
        return is_open

    def on_tenant_moved(self, hold: Hold, tenant_id: str) -> None:
        """Catch up a tenant of a held Postgres shard that has another one now."""
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
        self.pipeline.forget_homes([tenant_id])
        self._finish(entries)
        return hold

    def on_home_found(self, tenant_id: str) -> None:
        """Catch up a held tenant that has a shard now."""
        hold = self.ownership.owner_of(tenant_id)
        if hold is not None and hold.target is HeldTarget.TENANT and hold.catch_up is None:
            self._make_ready(hold)

    def on_unregistered(self, unregistered: Unregistered) -> None:
        """Catch up a held tenant with overdue operations, which become dead letters."""
        tenant_id = unregistered.tenant_id
        hold = self.ownership.owner_of(tenant_id)
        if hold is None or not self.ownership.needs_lookup(tenant_id) or loop_time() < hold.next_attempt_at:
            return
        if is_overdue(hold.arrived_at, now=unregistered.asked_at, tenant_wait=self._tenant_wait):
            hold.next_attempt_at = loop_time() + min(OVERDUE_INTERVAL_S, self._tenant_wait.total_seconds())
            self._make_ready(hold)

    def _count_failure(
        self, entry: QueuedOperation, shard_id: str, failures: dict[str, _FailedOperation]
    ) -> _FailedOperation:
        tenant_id, origin = entry.operation.tenant_id, entry.operation.origin
        known, now = failures.get(tenant_id), loop_time()
        position = (origin.sequence_number, origin.sub_sequence_number, origin.part_index)
        if known is None or known.position != position:
            known = _FailedOperation(shard_id, position, 0, since=now, last_at=now)
        while len(failures) >= FAILURES_REMEMBERED:
            del failures[next(iter(failures))]
        counted = failures[tenant_id] = known._replace(shard_id=shard_id, times=known.times + 1, last_at=now)
        return counted

    def _fails_for_many(self, shard_id: str) -> bool:
        since = loop_time() - FAILING_COUNTS_S
        recent = (one for one in self._failures.values() if one.shard_id == shard_id and one.last_at > since)
        return sum(1 for _ in recent) > FAILING_TENANTS_MAX

    async def _refuses_all(self, shard_id: str) -> bool:
        tried_at, error = self._trials.get(shard_id, (float("-inf"), None))
        if loop_time() - tried_at > TRIAL_COUNTS_S:
            try:
                await self._gateway.try_write(shard_id)
            except (RetryableError, PermanentError) as exc:
                error = str(exc)
                log.error("shard.refusing", shard_id=shard_id, error=error)  # noqa: TRY400  (the shard's)
            else:
                error = None
            self._trials[shard_id] = loop_time(), error
        return error is not None

    def _make_ready(self, hold: Hold) -> None:
        hold.enter(HoldState.READY)
        self.has_ready.set()

    def ready_due_holds(self) -> None:
        """Make the holds ready that are due."""
        now = loop_time()
        holds = self.ownership.holds()
        for hold in holds:
            if hold.reason in RETRIED and hold.is_waiting and now >= hold.next_attempt_at:
                self._make_ready(hold)
        overflow_holds = [hold for hold in holds if hold.target is HeldTarget.OVERFLOW]
        if not overflow_holds:
            self._overflow_interval_s = OVERFLOW_INTERVAL_FIRST_S
        if not overflow_holds or not all(hold.is_waiting for hold in overflow_holds):
            self._overflow_idle_since = now
        elif now - self._overflow_idle_since >= self._overflow_interval_s:
            self._overflow_interval_s = min(OVERFLOW_INTERVAL_MAX_S, 2 * self._overflow_interval_s)
            self._make_ready(overflow_holds[0])

    def retry_holds(self, target: str | None) -> int:
        """Try held targets now: all, or *target* as people see it; return how many."""
        now, count = loop_time(), 0
        for hold in self.ownership.holds():
            is_tried = hold.target not in (HeldTarget.PARENTS, HeldTarget.PREDECESSOR)
            if hold.is_waiting and is_tried and target in (None, hold.title):
                count += 1
                hold.next_attempt_at = now
                if hold.target is HeldTarget.OVERFLOW:
                    self._make_ready(hold)
                elif hold.target is HeldTarget.TENANT:
                    self.pipeline.lookup.retry(hold.name)
        self.has_ready.set()
        return count

    def may_read_on(self) -> bool:
        """Return whether what the main reader sends would not wait long."""
        lanes = self.pipeline.lanes()
        if self.pipeline.has_idle_lane:
            return True
        self.hold_over_share()
        is_paced = self.ownership.has_own_hold
        if self.ownership.has_paced_hold:
            return any(lane.waiting_s(is_paced) < TURN_S for lane in lanes)
        return any(len(lane) < AHEAD_MAX_COUNT and lane.waiting_s(is_paced) < AHEAD_MAX_S for lane in lanes)

    def hold_over_share(self) -> None:
        """Hold the tenant furthest beyond its share of each lane: its newest operations leave memory."""
        for lane in self.pipeline.lanes():
            if self.ownership.has_room and (newest := lane.over_share(self.ownership.has_own_hold)):
                self._hold_newest(lane, newest)

    def paced_s(self, holds: Iterable[Hold]) -> float:
        """Return the most seconds that queued operations of a tenant over its share take."""
        lanes = [(self.pipeline.lane_of(hold.name), hold.name) for hold in holds if hold.is_paced]
        return max([lane.queued_s(tenant_id) for lane, tenant_id in lanes if lane is not None], default=0.0)

    def look_after_paced(self) -> None:
        """Have the lanes of tenants over their share take short turns."""
        hurried: set[str] = set()
        for hold in self.ownership.holds():
            if not hold.is_paced:
                continue
            if (lane := self.pipeline.lane_of(hold.name)) is not None:
                lane.note_flood()
            if self._is_half_over(hold.first_arrival):
                hurried.add(hold.name)
        for lane in self.pipeline.lanes():
            lane.hurry(hurried)

    def _is_half_over(self, arrived_at: datetime) -> bool:
        retention = self._progress.retention
        return retention is not None and arrived_at < self._utc() - retention / 2

    def must_end_pause(self, paused: Paused[QueuedOperation]) -> bool:
        """Return whether an operation of a paused tenant is past half of the retention."""
        arrivals = [entry.operation.origin.arrived_at for entry in paused.entries]
        hold = self.ownership.owner_of(paused.tenant_id)
        if hold is not None and hold.target is HeldTarget.TENANT:
            arrivals.append(hold.first_arrival)
        return any(map(self._is_half_over, arrivals))

    def _hold_newest(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        operation, reason, unread = newest[0].operation, HoldReason.OVER_SHARE, [entry.unread for entry in newest]
        arrived_at = _first_arrival(newest)
        hold = self.ownership.hold_tenant(operation.tenant_id, reason, unread, arrived_at, now=loop_time())
        self._drop(newest)
        ids = {"business_id": operation.business_id, "location_id": operation.location_id}
        log.warning("tenant.over_share", shard_id=lane.shard_id, operations=len(newest), **ids)
        self._make_ready(hold)

    def shed_stuck_lanes(self, *, is_memory_short: bool) -> None:
        """Hold what is behind a batch that may never be answered; with little memory the batch, too."""
        for lane in self.pipeline.lanes():
            if not lane.is_stuck:
                continue
            if (is_memory_short or cost_bytes_of(lane.queued) > STUCK_QUEUE_MAX_BYTES) and (queue := lane.take_queue()):
                log.warning("shard.held", shard_id=lane.shard_id, operations=len(queue), error="no answer yet")
                self.hold_shard(lane.shard_id, queue)
            if is_memory_short:
                lane.give_up_batch()

    async def _finish_stored(self, entries: Sequence[QueuedOperation], letters: Sequence[DeadLetter]) -> None:
        # Those that arrive during a store share the next one.
        if letters:
            batch = self._open_batch
            batch.letters += letters
            async with self._store_lock:
                if not batch.is_stored:  # by the previous holder of the lock
                    self._open_batch = _DeadLetterBatch()
                    await self._store(batch.letters)
                    batch.is_stored = True
        self._finish(entries)

    def _finish(self, entries: Sequence[QueuedOperation]) -> None:
        tickets: defaultdict[CheckpointTracker[RecordPosition], list[int]] = defaultdict(list)
        for entry in entries:
            tickets[entry.tracker].append(entry.ticket)
        for tracker, own in tickets.items():
            tracker.finish(own)
        self._memory.release(cost_bytes_of(entries))
        self.has_settled.set()


class _FailedOperation(NamedTuple):
    """The operation of a tenant that failed, how often, first and last."""

    shard_id: str
    position: tuple[str | None, int, int | None]
    times: int
    since: float
    last_at: float
    has_letter: bool = False  # its dead letter is stored, but the shard did not take its row


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
