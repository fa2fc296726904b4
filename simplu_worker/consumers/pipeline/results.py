"""The results of lanes and of lookups, and the order in which a lane serves its tenants. Pure.

Weighted fair queueing by cost (start-time fair queueing, Goyal and others, 1996): each tenant has a virtual time, which
grows by the cost of what was taken of it, and the lowest is next. One that comes back starts at the time of the tenant
that is served now, so that nobody saves up time.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from itertools import accumulate
from typing import Final, Generic, Protocol, TypeAlias, TypeVar, assert_never

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.tries import GiveUp, RetryAfter
from simplu_worker.vocabulary import DeadLetterReason, HoldReason


class Entry(Protocol):
    """An operation in memory, with what its source needs to settle it."""

    @property
    def operation(self) -> Operation:
        """The operation."""

    @property
    def chain(self) -> str:
        """The unit of order."""


EntryT = TypeVar("EntryT", bound=Entry)
SentT_contra = TypeVar("SentT_contra", bound=Entry, contravariant=True)


class LaneStopError(WorkerError):
    """A shard must get none of the source's operations now."""


class BatchSender(Protocol[SentT_contra]):
    """How the batches of a source go to a shard."""

    async def send(self, shard_id: str, entries: Sequence[SentT_contra]) -> list[Outcome]:
        """Give a batch to a shard, and return the outcome of each operation.

        Raises `RetryableError` where the shard does not take it: whether it was committed is then unknown. Raises
        `LaneStopError` where the shard must not get it.
        """


class BatchDecided(msgspec.Struct, Generic[EntryT], frozen=True):
    """A batch that its shard took, by outcome; its entries stay in the lane until the next one.

    - *applied*: in the log, by this batch or an earlier one; *late* are those that repeat an operation of long before.
    - *refused*: to be dead letters, without a row in the log.
    - *not_here*: by tenant, those of tenants that do not live on the shard, or that are behind a failing one.
    - *locked*: those of each tenant whose rows are locked, and the seconds to wait.
    - *failing*: failed on the healthy shard, at most one of a tenant; to be tried again, or given up with a row in the
      log. Later ones of its chain are in *not_here*.
    """

    applied: list[EntryT]
    late: Sequence[EntryT] = ()
    refused: list[tuple[EntryT, GiveUp]] = []
    not_here: dict[str, list[EntryT]] = {}
    locked: list[tuple[list[EntryT], float]] = []
    failing: list[tuple[EntryT, RetryAfter | GiveUp]] = []


class NextTries(msgspec.Struct, frozen=True):
    """What becomes of the failing operations of a batch, by object id, and how long its locked tenants wait."""

    failing: dict[int, RetryAfter | GiveUp]
    locked_s: dict[str, float]


def decide(pairs: Sequence[tuple[EntryT, Outcome]], tries: NextTries) -> tuple[BatchDecided[EntryT], list[EntryT]]:
    """Return the entries of a batch by outcome, and those to be sent again: another chain of their tenant failed."""
    failing = [entry for entry, outcome in pairs if outcome.disposition is Disposition.FAILING]
    failing_tenants = {entry.operation.tenant_id for entry in failing}
    failing_chains = {entry.chain for entry in failing}
    again: list[EntryT] = []
    locked: dict[str, list[EntryT]] = {}
    late = [entry for entry, outcome in pairs if outcome.is_late]
    decided: BatchDecided[EntryT] = BatchDecided([], late, [], {}, [], [])
    for entry, outcome in pairs:
        tenant_id = entry.operation.tenant_id
        match outcome.disposition:
            case Disposition.APPLIED | Disposition.DUPLICATE:
                decided.applied.append(entry)
            case Disposition.DEAD_LETTER:
                reason = outcome.reason or DeadLetterReason.INVALID_MESSAGE
                decided.refused.append((entry, GiveUp(reason, outcome.error or "")))
            case Disposition.FAILING:
                following = tries.failing[id(entry)]
                if isinstance(following, GiveUp) and following.reason is DeadLetterReason.INTERNAL_ERROR:
                    decided.refused.append((entry, following))
                else:
                    decided.failing.append((entry, following))
            case Disposition.HOLD | Disposition.LOCKED as why:
                if tenant_id in failing_tenants and entry.chain not in failing_chains:
                    again.append(entry)
                else:
                    by_tenant = decided.not_here if why is Disposition.HOLD else locked
                    by_tenant.setdefault(tenant_id, []).append(entry)
            case _:
                assert_never(outcome.disposition)
    decided.locked.extend((own, tries.locked_s[tenant_id]) for tenant_id, own in locked.items())
    return decided, again


