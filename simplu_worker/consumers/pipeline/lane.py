"""A lane: the operations of one source that are queued for one Postgres shard, in order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Final, Generic, assert_never

import structlog

from simplu_worker import instruments
from simplu_worker.bulkheads import translate
from simplu_worker.consumers.operation_taps import count_outcomes, group_by_outcome
from simplu_worker.consumers.pipeline import results
from simplu_worker.consumers.pipeline.failing import FailingOperations
from simplu_worker.errors import InternalError, RetryableError, WorkerError
from simplu_worker.fairness import SHARE_S, find_behind, find_excess, turns_of
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionChangedError
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.waits import backoff_s, move_deadline, sleep_or_event, wait_any
from simplu_worker.vocabulary import Retry, Source, TargetKind

BATCH_MAX_COUNT: Final = 2000
BATCH_MAX_BYTES: Final = 1024 * 1024  # more only where one operation is larger
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 0.5
HOLD_AFTER_S: Final = 1.0  # a shard that took no batch for so long gets none; a restart of its pooler is shorter
LATE_AFTER_S: Final = 1.0
ACTIVE_S: Final = 10.0  # so long, at least, a tenant that has sent an operation counts as one of a lane
STUCK_AFTER_S: Final = 2.0  # a batch that is in flight for longer may never be answered

DONE: Final = frozenset({Disposition.APPLIED, Disposition.DUPLICATE})

log = structlog.get_logger(__name__)


class LaneState(Enum):
    """What a lane does."""

    WAITING = auto()  # for entries, or for its next try
    IN_FLIGHT = auto()
    DECIDED = auto()  # its source settles the batch


MAY_FOLLOW: Final = {
    LaneState.WAITING: {LaneState.IN_FLIGHT},
    LaneState.IN_FLIGHT: {LaneState.DECIDED, LaneState.WAITING},
    LaneState.DECIDED: {LaneState.WAITING},
}


class Lane(Generic[results.EntryT]):
    """One batch in flight, made up of all tenants in turn; first in, first out for each tenant."""

    def __init__(
        self,
        shard_id: str,
        source: Source,
        sender: results.BatchSender[results.EntryT],
        gateway: ShardGateway,
        failing: FailingOperations,
        *,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self.shard_id = shard_id
        self.state = LaneState.WAITING
        self._source = source
        self._sender = sender
        self._gateway = gateway
        self._failing = failing
        self._draw = draw
        self._utc = utc
        self._time = gateway.times[shard_id]
        self._queue: results.FairQueue[results.EntryT] = results.FairQueue(self._time)
        self._active: dict[str, str] = {}  # businesses of tenants that came before the last ones
        self._active_since = loop_time()
        self._batch: list[results.EntryT] = []  # in flight, or with outcomes that are being settled
        self._dropped: set[int] = set()  # object ids of the batch's, dropped in flight: their outcomes do not count
        self._flight_timeout = asyncio.timeout(None)
        self._sent_at = 0.0
        self._failing_since: float | None = None
        self._failure_count = 0
        self._is_turn_requested = False
        self._has_work = asyncio.Event()

    def __repr__(self) -> str:
        return f"Lane({self.shard_id}, {self.state.name.lower()}, batch={len(self._batch)}, queue={len(self._queue)})"

    def __len__(self) -> int:
        return len(self._batch) + len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is in flight or being settled."""
        return not self._batch

    @property
    def is_stuck(self) -> bool:
        """Whether the batch may never be answered, though the shard takes no batches of other lanes."""
        if self.state is not LaneState.IN_FLIGHT:
            return False
        return loop_time() - max(self._sent_at, self._gateway.last_applied_at(self.shard_id)) > STUCK_AFTER_S

    @property
    def is_late(self) -> bool:
        """Whether the batch takes longer than other lanes should wait."""
        return self.is_late_after(LATE_AFTER_S)

    def is_late_after(self, seconds: float) -> bool:
        """Return whether the batch takes longer than *seconds*."""
        match self.state:
            case LaneState.WAITING:
                return self._failing_since is not None
            case LaneState.IN_FLIGHT:
                return self._failing_since is not None or loop_time() - self._sent_at > seconds
            case LaneState.DECIDED:
                return True
            case _:
                assert_never(self.state)

    @property
    def in_flight(self) -> Sequence[results.EntryT]:
        """The batch in flight, also what counts no longer."""
        return self._batch if self.state is LaneState.IN_FLIGHT else ()

    @property
    def queued(self) -> Sequence[results.EntryT]:
        """The entries behind the batch."""
        return list(self._queue)

    def entries(self) -> list[results.EntryT]:
        """Return all entries of the lane, the batch included."""
        return [*self._own_batch(), *self._queue]

    def in_memory(self) -> list[results.EntryT]:
        """Return the entries without a known outcome."""
        return [*self._own_in_flight(), *self._queue]

    def enqueue(self, entries: Sequence[results.EntryT]) -> None:
        """Append *entries*, in their order."""
        if (now := loop_time()) - self._active_since >= ACTIVE_S:
            self._active, self._queue.arrived, self._active_since = self._queue.arrived, {}, now
        self._queue.append(entries)
        self._has_work.set()

    def request_turn(self) -> None:
        """Send the next batch now, even where it is empty."""
        self._is_turn_requested = True
        self._has_work.set()

    def take_queue(self) -> list[results.EntryT]:
        """Remove and return the entries behind the batch."""
        return self._queue.clear()

    def take_all(self) -> list[results.EntryT]:
        """Remove and return all entries, the batch's first."""
        self._requeue()
        self._failing_since = None
        return self.take_queue()

    def take_tenant(self, tenant_id: str) -> list[results.EntryT]:
        """Remove and return a tenant's entries that are not being settled."""
        taken = [entry for entry in self._own_in_flight() if entry.operation.tenant_id == tenant_id]
        return self._take([*taken, *self._queue.of_tenant(tenant_id)])

    def take_chains(self, chains: AbstractSet[str]) -> list[results.EntryT]:
        """Remove and return the entries of *chains* that are not being settled."""
        return self._take([entry for entry in self.in_memory() if entry.chain in chains])

    def _take(self, taken: list[results.EntryT]) -> list[results.EntryT]:
        self.remove({id(entry) for entry in taken})
        return taken

    def remove(self, ids: AbstractSet[int]) -> None:
        """Remove the entries with these object ids. In flight, their outcome counts no longer."""
        if self.state is LaneState.IN_FLIGHT:
            self._dropped |= {id(entry) for entry in self._batch} & ids
        self._queue.remove(ids)

    def give_up_batch(self) -> None:
        """Stop waiting for the batch: whether it was committed is unknown then."""
        if self.state is LaneState.IN_FLIGHT:
            move_deadline(self._flight_timeout, loop_time())

    def hurry(self, tenants: AbstractSet[str]) -> None:
        """Have *tenants*, and no others, not wait for their turn."""
        self._queue.hurried = tenants

    def over_share(self, is_paced: Callable[[str], bool]) -> list[results.EntryT]:
        """Return the newest entries of the business furthest beyond its share; they stay in the lane.

        Tenants that are *is_paced* do not count: whoever sends for them waits.
        """
        turns = turns_of(self._time.batches_between)
        active_counts = Counter(self._tenants().values())
        excess = find_excess(self._queue.costs_s(is_paced), self._time, active_counts=active_counts, turns=turns)
        if excess:
            self.note_flood()
        return self._queue.newest_of(excess)

    def excess(self, is_held: Callable[[str], bool]) -> list[results.EntryT]:
        """Return the newest entries beyond what the lane takes soon, divided fairly; they stay in the lane."""
        costs_s = self._queue.costs_s(is_held)
        half_s = sum([sum(own.values()) for own in costs_s.values()]) / 2
        return self._queue.newest_of(find_behind(costs_s, self._time, min(SHARE_S, half_s)))

    @property
    def is_active(self) -> bool:
        """Whether entries came lately."""
        return loop_time() - self._active_since < 2 * ACTIVE_S

    def _tenants(self) -> Mapping[str, str]:
        return {**self._active, **self._queue.arrived, **self._queue.businesses}

    def note_flood(self) -> None:
        """Note that a tenant sends more than its shard takes."""
        self._time.note_flood(loop_time())

    def waiting_s(self, is_paced: Callable[[str], bool]) -> float:
        """Return the expected seconds of the queued entries of tenants that are not paced."""
        return sum([sum(own.values()) for own in self._queue.costs_s(is_paced).values()])

    def cost_s(self, operation: Operation) -> float:
        """Return the seconds that an operation is expected to take."""
        return self._time.cost_s(operation)

    def queued_s(self, is_counted: Callable[[str], bool]) -> float:
        """Return the expected seconds of the queued entries of the tenants that are counted."""
        return self._queue.cost_s(is_counted)

    async def next_result(self, stopping: asyncio.Event) -> results.LaneResult[results.EntryT] | None:
        """Send the next batch and return the result; None once *stopping* is set."""
        if self.state is LaneState.DECIDED:
            self._enter(LaneState.WAITING)
        self._batch = []
        while not await self._wait_for_work(stopping):
            self._next_batch()
            try:
                with translate(TargetKind.SHARD, self.shard_id, "lane", WorkerError):
                    async with self._flight():
                        outcomes = await self._sender.send(self.shard_id, self._batch)
                        groups = group_by_outcome(self._batch, outcomes)
                        tries = await self._failing.find_next_tries(self.shard_id, self._batch, outcomes, groups)
                    result = self._decide(outcomes, groups, tries)
            except PositionChangedError:
                log.warning("position.changed", shard_id=self.shard_id, operations=len(self._batch))
                self._requeue()
            except (results.LaneStopError, InternalError) as exc:
                return self._emptied(exc)
            except RetryableError as exc:
                if (emptied := await self._defer(exc, stopping)) is not None:
                    return emptied
            else:
                self._failing_since, self._failure_count = None, 0
                self._enter(LaneState.DECIDED)
                return result
        return None

    async def _wait_for_work(self, stopping: asyncio.Event) -> bool:
        while not self._queue and not self._is_turn_requested and not stopping.is_set():
            self._failing_since = None  # all that failed was taken
            self._has_work.clear()
            await wait_any(self._has_work, stopping)
        return stopping.is_set()

    def _next_batch(self) -> None:
        now = loop_time()
        most_s = self._time.batch_s(now, is_shared=len(self._tenants()) > 1)
        self._batch = self._queue.take(results.BatchBounds(BATCH_MAX_COUNT, BATCH_MAX_BYTES, most_s))
        self._dropped, self._is_turn_requested = set(), False

    @asynccontextmanager
    async def _flight(self) -> AsyncIterator[None]:
        self._enter(LaneState.IN_FLIGHT)
        self._sent_at = loop_time()
        try:
            async with asyncio.timeout(None) as self._flight_timeout:
                yield
        except TimeoutError:
            raise RetryableError(f"shard {self.shard_id}: no answer, and the memory of the batch was needed") from None

    def _enter(self, state: LaneState) -> None:
        if state not in MAY_FOLLOW[self.state]:
            raise ValueError(f"{self}: expected a state that may follow, got {state.name}")
        self.state = state

    def _requeue(self) -> None:
        self._queue.put_back(self._own_batch())
        self._batch = []
        if self.state is not LaneState.WAITING:
            self._enter(LaneState.WAITING)

    def _own_in_flight(self) -> Sequence[results.EntryT]:
        return self._own_batch() if self.state is LaneState.IN_FLIGHT else ()

    def _own_batch(self) -> list[results.EntryT]:
        return [entry for entry in self._batch if id(entry) not in self._dropped] if self._dropped else self._batch

    async def _defer(self, exc: RetryableError, stopping: asyncio.Event) -> results.LaneEmptied[results.EntryT] | None:
        self._failing_since = self._failing_since or self._sent_at
        self._failure_count += 1
        instruments.RETRIES.labels(self._source, Retry.SHARD_UNAVAILABLE).inc()
        if loop_time() - self._failing_since >= HOLD_AFTER_S:
            return self._emptied(exc)
        self._requeue()
        delay_s = backoff_s(self._failure_count, draw=self._draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        log.warning("batch.deferred", shard_id=self.shard_id, retry_in_s=round(delay_s, 2), error=str(exc))
        await sleep_or_event(delay_s, until=stopping)
        return None

    def _emptied(self, cause: WorkerError) -> results.LaneEmptied[results.EntryT]:
        return results.LaneEmptied(self.shard_id, self.take_all(), cause)

    def _decide(
        self, outcomes: Sequence[Outcome], groups: Iterable[Outcome], tries: results.NextTries
    ) -> results.BatchDecided[results.EntryT]:
        count_outcomes([entry.operation for entry in self._batch], outcomes, now=self._utc())
        if all(outcome.disposition in DONE and not outcome.is_late for outcome in groups):
            return results.BatchDecided(self._own_batch())
        pairs = [pair for pair in zip(self._batch, outcomes, strict=True) if id(pair[0]) not in self._dropped]
        decided, again = results.decide(pairs, tries)
        if again:
            ids = {id(entry) for entry in again}
            self._batch = [entry for entry in self._batch if id(entry) not in ids]
            self._queue.put_back(again)
        return decided
