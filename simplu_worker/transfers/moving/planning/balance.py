"""Which tenants to move so that shards are about equally full, or so that one is empty. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress

EVEN_RATIO: Final = 1.1  # of the fullest shard to the mean: below, nothing is moved
NO_LIMIT: Final = 10**9  # businesses of a shard


class WeighedTenant(msgspec.Struct, frozen=True, order=True):
    """A tenant of a type, the shard with its home, and its weight: rows, bytes or operations."""

    business_id: str
    location_id: str
    shard_id: str
    weight: int = 1
    business_type: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """The business and the location."""
        return self.business_id, self.location_id

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(*self.names)


class PlannedTransfer(msgspec.Struct, frozen=True):
    """A tenant that is to move, and where to."""

    tenant: WeighedTenant
    target_id: str


class ShardRoom(msgspec.Struct, frozen=True):
    """A shard, the *capacity* by which its usage is measured, and the *room*: how many more businesses may come.

    Tenants of *businesses*, which are there or are coming, need no room.
    """

    shard_id: str
    capacity: float = 1.0
    room: int = NO_LIMIT
    businesses: frozenset[str] = frozenset()


def rooms_of(
    shards: Iterable[ShardAddress],
    there: Mapping[str, Collection[str]],
    coming: Mapping[str, Collection[str]],
    *,
    by_capacity: bool,
) -> list[ShardRoom]:
    """Return the room of each shard; with *by_capacity* a shard without a limit counts as one with the mean limit.

    *there* are the businesses of each shard, of which Citrus may know more; *coming* those of tenants on their way.
    """
    listed = list(shards)
    limits = [shard.business_max for shard in listed if shard.business_max is not None] if by_capacity else []
    usual = sum(limits) / len(limits) if limits else 1.0
    rooms = []
    for shard in listed:
        limit, shard_id = shard.business_max, shard.shard_id
        known = frozenset(there.get(shard_id, ()))
        expected = known.union(coming.get(shard_id, ()))
        taken = max(len(known), shard.business_count or 0) + len(expected - known)
        capacity = limit if by_capacity and limit is not None else usual
        rooms.append(ShardRoom(shard_id, capacity, (NO_LIMIT if limit is None else limit) - taken, expected))
    return rooms


class _Unit(msgspec.Struct, frozen=True):
    """Tenants of one shard that move together: a tenant, or all of a business."""

    tenants: tuple[WeighedTenant, ...]
    weight: int

    @property
    def first(self) -> WeighedTenant:
        return self.tenants[0]


def plan_balance(
    tenants: Iterable[WeighedTenant],
    shards: Sequence[ShardRoom],
    *,
    settled: Collection[str] = (),
    types: Mapping[str, Collection[str]] | None = None,
    by_business: bool = False,
) -> list[PlannedTransfer]:
    """Return the moves that make the shards about equally full; few moves, of large tenants first.

    The usage of a shard is its weight by its capacity. Each move is from the fullest shard that has a fitting tenant to
    the emptiest with room for it: the largest tenant that makes the other no fuller than the one. The *settled*
    tenants stay. *types* are the business types that each shard has; without them every shard takes every tenant.
    With *by_business* all locations that a business has on a shard move together, and weigh 1, or 0 where the target
    has the business already.
    """
    listed = [one for one in tenants if one.shard_id in {shard.shard_id for shard in shards}]
    units = _businesses(listed) if by_business else [_Unit((one,), one.weight) for one in listed]
    movable: defaultdict[str, list[_Unit]] = defaultdict(list)
    loads = {shard.shard_id: 0 for shard in shards}
    rooms = _Rooms(shards)
    for unit in sorted(units, key=lambda one: (-one.weight, one.tenants)):
        loads[unit.first.shard_id] += unit.weight
        if not any(one.tenant_id in settled for one in unit.tenants):
            movable[unit.first.shard_id].append(unit)
    capacity = sum(shard.capacity for shard in shards)
    even = EVEN_RATIO * sum(loads.values()) / capacity if capacity else 0.0

    def usage(shard: ShardRoom) -> float:
        return loads[shard.shard_id] / shard.capacity if shard.capacity else float("inf")

    def weight_on(unit: _Unit, target_id: str) -> int:
        return 0 if by_business and rooms.has_business(unit.first, target_id) else unit.weight

    def evens_out(unit: _Unit, source: ShardRoom, target: ShardRoom) -> bool:
        there = loads[target.shard_id] + weight_on(unit, target.shard_id)
        return unit.weight > 0 and there * source.capacity <= (loads[source.shard_id] - unit.weight) * target.capacity

    plan: list[PlannedTransfer] = []
    while True:
        by_usage = sorted(shards, key=lambda one: (usage(one), one.shard_id))
        chosen = next(
            (
                (unit, target.shard_id)
                for source in reversed(by_usage)
                if usage(source) > even
                for target in by_usage
                if target.capacity > 0
                for unit in movable[source.shard_id]
                if rooms.takes(unit.first, target.shard_id)
                if evens_out(unit, source, target)
                if all(_has_type(one, target.shard_id, types) for one in unit.tenants)
            ),
            None,
        )
        if chosen is None:
            return plan
        unit, target_id = chosen
        movable[unit.first.shard_id].remove(unit)  # a tenant that has moved stays
        loads[unit.first.shard_id] -= unit.weight
        loads[target_id] += weight_on(unit, target_id)
        rooms.add(unit.first, target_id)
        plan += [PlannedTransfer(one, target_id) for one in unit.tenants]


def _businesses(tenants: Iterable[WeighedTenant]) -> list[_Unit]:
    together: defaultdict[tuple[str, str], list[WeighedTenant]] = defaultdict(list)
    for one in tenants:
        together[one.shard_id, one.business_id].append(one)
    return [_Unit(tuple(sorted(ones)), 1) for ones in together.values()]


class _Rooms:
    """The rooms of shards while a plan fills them."""

    def __init__(self, shards: Iterable[ShardRoom]) -> None:
        listed = list(shards)
        self.left = {shard.shard_id: shard.room for shard in listed}
        self._businesses = {shard.shard_id: set(shard.businesses) for shard in listed}

    def has_business(self, tenant: WeighedTenant, shard_id: str) -> bool:
        return tenant.business_id in self._businesses[shard_id]

    def takes(self, tenant: WeighedTenant, shard_id: str) -> bool:
        return self.left[shard_id] > 0 or self.has_business(tenant, shard_id)

    def add(self, tenant: WeighedTenant, shard_id: str) -> None:
        self.left[shard_id] -= not self.has_business(tenant, shard_id)
        self._businesses[shard_id].add(tenant.business_id)


def _has_type(tenant: WeighedTenant, shard_id: str, types: Mapping[str, Collection[str]] | None) -> bool:
    return types is None or tenant.business_type in types.get(shard_id, ())


def plan_drain(
    tenants: Iterable[WeighedTenant], shards: Sequence[ShardRoom], types: Mapping[str, Collection[str]] | None = None
) -> tuple[list[PlannedTransfer], list[WeighedTenant]]:
    """Return where the tenants of a shard are to go, and those for which there is no room.

    *shards* are the other ones; *types* as in `plan_balance`. The shard with the most room that has the type is next,
    so that they fill evenly; without room one with the tenant's business. Tenants whose type no shard has come last, to
    any shard: its check tells what it lacks.
    """
    rooms = _Rooms(shards)
    heap = [(-shard.room, shard.shard_id) for shard in shards if shard.room > 0]
    heapq.heapify(heap)
    plan: list[PlannedTransfer] = []

    def place(tenant: WeighedTenant, *, any_type: bool) -> bool:
        passed: list[tuple[int, str]] = []
        while heap and not any_type and not _has_type(tenant, heap[0][1], types):
            passed.append(heapq.heappop(heap))
        is_placed = bool(heap)
        if is_placed:
            negative, shard_id = heapq.heappop(heap)
            plan.append(PlannedTransfer(tenant, shard_id))
            rooms.add(tenant, shard_id)
            if rooms.left[shard_id] > 0:
                heapq.heappush(heap, (negative + 1, shard_id))
        for one in passed:
            heapq.heappush(heap, one)
        return is_placed or place_beside(tenant, any_type=any_type)

    def place_beside(tenant: WeighedTenant, *, any_type: bool) -> bool:
        for shard_id in rooms.left:
            if rooms.has_business(tenant, shard_id) and (any_type or _has_type(tenant, shard_id, types)):
                plan.append(PlannedTransfer(tenant, shard_id))
                return True
        return False

    largest_first = sorted(tenants, key=lambda one: (-one.weight, one))
    left = [one for one in largest_first if not place(one, any_type=False)]
    return plan, [one for one in left if not place(one, any_type=True)]