class LaneEmptied(msgspec.Struct, Generic[EntryT], frozen=True):
    """The shard gets no operations until *cause* is over; *entries* were all of its lane, in order."""

    shard_id: str
    entries: list[EntryT]
    cause: WorkerError


class Waited(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant without a home for so long that its *entries* leave memory."""

    tenant_id: str
    entries: list[EntryT]
    reason: HoldReason
    shard_id: str | None = None
    cause: Exception | None = None


class Found(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant with a home, and all that waited for it. *has_moved*: another shard refused it."""

    tenant_id: str
    shard_id: str
    entries: Sequence[EntryT]
    has_moved: bool = False


class Unregistered(msgspec.Struct, frozen=True):
    """A tenant that is wanted, and was not registered at *asked_at*."""

    tenant_id: str
    asked_at: datetime


class Paused(msgspec.Struct, Generic[EntryT], frozen=True):
    """A tenant that a person has paused, and the *entries* that wait in memory."""

    tenant_id: str
    entries: Sequence[EntryT]


class Overdue(msgspec.Struct, Generic[EntryT], frozen=True):
    """Entries to be dead letters: they have waited too long for their tenant's registration."""

    tenant_id: str
    entries: list[EntryT]


LaneResult: TypeAlias = BatchDecided[EntryT] | LaneEmptied[EntryT]
PutBack: TypeAlias = LaneEmptied[EntryT] | Waited[EntryT]
LookupResult: TypeAlias = Found[EntryT] | Unregistered | Paused[EntryT] | Overdue[EntryT]


QUANTUM_S: Final = 0.001  # of one tenant, before it is the next one's turn
HURRIED_WEIGHT: Final = 1000.0


class BatchBounds(msgspec.Struct, frozen=True):
    """What a batch may have; its first entry may exceed bytes and cost."""

    count: int
    size_bytes: int
    cost_s: float


class FairQueue(Generic[EntryT]):
    """The entries of all tenants that wait, in order for each tenant."""

    def __init__(self, time: ShardTime) -> None:
        self._time = time
        self._returned: deque[EntryT] = deque()  # taken before, and put back: before all others
        self._by_tenant: dict[str, deque[EntryT]] = {}  # none is empty
        self._count = 0  # of these
        self._waiting_since: dict[str, float] = {}  # of these tenants, or since their wait was counted last
        self.arrived: set[str] = set()  # tenants that had no entries; whoever reads it begins it anew
        self.hurried: AbstractSet[str] = frozenset()  # tenants that are not to wait for their turn
        self._served: dict[str, float] = {}  # virtual times, of the tenants that are ahead of now
        self._now = 0.0  # the virtual time of the tenant that was served last

    def __len__(self) -> int:
        return len(self._returned) + self._count

    def __iter__(self) -> Iterator[EntryT]:
        """Iterate over all entries, in order for each tenant."""
        yield from self._returned
        for entries in self._by_tenant.values():
            yield from entries

    @property
    def tenants(self) -> AbstractSet[str]:
        """The tenants with entries, but for those that were put back."""
        return self._by_tenant.keys()

    def append(self, entries: Sequence[EntryT], now: float) -> None:
        """Add *entries*, which came at *now* (monotonic)."""
        by_tenant = self._by_tenant
        for entry in entries:
            tenant_id = entry.operation.tenant_id
            own = by_tenant.get(tenant_id)
            if own is None:
                by_tenant[tenant_id] = deque((entry,))
                self.arrived.add(tenant_id)
                self._waiting_since[tenant_id] = now
            else:
                own.append(entry)
        self._count += len(entries)

    def put_back(self, entries: Iterable[EntryT]) -> None:
        """Put *entries* before all others: they are taken next."""
        self._returned.extendleft(reversed(list(entries)))

    def of_tenant(self, tenant_id: str) -> list[EntryT]:
        """Return the entries of a tenant."""
        returned = [entry for entry in self._returned if entry.operation.tenant_id == tenant_id]
        return [*returned, *self._by_tenant.get(tenant_id, ())]

    def costs_s(self, is_left_out: Callable[[str], bool]) -> dict[str, float]:
        """Return the expected seconds of each tenant's entries, but for those left out."""
        return {
            tenant_id: self._costs_of(entries)
            for tenant_id, entries in self._by_tenant.items()
            if not is_left_out(tenant_id)
        }

    def cost_s(self, tenant_id: str) -> float:
        """Return the expected seconds of a tenant's entries, without those put back."""
        return self._costs_of(self._by_tenant.get(tenant_id, ()))

    def count_waits(self, now: float) -> dict[str, float]:
        """Return for how many seconds each tenant has had entries since the last count."""
        waits_s = {tenant_id: now - self._waiting_since[tenant_id] for tenant_id in self._by_tenant}
        self._waiting_since = dict.fromkeys(waits_s, now)
        return waits_s

    def newest_of(self, tenant_id: str, *, beyond_s: float) -> list[EntryT]:
        """Return a tenant's entries behind those that take *beyond_s*."""
        entries = list(self._by_tenant.get(tenant_id, ()))
        ends_s = list(accumulate(self._time.cost_s(entry.operation) for entry in entries))
        return entries[bisect_right(ends_s, beyond_s) :]

    def remove(self, ids: AbstractSet[int]) -> None:
        """Remove the entries with these object ids."""
        self._returned = deque(entry for entry in self._returned if id(entry) not in ids)
        for tenant_id, entries in list(self._by_tenant.items()):
            kept = deque(entry for entry in entries if id(entry) not in ids)
            self._count -= len(entries) - len(kept)
            if kept:
                self._by_tenant[tenant_id] = kept
            else:
                del self._by_tenant[tenant_id]

    def clear(self) -> list[EntryT]:
        """Remove and return all entries."""
        entries = list(self)
        self._returned.clear()
        self._by_tenant.clear()
        self._count = 0
        self._forget_served()
        return entries

    def take(self, bounds: BatchBounds) -> list[EntryT]:
        """Remove and return the next batch: what was put back, and then what is fair."""
        batch = [self._returned.popleft() for _ in range(min(bounds.count, len(self._returned)))]
        size_bytes = sum([entry.operation.size_bytes for entry in batch])
        cost_s = self._costs_of(batch)
        returned_count = len(batch)
        if self._count <= bounds.count - returned_count:
            entries = [entry for own in self._by_tenant.values() for entry in own]
            demand = Demand.of([entry.operation for entry in entries])
            if (
                size_bytes + demand.size_bytes <= bounds.size_bytes
                and cost_s + self._time.batch_cost_s(demand) <= bounds.cost_s
            ):
                self._by_tenant, self._count = {}, 0
                self._forget_served()
                return batch + entries
        turns = [(self._served.get(one, self._now), one) for one in self._by_tenant]
        heapq.heapify(turns)
        is_full = False
        while turns and not is_full:
            time, tenant_id = heapq.heappop(turns)
            self._now = time
            until = turns[0][0] + QUANTUM_S if turns else float("inf")
            own = self._by_tenant[tenant_id]
            weight = HURRIED_WEIGHT if tenant_id in self.hurried else self._time.weights.get(tenant_id, 1.0)
            while own and time < until:
                operation = own[0].operation
                size_bytes += operation.size_bytes
                one_s = self._time.cost_s(operation)
                cost_s += one_s
                is_full = bool(batch) and (
                    len(batch) >= bounds.count or size_bytes > bounds.size_bytes or cost_s > bounds.cost_s
                )
                if is_full:
                    break
                batch.append(own.popleft())
                time += one_s / weight
            self._served[tenant_id] = time
            if own:
                heapq.heappush(turns, (time, tenant_id))
            else:
                del self._by_tenant[tenant_id]
        self._count -= len(batch) - returned_count
        self._forget_served()
        return batch

    def _costs_of(self, entries: Iterable[EntryT]) -> float:
        cost_s = self._time.cost_s
        return sum([cost_s(entry.operation) for entry in entries])

    def _forget_served(self) -> None:
        ahead = self._served.items() if self._by_tenant else ()
        self._served = {one: time for one, time in ahead if time > self._now}
