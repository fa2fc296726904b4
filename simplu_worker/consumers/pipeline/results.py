"""The results of lanes and of lookups, and the order in which a lane serves its tenants. Pure.

Weighted fair queueing by cost (start-time fair queueing, Goyal and others, 1996) on two levels: each business has a
virtual time, which grows by the cost of what was taken of it, and the lowest is next; so has each location within its
business. One that comes back starts at the time of the one that is served now, so that nobody saves up time.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from itertools import accumulate
from typing import Final, Generic, Protocol, TypeAlias, TypeVar, assert_never

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.tries import GiveUp, HoldFor, RetryAfter
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
    - *locked*: those of each tenant that waits, for locked rows or by a limit, and for how long.
    - *failing*: failed on the healthy shard, at most one of a tenant; to be tried again, or given up with a row in the
      log. Later ones of its chain are in *not_here*.
    """

    applied: list[EntryT]
    late: Sequence[EntryT] = ()
    refused: list[tuple[EntryT, GiveUp]] = []
    not_here: dict[str, list[EntryT]] = {}
    locked: list[tuple[list[EntryT], HoldFor]] = []
    failing: list[tuple[EntryT, RetryAfter | GiveUp]] = []


class NextTries(msgspec.Struct, frozen=True):
    """What becomes of the failing operations of a batch, by object id, and how long its locked tenants wait."""

    failing: dict[int, RetryAfter | GiveUp]
    locked: dict[str, HoldFor]


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
    decided.locked.extend((own, tries.locked[tenant_id]) for tenant_id, own in locked.items())
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


class _Turns:
    """The virtual times of names, either the businesses of a queue or the locations of one of them."""

    __slots__ = ("heap", "now", "served")

    def __init__(self) -> None:
        self.served: dict[str, float] = {}  # of the names that are ahead of now
        self.now = 0.0  # the virtual time of the name that was served last
        self.heap: list[tuple[float, str]] = []  # while a batch is taken

    def begin(self, names: Iterable[str]) -> None:
        """Begin with a batch of *names*; those that come back start now."""
        self.heap = [(self.served.get(name, self.now), name) for name in names]
        heapq.heapify(self.heap)

    def next(self) -> str:
        """Return the name whose turn it is."""
        self.now, name = heapq.heappop(self.heap)
        return name

    def turn_s(self) -> float:
        """Return how much of that name may be served before it is the next one's turn."""
        return self.heap[0][0] + QUANTUM_S - self.now if self.heap else math.inf

    def go_on(self, name: str, served: float, *, has_more: bool) -> bool:
        """Note how much of *name* was served; return whether any name has more."""
        self.served[name] = time = self.now + served
        if has_more:
            heapq.heappush(self.heap, (time, name))
        return bool(self.heap)

    def end(self) -> None:
        """Forget the names that are not ahead of now."""
        self.heap = []
        self.served = {name: time for name, time in self.served.items() if time > self.now}


