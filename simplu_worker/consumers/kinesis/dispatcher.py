"""Where the operations of one stream shard are until they are settled: in a lane, in the waiting room, or held.

The main reader and the catch-ups send through the same lanes and the same waiting room, so that a tenant's operations
stay in order whoever read them. What cannot be applied now is dropped from memory and held.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

import structlog

from simplu_worker.clock import UtcClock, loop_time, utc_now
from simplu_worker.consumers.kinesis.holds import Hold, Holds, Reason, Target
from simplu_worker.consumers.kinesis.lanes import Entry, Lane
from simplu_worker.consumers.kinesis.positions import lowest
from simplu_worker.consumers.kinesis.prefetch import Account
from simplu_worker.consumers.kinesis.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.waiting import WaitingRoom
from simplu_worker.consumers.letters import DeadLetter
from simplu_worker.consumers.unknown_tenants import is_overdue
from simplu_worker.shards.router import Router

TENANTS_REMEMBERED: Final = 10_000
STUCK_QUEUE_MAX_BYTES: Final = 1024 * 1024  # behind a batch that may never be answered
FAILING_RETRIES_S: Final = (1.0, 5.0, 15.0)  # before each further try of an operation that failed by itself
FAILING_TENANTS_MAX: Final = 3
FAILURES_REMEMBERED: Final = 1000
BUCKET_REST_FIRST_S: Final = 5.0  # between two looks at tenants that are held together, longer each time
BUCKET_REST_MAX_S: Final = 300.0
OVERDUE_INTERVAL_S: Final = 60.0  # between two catch-ups of a tenant that is not registered

log = structlog.get_logger(__name__)


class Dispatcher:
    """The lanes, the waiting room and the holds of one reader."""

    def __init__(
        self,
        name: str,
        router: Router,
        account: Account,
        *,
        tenant_wait: timedelta,
        store: Callable[[Sequence[DeadLetter]], Awaitable[None]],
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        """*name* is the stream shard's; *store* returns when letters are stored."""
        self._name = name
        self._router = router
        self._account = account
        self._tenant_wait = tenant_wait
        self._store = store
        self._draw = draw
        self._utc = utc
        self.holds = Holds()
        self.room = WaitingRoom(router, self, tenant_wait=tenant_wait, draw=draw, utc=utc)
        self._lanes: dict[str, Lane] = {}
        self._lane_of: dict[str, Lane] = {}  # by tenant: where its entries are, or went last
        self._failures: dict[str, tuple[str | None, int, int]] = {}  # by tenant: the operation, how often it failed
        self._tasks = asyncio.TaskGroup()
        self._ending = asyncio.Event()
        self._gathering = _Letters()
        self._storing = asyncio.Lock()
        self._bucket_rests_from = 0.0
        self._bucket_rest_s = BUCKET_REST_FIRST_S
        self.has_settled = asyncio.Event()
        self.has_ready = asyncio.Event()  # a hold can be caught up

    def __repr__(self) -> str:
        return f"Dispatcher({self._name}, {list(self._lanes.values())}, {self.room!r}, {self.holds!r})"

    @property
    def is_empty(self) -> bool:
        """Whether no operation is in hand."""
        return not any(map(len, self._lanes.values())) and not self.room.entries()

    def entries(self) -> list[Entry]:
        """Return all that is in hand."""
        return [entry for lane in self._lanes.values() for entry in lane.entries()] + self.room.entries()

    def owed_tenants(self) -> TenantSet:
        """Return everyone of whom something is held or in hand."""
        tenants = self.holds.tenants()
        for entry in self.entries():
            tenants.add(entry.operation.tenant_id)
        return tenants

    @property
    def is_stuck(self) -> bool:
        """Whether a batch has been in flight for so long that it may never be answered."""
        return any(lane.is_stuck for lane in self._lanes.values())

    def is_lane_idle(self, shard_id: str) -> bool:
        """Whether no batch to a Postgres shard is in flight."""
        lane = self._lanes.get(shard_id)
        return lane is None or lane.is_idle

    def start(self, tasks: asyncio.TaskGroup, ending: asyncio.Event) -> None:
        """Work in *tasks* until *ending*; then batches in flight are finished and the rest stays owed."""
        self._tasks = tasks
        self._ending = ending
        tasks.create_task(self.room.run(ending), name=f"waiting:{self._name}")

    def send(self, entry: Entry) -> None:
        """Send an operation on its way, behind those of its tenant that are in hand.

        That of a tenant that is held must come from a catch-up of its hold.
        """
        self._account.take(entry.cost_bytes)
        tenant_id = entry.operation.tenant_id
        if tenant_id in self.room:
            self.room.put(tenant_id, [entry])
        elif (lane := self._lane_of.get(tenant_id)) is not None:
            self._put(lane, [entry])
        elif (shard_id := self._router.remembered(tenant_id)) is not None:
            self.let_go(tenant_id, shard_id, [entry])
        else:
            self.room.put(tenant_id, [entry])

    def let_go(self, tenant_id: str, shard_id: str, entries: Sequence[Entry]) -> None:
        """Put all that is in hand of a tenant into the lane of its shard; later operations follow there."""
        lane = self._lanes.get(shard_id)
        if lane is None:
            tries = len(FAILING_RETRIES_S) + 1
            lane = Lane(shard_id, self._router, self, tries_max=tries, draw=self._draw, utc=self._utc)
            self._lanes[shard_id] = lane
            self._tasks.create_task(lane.run(self._ending), name=f"lane:{self._name}:{shard_id}")
        if len(self._lane_of) >= TENANTS_REMEMBERED:  # those with nothing in hand can be looked up again
            self._lane_of = {tenant: one for tenant, one in self._lane_of.items() if len(one)}
        self._lane_of[tenant_id] = lane
        self._put(lane, entries)

    def _put(self, lane: Lane, entries: Sequence[Entry]) -> None:
        if self.is_held(lane.shard_id):
            self.hold_shard(lane.shard_id, entries)
        else:
            lane.put(entries)

    def put_back(self, tenant_id: str, entries: Sequence[Entry]) -> None:
        """Take back all entries of a tenant from its lane: its shard says that it does not live there now."""
        self._lane_of.pop(tenant_id, None)
        self.room.put(tenant_id, entries)

    def is_held(self, shard_id: str) -> bool:
        """Whether a Postgres shard is held and nothing may be sent there."""
        return self.holds.of_shard(shard_id) is not None

    def hold_shard(self, shard_id: str, entries: Sequence[Entry]) -> None:
        """Hold a Postgres shard, from the first of *entries* on; all of them are dropped."""
        tenants = sorted({entry.operation.tenant_id for entry in entries})
        before, arrived_at = lowest(entry.before for entry in entries), _first_arrival(entries)
        self.holds.hold_shard(shard_id, tenants, before, arrived_at, now=loop_time())
        if self.is_lane_idle(shard_id):
            for tenant_id in tenants:
                self._lane_of.pop(tenant_id, None)
        self._drop(entries)

    def hold_tenant(self, entries: Sequence[Entry], reason: str, *, shard_id: str | None) -> bool:
        """Hold the tenant of *entries*, from the first of them on; return whether it is held by itself.

        It is held with all others of the Postgres shard *shard_id* where that does not answer.
        """
        if shard_id is not None:
            self.hold_shard(shard_id, entries)
            return False
        return self._hold_tenant(entries, reason).target is Target.TENANT

    def moved(self, hold: Hold, tenant_id: str) -> None:
        """Catch up a tenant of a Postgres shard that is held: it has another shard now."""
        own = self.holds.hold_tenant(tenant_id, hold.reason, hold.reached, hold.arrived_at, now=loop_time())
        if own.target is Target.TENANT:
            self._make_ready(own)

    def _hold_tenant(self, entries: Sequence[Entry], reason: str) -> Hold:
        tenant_id = entries[0].operation.tenant_id
        before, arrived_at = lowest(entry.before for entry in entries), _first_arrival(entries)
        hold = self.holds.hold_tenant(tenant_id, reason, before, arrived_at, now=loop_time())
        self._lane_of.pop(tenant_id, None)
        self._drop(entries)
        return hold

    def is_asked_for(self, tenant_id: str) -> bool:
        """Whether a tenant is held because it has no shard, and not being caught up."""
        hold = self.holds.of(tenant_id)
        return hold is not None and hold.target is Target.TENANT and hold.catch_up is None and not hold.is_ready

    def found(self, tenant_id: str) -> None:
        """Catch up a held tenant, which has a shard now."""
        hold = self.holds.of(tenant_id)
        if hold is not None and hold.target is Target.TENANT and hold.catch_up is None:
            self._make_ready(hold)

    def not_registered(self, tenant_id: str, asked_at: datetime) -> None:
        """Catch up a held tenant where it has operations that are overdue; they become dead letters there."""
        hold = self.holds.of(tenant_id)
        if hold is None or not self.is_asked_for(tenant_id) or loop_time() < hold.next_try:
            return
        if is_overdue(hold.arrived_at, now=asked_at, tenant_wait=self._tenant_wait):
            hold.next_try = loop_time() + min(OVERDUE_INTERVAL_S, self._tenant_wait.total_seconds())
            self._make_ready(hold)

    def failed(self, entry: Entry) -> int:
        """Note that an operation failed by itself once more; return how often now.

        Where many tenants fail it is the shard after all, say a trigger that refuses every row: nothing is given up.
        """
        origin = entry.operation.origin
        known = self._failures.get(entry.operation.tenant_id)
        place = (origin.sequence_number, origin.sub_sequence_number)
        times = 1 + (known[2] if known is not None and known[:2] == place else 0)
        while len(self._failures) >= FAILURES_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._failures[entry.operation.tenant_id] = *place, times
        is_mass = sum(hold.reason == Reason.FAILING for hold in self.holds.all()) > FAILING_TENANTS_MAX
        return min(times, len(FAILING_RETRIES_S)) if is_mass else times

    def hold_failing(self, entries: Sequence[Entry]) -> None:
        """Hold the tenant of *entries*, the first of which failed by itself, to try it again later."""
        *_, times = self._failures.get(entries[0].operation.tenant_id, (1,))
        hold = self._hold_tenant(entries, Reason.FAILING)
        hold.next_try = loop_time() + FAILING_RETRIES_S[min(times, len(FAILING_RETRIES_S)) - 1]

    def _make_ready(self, hold: Hold) -> None:
        hold.is_ready = True
        self.has_ready.set()

    def look(self) -> None:
        """Make ready what is due by the clock; to be called a few times a second."""
        now = loop_time()
        holds = self.holds.all()
        for hold in holds:
            if hold.reason == Reason.FAILING and hold.catch_up is None and now >= hold.next_try:
                self._make_ready(hold)
        buckets = [hold for hold in holds if hold.target is Target.BUCKET]
        if not buckets:
            self._bucket_rest_s = BUCKET_REST_FIRST_S
        if not buckets or any(hold.catch_up or hold.is_ready for hold in buckets):
            self._bucket_rests_from = now
        elif now - self._bucket_rests_from >= self._bucket_rest_s:
            self._bucket_rest_s = min(BUCKET_REST_MAX_S, 2 * self._bucket_rest_s)
            self._make_ready(buckets[0])

    def relieve(self, *, is_memory_short: bool) -> None:
        """Hold what waits behind a batch that may never be answered, so that it takes no more memory.

        The batch itself is waited for, unless others need the memory.
        """
        for lane in self._lanes.values():
            if not lane.is_stuck:
                continue
            if (is_memory_short or lane.queued_bytes > STUCK_QUEUE_MAX_BYTES) and (queue := lane.take_queue()):
                log.warning("shard.held", shard_id=lane.shard_id, operations=len(queue), error="no answer yet")
                self.hold_shard(lane.shard_id, queue)
            if is_memory_short:
                lane.give_up_batch()

    async def settle(self, entries: Sequence[Entry], letters: Sequence[DeadLetter]) -> None:
        """Pass over *entries*, once their dead letters, if any, are stored.

        Letters that come while others are being stored are stored with all that came meanwhile.
        """
        if letters:
            batch = self._gathering
            batch.letters += letters
            async with self._storing:
                if not batch.are_stored:  # by whoever had the turn before
                    self._gathering = _Letters()
                    await self._store(batch.letters)
                    batch.are_stored = True
        self._drop(entries)

    def _drop(self, entries: Iterable[Entry]) -> None:
        """Let go of entries that are done with, or held: whoever read them owes them no more."""
        for _, group in groupby(entries, key=lambda entry: id(entry.owed)):
            same = list(group)
            same[0].owed.done(entry.ticket for entry in same)
            self._account.give(sum(entry.cost_bytes for entry in same))
        self.has_settled.set()


class _Letters:
    """Letters that are stored together."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.are_stored = False


def _first_arrival(entries: Iterable[Entry]) -> datetime:
    return min(entry.operation.origin.arrived_at for entry in entries)
