"""Fair shares of businesses, and of their locations, in lanes and shards, by the cost of their operations. Pure.

An operation costs what its kind costs its tenant, and something for each byte; a transaction has a fixed cost too. How
long a transaction took, against what was expected of it, corrects each of these, in proportion to its part of what was
expected. So a tenant with lists that take as long as a thousand creates is soon charged for them, and nobody who shared
a transaction with it. Tenants too small for a cost of their own have that of the kind, which they alone correct.

The seconds of tenants are summed for their usage (`shards.usage`), which takes them away each minute.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

import msgspec

from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import OperationKind

FIRST_COST_S: Final = 100e-6  # of an operation, before any is measured
FIRST_LIST_S: Final = 5e-3  # of a list, the same: of one with large documents
FIRST_BYTE_S: Final = 20e-9  # of a byte of its record, the same
FIRST_FIXED_S: Final = 3e-3  # of a transaction, the same: its round trips, and the flush of its commit
COST_MIN_S: Final = 1e-9
COST_MAX_S: Final = 10.0
CHANGE_MAX: Final = 8.0  # of a cost, by one transaction
TENANT_KINDS_MAX: Final = 10_000  # with a cost of their own, the last ones
NOTED_SHARE: Final = 0.02  # of a transaction, from which on it says something about a tenant

SHORTEST_GROWTH: Final = 1.05  # of the shortest transaction lately, with each that is longer
TURN_S: Final = 0.1  # of a transaction, while a tenant floods the shard
TURN_MIN_S: Final = 0.025  # the same for one of many batches that wait for it
FIXED_RATIO: Final = 2.0  # of a transaction's operations to its fixed cost, at least: most of a shard's time is work
FLOOD_S: Final = 2.0  # so long a shard counts as flooded after a sign of it
CALM_BATCH_S: Final = 0.5  # of a batch of a lane with one tenant otherwise
CALM_TURN_S: Final = 0.75  # of a transaction otherwise: readers treat a shard as late after a second

TenantKind: TypeAlias = tuple[str, OperationKind]
SecondsByBusiness: TypeAlias = Mapping[str, Mapping[str, float]]  # of each tenant of a business


class Demand(msgspec.Struct, frozen=True):
    """The operations of a batch, counted by tenant and kind; the bytes of their records, by tenant and together."""

    counts: Counter[TenantKind]
    sizes: Mapping[str, int]
    size_bytes: int
    businesses: Mapping[str, str]  # of the tenants

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> Demand:
        """Return that of *operations*."""
        keys = [(operation.tenant_id, operation.kind) for operation in operations]
        sizes: dict[str, int] = {}
        businesses: dict[str, str] = {}
        for operation in operations:
            tenant_id = operation.tenant_id
            if tenant_id in sizes:
                sizes[tenant_id] += operation.size_bytes
            else:
                sizes[tenant_id], businesses[tenant_id] = operation.size_bytes, operation.business_id
        return cls(Counter(keys), sizes, sum(sizes.values()), businesses)


class ShardTime:
    """What the operations of tenants cost one shard, and how many batches wait for it."""

    def __init__(self) -> None:
        self.waiting_count = 0  # batches that wait for a connection
        self.together_count = 0  # batches in the last transaction
        self.last_took_s: SecondsByBusiness = {}  # what `take` returned last
        self._took_s: dict[str, dict[str, float]] = {}  # since then
        self._flooded_until = float("-inf")
        self._fixed_s = FIRST_FIXED_S
        self._shortest_s = math.inf
        self._byte_s = FIRST_BYTE_S
        self._by_kind: dict[OperationKind, float] = dict.fromkeys(OperationKind, FIRST_COST_S)
        self._by_kind[OperationKind.LIST] = FIRST_LIST_S
        self._by_tenant: dict[TenantKind, float] = {}
        self.weights: dict[str, float] = {}  # of tenants with another one than 1, by their rows as last read
        self.business_weights: dict[str, float] = {}  # the same of businesses

    def cost_s(self, operation: Operation) -> float:
        """Return the seconds that an operation is expected to take."""
        own_s = self._by_tenant.get((operation.tenant_id, operation.kind))
        return (own_s or self._by_kind[operation.kind]) + self._byte_s * operation.size_bytes

    def costs_s(self, operations: Iterable[Operation]) -> list[float]:
        """Return the seconds that each of *operations* is expected to take."""
        by_tenant, by_kind, byte_s = self._by_tenant, self._by_kind, self._byte_s
        return [  # without calls: for each record of a stream
            (by_tenant.get((one.tenant_id, one.kind)) or by_kind[one.kind]) + byte_s * one.size_bytes
            for one in operations
        ]

    def batch_cost_s(self, demand: Demand) -> float:
        """Return the seconds that the operations of a batch are expected to take together."""
        of_kinds_s = sum([count * self._cost_of(key) for key, count in demand.counts.items()])
        return of_kinds_s + self._byte_s * demand.size_bytes

    def note_weights(self, by_tenant: Mapping[str, float], by_business: Mapping[str, float]) -> None:
        """Note the weights of tenants and of businesses, as their rows have them."""
        for known, weights in ((self.weights, by_tenant), (self.business_weights, by_business)):
            for one, weight in weights.items():
                if weight != 1.0:
                    known[one] = weight
                elif one in known:
                    del known[one]

    def note_flood(self, now: float) -> None:
        """Note that a tenant sends more than the shard takes, and others are not to wait for it."""
        self._flooded_until = now + FLOOD_S

    def batch_s(self, now: float, *, is_shared: bool) -> float:
        """Return how long the next batch of a lane may take, *is_shared* by several tenants."""
        is_flooded = now < self._flooded_until
        if not (is_flooded or is_shared):
            return CALM_BATCH_S
        if is_flooded and self.waiting_count:
            return max(TURN_MIN_S, self._short_turn_s / (1 + self.waiting_count))  # they share a transaction
        return self._short_turn_s

    def turn_s(self, now: float) -> float:
        """Return how long the next transaction may take, where batches share it."""
        return CALM_TURN_S if now >= self._flooded_until else self._short_turn_s

    @property
    def _short_turn_s(self) -> float:
        """The seconds of a turn while others wait for it.

        Longer than TURN_S only on a shard where each transaction takes long. By the learned cost alone, transactions
        that are long because they are large, or stood still together, would be allowed to become larger.
        """
        return min(CALM_BATCH_S, max(TURN_S, FIXED_RATIO * min(self._fixed_s, self._shortest_s)))

    @property
    def batches_between(self) -> int:
        """The batches of other lanes between two of one lane, by what waits and by the last transaction."""
        return max(self.waiting_count, self.together_count - 1, 0)

    def take(self) -> SecondsByBusiness:
        """Return the seconds that tenants took since the last call."""
        self.last_took_s, self._took_s = self._took_s, {}
        return self.last_took_s

    def note(self, demands: Iterable[Demand], took_s: float) -> None:
        """Learn from a transaction of these batches that took so long, and divide the seconds among their tenants.

        The fixed cost is divided in proportion to the rest.
        """
        counts: Counter[TenantKind] = Counter()
        sizes: Counter[str] = Counter()
        businesses: dict[str, str] = {}
        for demand in demands:
            counts.update(demand.counts)
            sizes.update(demand.sizes)
            businesses.update(demand.businesses)
        parts = {key: count * self._cost_of(key) for key, count in counts.items()}
        bytes_s = self._byte_s * sizes.total()
        operations_s = bytes_s + sum(parts.values())
        expected_s = self._fixed_s + operations_s
        costs_s = {one: self._byte_s * size_bytes for one, size_bytes in sizes.items()}
        for (one, _), part_s in parts.items():
            costs_s[one] += part_s
        for one, cost_s in costs_s.items():
            own = self._took_s.setdefault(businesses[one], {})
            own[one] = own.get(one, 0.0) + took_s * cost_s / operations_s
        change = min(CHANGE_MAX, max(1 / CHANGE_MAX, took_s / expected_s))
        of_small: defaultdict[OperationKind, float] = defaultdict(float)
        for key, part_s in parts.items():
            if part_s >= NOTED_SHARE * expected_s:
                self._remember(key, _corrected(self._cost_of(key), change, part_s / expected_s))
            else:
                of_small[key[1]] += part_s
        for kind, part_s in of_small.items():
            self._by_kind[kind] = _corrected(self._by_kind[kind], change, part_s / expected_s)
        self._byte_s = _corrected(self._byte_s, change, bytes_s / expected_s)
        self._fixed_s = _corrected(self._fixed_s, change, self._fixed_s / expected_s)
        self._shortest_s = min(took_s, SHORTEST_GROWTH * self._shortest_s)

    def _cost_of(self, key: TenantKind) -> float:
        return self._by_tenant.get(key) or self._by_kind[key[1]]

    def _remember(self, key: TenantKind, cost_s: float) -> None:
        self._by_tenant.pop(key, None)
        while len(self._by_tenant) >= TENANT_KINDS_MAX:
            del self._by_tenant[next(iter(self._by_tenant))]
        self._by_tenant[key] = cost_s


def _corrected(cost: float, change: float, share: float) -> float:
    return min(COST_MAX_S, max(COST_MIN_S, cost * math.pow(change, share)))


OVER_SHARE_S: Final = 0.2  # that queued entries of loud businesses keep the shard busy, from which on others wait
SHARE_S: Final = 0.1  # of these, what stays in the lane: it is never idle before the others are read again
WAITS_MAX: Final = 3  # batches before it that count: of many full lanes a single list would be over its share
LOUD_MAX: Final = 4  # loud ones; where there are more, it is a backlog of many
OVER_SHARE_RATIO: Final = 2.0  # of a loud one, to what those with less have queued on average
LOUD_PART: Final = 0.8  # of what is queued, from which on the others gain by a hold; in a plain backlog nobody does


def find_excess(
    costs_s: SecondsByBusiness, time: ShardTime, *, active_counts: Mapping[str, int], turns: int
) -> dict[str, float]:
    """Return the tenants of the business furthest beyond its share of a lane that have too much queued.

    The values are the seconds that stay in the lane. Where the lane has one business, its locations are compared.
    *active_counts* are the tenants of each business that sent to the lane lately, *turns* is that of `turns_of`.
    """
    stays_s = SHARE_S / turns
    if len(active_counts) > 1:
        sums_s = {one: sum(own.values()) for one, own in costs_s.items()}
        weighted_s = {
            one: sum(_weighted(own, time.weights).values()) / time.business_weights.get(one, 1.0)
            for one, own in costs_s.items()
        }
        loud = find_over_share(sums_s, weighted_s, active_count=len(active_counts), turns=turns)
        return {} if loud is None else find_behind({loud: costs_s[loud]}, time, stays_s)
    for business_id, own in costs_s.items():
        weighted_s = _weighted(own, time.weights)
        loud = find_over_share(own, weighted_s, active_count=active_counts.get(business_id, 0), turns=turns)
        return {} if loud is None else {loud: stays_s}
    return {}


def find_over_share(
    costs_s: Mapping[str, float], weighted_s: Mapping[str, float], *, active_count: int, turns: int
) -> str | None:
    """Return the one that is furthest beyond its share of a lane; None if nobody is.

    *costs_s* are the seconds that the queued entries of each are expected to take, *weighted_s* the same divided by the
    weights, *active_count* is the number of those that sent to the lane lately.
    """
    rest_s = all_s = sum(weighted_s.values())
    loud: list[str] = []
    for one in heapq.nlargest(LOUD_MAX, weighted_s, key=weighted_s.__getitem__):
        own_s, quieter_count = weighted_s[one], active_count - len(loud) - 1
        if own_s * quieter_count < OVER_SHARE_RATIO * (rest_s - own_s) or quieter_count < 1:
            break
        loud.append(one)
        rest_s -= own_s
    is_late = sum([costs_s[one] for one in loud]) * turns >= OVER_SHARE_S
    return loud[0] if is_late and sum([weighted_s[one] for one in loud]) >= LOUD_PART * all_s else None


def find_behind(costs_s: SecondsByBusiness, time: ShardTime, stays_s: float) -> dict[str, float]:
    """Return the tenants that have more queued than their parts of *stays_s*, which are the values."""
    of_businesses = divide(stays_s, {one: sum(own.values()) for one, own in costs_s.items()}, time.business_weights)
    parts = {
        tenant_id: (part_s, own[tenant_id])
        for business_id, own in costs_s.items()
        for tenant_id, part_s in divide(of_businesses[business_id], own, time.weights).items()
    }
    return {tenant_id: part_s for tenant_id, (part_s, cost_s) in parts.items() if part_s < cost_s}


def divide(total_s: float, wanted_s: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the parts of *total_s*: what each wants, or as much, by weight, as others that want more."""
    parts: dict[str, float] = {}
    ratios = _weighted(wanted_s, weights)
    names = sorted(ratios, key=ratios.__getitem__)
    rests = list(accumulate(weights.get(one, 1.0) for one in reversed(names)))  # each with those that want more
    for one, rest in zip(names, reversed(rests), strict=True):
        parts[one] = min(wanted_s[one], total_s * weights.get(one, 1.0) / rest)
        total_s -= parts[one]
    return parts


def _weighted(costs_s: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    return {one: cost_s / weights.get(one, 1.0) for one, cost_s in costs_s.items()}


def turns_of(between_count: int) -> int:
    """Return how many batches an entry counts as waiting for: its own, and those of other lanes in between."""
    return 1 + min(between_count, WAITS_MAX)