class FairQueue(Generic[EntryT]):
    """The entries of all tenants that wait, in order for each tenant."""

    def __init__(self, time: ShardTime) -> None:
        self._time = time
        self._returned: deque[EntryT] = deque()  # taken before, and put back: before all others
        self._by_tenant: dict[str, deque[EntryT]] = {}  # none is empty
        self._count = 0  # of these
        self._businesses: dict[str, str] = {}  # of these tenants
        self.arrived: dict[str, str] = {}  # businesses of tenants that had no entries; whoever reads it begins it anew
        self.hurried: AbstractSet[str] = frozenset()  # tenants that are not to wait for their turn
        self._turns = _Turns()
        self._turns_within: dict[str, _Turns] = {}  # of the locations of businesses with entries

    def __len__(self) -> int:
        return len(self._returned) + self._count

    def __iter__(self) -> Iterator[EntryT]:
        """Iterate over all entries, in order for each tenant."""
        yield from self._returned
        for entries in self._by_tenant.values():
            yield from entries

    @property
    def businesses(self) -> Mapping[str, str]:
        """The businesses of the tenants with entries, but for those that were put back."""
        return self._businesses

    def append(self, entries: Sequence[EntryT]) -> None:
        """Add *entries*."""
        by_tenant = self._by_tenant
        for entry in entries:
            tenant_id = entry.operation.tenant_id
            own = by_tenant.get(tenant_id)
            if own is None:
                by_tenant[tenant_id] = deque((entry,))
                self.arrived[tenant_id] = self._businesses[tenant_id] = entry.operation.business_id
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

    def costs_s(self, is_left_out: Callable[[str], bool]) -> dict[str, dict[str, float]]:
        """Return the expected seconds of the entries of each business's tenants, but for those left out."""
        costs_s: dict[str, dict[str, float]] = {}
        for tenant_id, entries in self._by_tenant.items():
            if not is_left_out(tenant_id):
                costs_s.setdefault(self._businesses[tenant_id], {})[tenant_id] = self._costs_of(entries)
        return costs_s

    def cost_s(self, is_counted: Callable[[str], bool]) -> float:
        """Return the expected seconds of the entries of the tenants that are counted, without those put back."""
        return sum([self._costs_of(own) for tenant_id, own in self._by_tenant.items() if is_counted(tenant_id)])

    def newest_of(self, excess: Mapping[str, float]) -> list[EntryT]:
        """Return the entries of tenants behind those that take the given seconds."""
        newest: list[EntryT] = []
        for tenant_id, beyond_s in excess.items():
            entries = list(self._by_tenant.get(tenant_id, ()))
            ends_s = list(accumulate(self._time.costs_s([entry.operation for entry in entries])))
            newest += entries[bisect_right(ends_s, beyond_s) :]
        return newest

    def remove(self, ids: AbstractSet[int]) -> None:
        """Remove the entries with these object ids."""
        self._returned = deque(entry for entry in self._returned if id(entry) not in ids)
        for tenant_id, entries in list(self._by_tenant.items()):
            kept = deque(entry for entry in entries if id(entry) not in ids)
            self._count -= len(entries) - len(kept)
            if kept:
                self._by_tenant[tenant_id] = kept
            else:
                del self._by_tenant[tenant_id], self._businesses[tenant_id]

    def clear(self) -> list[EntryT]:
        """Remove and return all entries."""
        entries = list(self)
        self._returned.clear()
        self._count = 0
        self._forget_all()
        return entries

    def take(self, bounds: BatchBounds) -> list[EntryT]:
        """Remove and return the next batch: what was put back, and then what is fair."""
        batch = [self._returned.popleft() for _ in range(min(bounds.count, len(self._returned)))]
        size_bytes = sum([entry.operation.size_bytes for entry in batch])
        cost_s = self._costs_of(batch)
        if self._count <= bounds.count - len(batch):
            entries = [entry for own in self._by_tenant.values() for entry in own]
            demand = Demand.of([entry.operation for entry in entries])
            if (
                size_bytes + demand.size_bytes <= bounds.size_bytes
                and cost_s + self._time.batch_cost_s(demand) <= bounds.cost_s
            ):
                self._count = 0
                self._forget_all()
                return batch + entries
        returned_count = len(batch)
        self._take_turns(batch, bounds, size_bytes, cost_s)
        self._count -= len(batch) - returned_count
        return batch

    def _take_turns(self, batch: list[EntryT], bounds: BatchBounds, size_bytes: int, cost_s: float) -> None:
        tenants = self._by_business()
        weights, business_weights, hurried = self._time.weights, self._time.business_weights, self.hurried
        self._turns.begin(tenants)
        begun: dict[str, _Turns] = {}
        turns, is_full = self._turns, False
        while turns.heap and not is_full:
            business_id = turns.next()
            names, within = tenants[business_id], begun.get(business_id)
            if within is None and (len(names) > 1 or business_id in self._turns_within):
                within = begun[business_id] = self._begin_within(business_id, names)
            tenant_id = names[0] if within is None else within.next()
            weight = HURRIED_WEIGHT if tenant_id in hurried else weights.get(tenant_id, 1.0)
            of_business = weight * business_weights.get(business_id, 1.0)
            most_s = turns.turn_s() * of_business
            if within is not None:
                most_s = min(most_s, within.turn_s() * weight)
            own, taken_s = self._by_tenant[tenant_id], 0.0
            while own and taken_s < most_s:
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
                taken_s += one_s
            has_more = bool(own) if within is None else within.go_on(tenant_id, taken_s / weight, has_more=bool(own))
            if not own:
                del self._by_tenant[tenant_id], self._businesses[tenant_id]
            turns.go_on(business_id, taken_s / of_business, has_more=has_more)
        self._end_turns(begun)

    def _by_business(self) -> Mapping[str, Sequence[str]]:
        tenants: defaultdict[str, list[str]] = defaultdict(list)
        for tenant_id, business_id in self._businesses.items():
            tenants[business_id].append(tenant_id)
        return tenants

    def _begin_within(self, business_id: str, tenants: Iterable[str]) -> _Turns:
        within = self._turns_within.get(business_id) or _Turns()
        within.begin(tenants)
        return within

    def _end_turns(self, begun: dict[str, _Turns]) -> None:
        if not self._by_tenant:
            self._forget_all()
            return
        left = set(self._businesses.values())
        self._turns_within = {one: of for one, of in (self._turns_within | begun).items() if one in left}
        for turns in (self._turns, *self._turns_within.values()):
            turns.end()

    def _costs_of(self, entries: Iterable[EntryT]) -> float:
        return sum(self._time.costs_s([entry.operation for entry in entries]))

    def _forget_all(self) -> None:
        self._by_tenant, self._businesses = {}, {}
        self._turns, self._turns_within = _Turns(), {}
