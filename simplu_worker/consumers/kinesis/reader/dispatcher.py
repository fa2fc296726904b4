"""Know where each operation of one stream shard is until it is settled: in a lane, in the lookup of homes, or held.

The main reader and the catch-ups send through the same lanes and lookup, so a tenant's operations stay in order.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

import structlog

from simplu_worker.consumers.kinesis.fetch.cursor import StreamShardAccess
from simplu_worker.consumers.kinesis.fetch.pacing import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.fetch.record_decoder import RejectionCollector
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, CheckpointTracker, Hold, Meeting
from simplu_worker.consumers.kinesis.holding.tenant_set import Unread
from simplu_worker.consumers.kinesis.reader.letter_outbox import LetterOutbox, Rejection
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation, ReaderProgress
from simplu_worker.consumers.kinesis.recovery.recovery_plan import PositionGapError
from simplu_worker.consumers.kinesis.recovery.shard_positions import RowBehindError, ShardPositions, cost_bytes_of
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.consumers.pipeline.pipeline import Pipeline, grouped_by_tenant
from simplu_worker.consumers.pipeline.results import (
    BatchDecided,
    Found,
    LaneEmptied,
    LookupResult,
    Overdue,
    Paused,
    PutBack,
    Unregistered,
    Waited,
)
from simplu_worker.errors import InternalError, RetryableError
from simplu_worker.operations.operation import is_overdue, unknown_tenant_error
from simplu_worker.operations.tries import GiveUp, RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.vocabulary import DeadLetterReason, HeldTarget, HoldReason, HoldState, Source

MARKED_AGAIN_S: Final = 15.0  # after a shard did not take the row of an operation that is given up
OVERDUE_INTERVAL_S: Final = 60.0  # between two catch-ups of a tenant that is not registered

StreamLane: TypeAlias = Lane[QueuedOperation]

log = structlog.get_logger(__name__)


class Dispatcher:
    """The lanes, the lookup of homes and the holds of one reader: the source of its pipeline."""

    def __init__(
        self,
        progress: ReaderProgress,
        gateway: ShardGateway,
        access: StreamShardAccess,
        letters: LetterOutbox,
        *,
        rules: RetryRules,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._progress = progress
        self._memory = access.memory
        self.letters = letters
        self._tenant_wait = rules.tenant_wait
        self._utc = utc
        self.ownership = progress.ownership
        self.shard_positions = ShardPositions(gateway, progress, access, tenant_wait=rules.tenant_wait, utc=utc)
        self.pipeline: Pipeline[QueuedOperation] = Pipeline(
            progress.stream_shard_id,
            Source.KINESIS,
            gateway,
            self,
            self.shard_positions,
            HomeLookup(gateway, self.ownership.needs_lookup, tenant_wait=rules.tenant_wait, draw=draw, utc=utc),
            rules=rules,
            draw=draw,
            utc=utc,
        )
        progress.pipeline = self.pipeline
        self.has_settled = asyncio.Event()
        self.has_ready = asyncio.Event()  # a hold is ready for its catch-up
        self.has_arrivals = asyncio.Event()  # an operation was sent; the waiting task clears it

    def send(self, entries: Sequence[QueuedOperation]) -> None:
        """Send operations read by one cursor, each behind those of its tenant that are in memory.

        Those of a held tenant must come from a catch-up of its hold.
        """
        self._memory.reserve(cost_bytes_of(entries))
        self.has_arrivals.set()
        self.pipeline.send(entries)

    # The source of the pipeline

    def admit(self, lane: StreamLane, entries: Sequence[QueuedOperation]) -> Sequence[QueuedOperation]:
        """Return all that their holds have not still to come to, and none while the shard's hold waits."""
        if not len(self.ownership):
            return entries
        owners = [(one, self.ownership.owner_of(one.operation.tenant_id)) for one in entries]
        if reread := [one for one, owner in owners if owner is not None and owner.unread.includes(one.unread)]:
            self._finish(reread)
            ids = {id(one) for one in reread}
            entries = [one for one in entries if id(one) not in ids]
        hold = self.ownership.shard_hold(lane.shard_id)
        if hold is None or not entries:
            return entries
        if hold.is_waiting:
            self.hold_shard(lane.shard_id, entries)
            return ()
        return self._admit_beside_backfill(lane, hold, entries) if hold.is_backfill else entries

    async def settle(self, lane: StreamLane, batch: BatchDecided[QueuedOperation]) -> None:
        """Settle, hold or look up each operation, with those of its tenant behind it.

        Awaits nothing before all that are not finished are in one place again.
        """
        given_up: list[tuple[QueuedOperation, GiveUp, Hold]] = []
        for entry, following in batch.failing:
            delay_s = math.inf if isinstance(following, GiveUp) else following.delay_s
            hold = self._hold_for(delay_s, lane, batch, [entry], HoldReason.FAILING)
            if isinstance(following, GiveUp):
                given_up.append((entry, following, hold))
        for entries, wait in batch.locked:
            self._hold_for(wait.delay_s, lane, batch, entries, wait.reason)
        refused = self._hold_refused(lane, batch)
        self.pipeline.look_up_again(lane, batch.not_here)
        self._finish(batch.applied)
        self._owe_letters(refused)
        for entry, following, hold in given_up:  # beside the lane: the dead-letter queue may not answer
            self.pipeline.start_task(self._give_up(lane.shard_id, entry, following, hold), f"give-up:{hold.name}")

    def put_back(self, returned: PutBack[QueuedOperation]) -> None:
        """Hold a shard or a tenant: its entries are read again later."""
        match returned:
            case Waited(tenant_id=tenant_id, entries=entries, reason=reason, cause=why):
                error = None if why is None else str(why)
                log.warning("tenant.held", reason=reason, error=error, **_ids_of(entries[0]))
                if returned.shard_id is not None:
                    self.hold_shard(returned.shard_id, entries)
                    self.pipeline.lookup.forget(tenant_id)
                elif self._hold_tenant(entries, reason).target is not HeldTarget.TENANT:
                    self.pipeline.lookup.forget(tenant_id)
            case LaneEmptied(shard_id=shard_id, entries=entries, cause=RowBehindError() as behind):
                self.start_backfill(shard_id, behind.unread, entries)
            case LaneEmptied(shard_id=shard_id, entries=entries, cause=cause):
                reason = HoldReason.SHARD_UNAVAILABLE
                if isinstance(cause, PositionGapError):
                    reason = HoldReason.GAP
                elif isinstance(cause, InternalError):
                    reason = HoldReason.INTERNAL_ERROR
                    self.shard_positions.position_on(shard_id).invalidate()  # nothing that is remembered of it counts
                if entries:
                    log.warning("shard.held", shard_id=shard_id, operations=len(entries), error=str(cause))
                    self.hold_shard(shard_id, entries, reason)

    async def on_home(self, answer: LookupResult[QueuedOperation]) -> None:
        """Catch up a held tenant that has a shard now, or overdue operations, which become dead letters."""
        tenant_id = answer.tenant_id
        hold = self.ownership.owner_of(tenant_id)
        match answer:
            case Found():
                if answer.entries and answer.has_moved:
                    self.shard_positions.position_on(answer.shard_id).is_merging = True
                if hold is not None and hold.target is HeldTarget.TENANT and hold.catch_up is None:
                    self.make_ready(hold)
            case Unregistered(asked_at=asked_at):
                if hold is None or not self.ownership.needs_lookup(tenant_id) or loop_time() < hold.next_attempt_at:
                    return
                if is_overdue(hold.arrived_at, now=asked_at, tenant_wait=self._tenant_wait):
                    hold.next_attempt_at = loop_time() + min(OVERDUE_INTERVAL_S, self._tenant_wait.total_seconds())
                    self.make_ready(hold)
            case Paused(entries=entries):
                if any(map(self._progress.is_half_over, _paused_arrivals(entries, hold))):
                    await self.pipeline.end_pause(tenant_id)
            case Overdue(entries=entries):
                given_up = GiveUp(DeadLetterReason.UNKNOWN_TENANT, unknown_tenant_error(self._tenant_wait))
                self._owe_letters([(entry, given_up) for entry in entries])

    # Dead letters

    def reject(self, rejected: Sequence[Rejection], tracker: CheckpointTracker[RecordPosition]) -> None:
        """Store the dead letters of records; hold each business that has too many, from there on."""
        collector, tickets, sizes = RejectionCollector(), list[int](), Counter[str]()
        beyond: defaultdict[str, list[Rejection]] = defaultdict(list)
        for ticket, one, record in rejected:
            tenant_id = one.tenant_id
            if tenant_id in beyond or not self._has_room(tenant_id, sizes):
                beyond[tenant_id].append((ticket, one, record))
                continue
            sizes[tenant_id] += len(record) + OPERATION_OVERHEAD_BYTES
            collector.add(one, record)
            tickets.append(ticket)
        for tenant_id, own in beyond.items():
            (first, one, _) = own[0]
            unread = Unread(tracker.position_before(first))
            self._hold_for_letters(one.business_id, {tenant_id: [unread]}, one.origin.arrived_at, len(own))
            tracker.finish([ticket for ticket, _, _ in own])
        self._memory.reserve(sizes.total())

        def finish() -> None:
            tracker.finish(tickets)
            self._memory.release(sizes.total())
            self.has_settled.set()

        self.letters.add(collector.dead_letters(self._utc()), finish, sizes)

    def _hold_refused(
        self, lane: StreamLane, batch: BatchDecided[QueuedOperation]
    ) -> list[tuple[QueuedOperation, GiveUp]]:
        """Hold each tenant whose dead letters are too many, from there on; return the others."""
        within, sizes = list[tuple[QueuedOperation, GiveUp]](), Counter[str]()
        beyond: defaultdict[str, list[QueuedOperation]] = defaultdict(list)
        for entry, why in batch.refused:
            tenant_id = entry.operation.tenant_id
            if tenant_id in beyond or not self._has_room(tenant_id, sizes):
                beyond[tenant_id].append(entry)
            else:
                sizes[tenant_id] += cost_bytes_of([entry])
                within.append((entry, why))
        for tenant_id, own in beyond.items():
            own += [*batch.not_here.pop(tenant_id, ()), *lane.take_tenant(tenant_id)]
            unread = {tenant_id: [entry.unread for entry in own]}
            self._hold_for_letters(own[0].operation.business_id, unread, _first_arrival(own), len(own))
            self._finish(own)
        return within

    def _has_room(self, tenant_id: str, sizes: Counter[str]) -> bool:
        is_paced = self.ownership.owner_of(tenant_id) is not None
        return is_paced or self.letters.has_room(tenant_id, sizes[tenant_id])

    def _hold_for_letters(
        self, business_id: str | None, unread: Mapping[str, Sequence[Unread]], arrived_at: datetime, count: int
    ) -> None:
        self._hold_for_share(HeldTarget.LETTERS, business_id or "", unread, arrived_at)
        log.warning("business.over_share", shard_id=None, business_id=business_id, operations=count)

    async def _give_up(self, shard_id: str, entry: QueuedOperation, given_up: GiveUp, hold: Hold) -> None:
        # Where the shard does not take the row, the operation is tried again, and gets no other dead letter.
        failing = self.pipeline.failing
        if not failing.has_letter(entry.operation):
            await self.letters.store([entry.dead_letter(given_up, failed_at=self._utc())])
        try:
            outcome = await self.shard_positions.write_failure(shard_id, entry.operation)
        except RetryableError as exc:
            failing.note_letter(entry.operation)
            hold.next_attempt_at = loop_time() + MARKED_AGAIN_S
            log.warning("operation.not_marked", shard_id=shard_id, error=str(exc), **_ids_of(entry))
            return
        failing.note_given_up(entry.operation, outcome, given_up, shard_id=shard_id, now=self._utc())
        if hold.is_waiting:
            self.make_ready(hold)

    def _owe_letters(self, given_up: Sequence[tuple[QueuedOperation, GiveUp]]) -> None:
        failed_at = self._utc()
        for entry, why in given_up:
            self._progress.unstored[id(entry)] = entry
            letters, sizes = (
                [entry.dead_letter(why, failed_at=failed_at)],
                {entry.operation.tenant_id: cost_bytes_of([entry])},
            )
            self.letters.add(letters, partial(self._finish_stored, entry), sizes)

    def _finish_stored(self, entry: QueuedOperation) -> None:
        del self._progress.unstored[id(entry)]
        self._finish([entry])

    def _finish(self, entries: Sequence[QueuedOperation]) -> None:
        tickets: defaultdict[CheckpointTracker[RecordPosition], list[int]] = defaultdict(list)
        for entry in entries:
            tickets[entry.tracker].append(entry.ticket)
        for tracker, own in tickets.items():
            tracker.finish(own)
        self._memory.release(cost_bytes_of(entries))
        self.has_settled.set()

    # Holds

    def _admit_beside_backfill(
        self, lane: StreamLane, hold: Hold, entries: Sequence[QueuedOperation]
    ) -> Sequence[QueuedOperation]:
        by_tenant = grouped_by_tenant(entries)
        queued: dict[str, list[QueuedOperation]] | None = None  # found only if needed: a backfill sends one by one
        admitted: list[QueuedOperation] = []
        for tenant_id, own in by_tenant.items():
            if hold.catch_up is None:
                self._split(hold, [*lane.take_tenant(tenant_id), *own])
                continue
            is_its_own = all(entry.tracker is hold.catch_up.tracker for entry in own)
            if is_its_own and self.ownership.owner_of(tenant_id) is hold:
                admitted += own
                continue
            if queued is None:
                queued = self.pipeline.undecided_of(by_tenant.keys(), [lane])
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
            self.make_ready(hold)

    def start_backfill(self, shard_id: str, unread: Unread, entries: Sequence[QueuedOperation]) -> None:
        """Have *unread* read again for all tenants of a Postgres shard; drop *entries*, all of its lane.

        Must be called in the same step as the decision, with no batch in flight.
        """
        arrived_at = self._utc() if unread.after is None else unread.after.arrived_at
        hold = self.ownership.open_shard_hold(shard_id, arrived_at, lacks=unread, now=loop_time())
        own = {entry.operation.tenant_id for entry in self.pipeline.entries()}
        own = {tenant_id for tenant_id in own if self.ownership.owner_of(tenant_id) is hold}
        self._split(hold, [*entries, *self._take(own)])
        self.make_ready(hold)

    def _split(self, hold: Hold, entries: Sequence[QueuedOperation]) -> None:
        for tenant_id, own in grouped_by_tenant(entries).items():
            self.ownership.split(tenant_id, hold, [entry.unread for entry in own], _first_arrival(own))
        self._finish(entries)

    def _take(self, tenant_ids: AbstractSet[str]) -> list[QueuedOperation]:
        entries = [entry for own in self.pipeline.undecided_of(tenant_ids).values() for entry in own]
        self.pipeline.remove(entries)
        return entries

    def _drop(self, entries: Sequence[QueuedOperation]) -> None:
        self.pipeline.remove(entries)
        self._finish(entries)

    def hold_shard(
        self, shard_id: str, entries: Sequence[QueuedOperation], reason: HoldReason = HoldReason.SHARD_UNAVAILABLE
    ) -> None:
        """Hold a Postgres shard with the tenants of *entries*, which are dropped."""
        hold = self.ownership.open_shard_hold(shard_id, _first_arrival(entries), now=loop_time())
        if reason is HoldReason.GAP or hold.is_paced or hold.reason == HoldReason.SHARD_UNAVAILABLE:
            hold.reason = reason
        hold.sample_tenant = entries[0].operation.tenant_id
        self._split(hold, entries)
        if self.pipeline.is_idle_to(shard_id):
            self.pipeline.forget_homes({entry.operation.tenant_id for entry in entries})

    def on_tenant_moved(self, hold: Hold, tenant_id: str) -> None:
        """Catch up a tenant of a held Postgres shard that has another one now."""
        entries = self._take({tenant_id})
        arrived_at = min([hold.first_arrival, *(entry.operation.origin.arrived_at for entry in entries)])
        unread = [entry.unread for entry in entries]
        own = self.ownership.hold_tenant(tenant_id, hold.reason, unread, arrived_at, now=loop_time())
        self._finish(entries)
        if own.target is HeldTarget.TENANT:
            self.make_ready(own)

    def hold_newest(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        """Hold the tenants of a business over its share from their *newest* operations on; catch them up at once."""
        business_id = newest[0].operation.business_id
        self._hold_entries(HeldTarget.BUSINESS, f"{business_id} on {lane.shard_id}", newest)
        log.warning("business.over_share", shard_id=lane.shard_id, business_id=business_id, operations=len(newest))

    def hold_behind(self, lane: StreamLane, newest: Sequence[QueuedOperation]) -> None:
        """Hold what a shard is late with from the *newest* operations of its tenants on; catch it up at its pace."""
        self._hold_entries(HeldTarget.SHARD, lane.shard_id, newest)
        log.warning("shard.behind", shard_id=lane.shard_id, operations=len(newest))

    def _hold_entries(self, target: HeldTarget, name: str, newest: Sequence[QueuedOperation]) -> None:
        unread = {one: [entry.unread for entry in own] for one, own in grouped_by_tenant(newest).items()}
        self._hold_for_share(target, name, unread, _first_arrival(newest))
        self._drop(newest)

    def _hold_for_share(
        self, target: HeldTarget, name: str, unread: Mapping[str, Sequence[Unread]], arrived_at: datetime
    ) -> None:
        hold = self.ownership.hold_for_share(target, name, unread, arrived_at, now=loop_time())
        hold.sample_tenant = next(iter(unread))
        if hold.is_waiting and hold.is_paced:  # a shard that is held for another reason is probed
            self.make_ready(hold)

    def _hold_for(
        self,
        delay_s: float,
        lane: StreamLane,
        batch: BatchDecided[QueuedOperation],
        entries: Sequence[QueuedOperation],
        reason: HoldReason,
    ) -> Hold:
        tenant_id = entries[0].operation.tenant_id
        behind = [*batch.not_here.pop(tenant_id, ()), *lane.take_tenant(tenant_id)]
        hold = self._hold_tenant([*entries, *behind], reason)
        hold.next_attempt_at = loop_time() + delay_s
        return hold

    def _hold_tenant(self, entries: Sequence[QueuedOperation], reason: HoldReason) -> Hold:
        tenant_id, unread = entries[0].operation.tenant_id, [entry.unread for entry in entries]
        hold = self.ownership.hold_tenant(tenant_id, reason, unread, _first_arrival(entries), now=loop_time())
        self.pipeline.forget_homes([tenant_id])
        self._finish(entries)
        return hold

    def make_ready(self, hold: Hold) -> None:
        """Have a hold caught up as soon as a catch-up is free."""
        hold.enter(HoldState.READY)
        self.has_ready.set()


def _paused_arrivals(entries: Iterable[QueuedOperation], hold: Hold | None) -> list[datetime]:
    held = [hold.first_arrival] if hold is not None and hold.target is HeldTarget.TENANT else []
    return [*held, *(entry.operation.origin.arrived_at for entry in entries)]


def _first_arrival(entries: Iterable[QueuedOperation]) -> datetime:
    return min(entry.operation.origin.arrived_at for entry in entries)


def _ids_of(entry: QueuedOperation) -> dict[str, str]:
    return {"business_id": entry.operation.business_id, "location_id": entry.operation.location_id}
