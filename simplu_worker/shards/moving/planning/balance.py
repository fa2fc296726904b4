"""Which tenants to move so that shards are about equally full, or so that one is empty. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of

EVEN_RATIO: Final = 1.1  # of the fullest shard to the mean: below, nothing is moved


class WeighedTenant(msgspec.Struct, frozen=True, order=True):
    """A tenant, the shard with its home, and its weight: rows, bytes or operations."""

    business_id: str
    location_id: str
    shard_id: str
    weight: int = 1

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


def plan_balance(tenants: Iterable[WeighedTenant], shard_ids: Sequence[str]) -> list[PlannedTransfer]:
    """Return the moves that make the shards about equally full, by weight; few moves, of large tenants first.

    Always from the fullest shard to the emptiest, the largest tenant that makes the other no fuller than the one.
    """
    by_shard: defaultdict[str, list[WeighedTenant]] = defaultdict(list)
    for tenant in sorted(tenants, key=lambda one: (-one.weight, one)):
        by_shard[tenant.shard_id].append(tenant)
    loads = {shard_id: sum(one.weight for one in by_shard[shard_id]) for shard_id in shard_ids}
    if not loads:
        return []
    mean = sum(loads.values()) / len(loads)
    plan: list[PlannedTransfer] = []
    while True:
        fullest = max(loads, key=lambda one: (loads[one], one))
        emptiest = min(loads, key=lambda one: (loads[one], one))
        gap = loads[fullest] - loads[emptiest]
        # A tenant that has moved stays: each one moves once at most.
        chosen = next((one for one in by_shard[fullest] if 0 < 2 * one.weight <= gap), None)
        if loads[fullest] <= EVEN_RATIO * mean or chosen is None:
            return plan
        by_shard[fullest].remove(chosen)
        loads[fullest] -= chosen.weight
        loads[emptiest] += chosen.weight
        plan.append(PlannedTransfer(chosen, emptiest))


def plan_drain(
    tenants: Iterable[WeighedTenant], rooms: Mapping[str, int]
) -> tuple[list[PlannedTransfer], list[WeighedTenant]]:
    """Return where the tenants of a shard are to go, and those for which there is no room.

    *rooms* are the other shards, each with the number of tenants that it has room for. The shard with the most room is
    next, so that they fill evenly.
    """
    heap = [(-room, shard_id) for shard_id, room in rooms.items() if room > 0]
    heapq.heapify(heap)
    plan: list[PlannedTransfer] = []
    homeless: list[WeighedTenant] = []
    for tenant in sorted(tenants, key=lambda one: (-one.weight, one)):
        if not heap:
            homeless.append(tenant)
            continue
        negative, shard_id = heapq.heappop(heap)
        plan.append(PlannedTransfer(tenant, shard_id))
        if negative < -1:
            heapq.heappush(heap, (negative + 1, shard_id))
    return plan, homeless


def leads_through(named: str | None, shard_id: str, left_for: Mapping[str, str]) -> bool:
    """Return whether the way to a tenant's home from the shard that is *named* for it leads through *shard_id*.

    *left_for* has the next shard by each one that the tenant has left.
    """
    place, passed = named, set[str]()
    while place is not None and place != shard_id and place not in passed:
        passed.add(place)
        place = left_for.get(place)
    return place == shard_id


def plan_by_name(
    tenants: Iterable[WeighedTenant], homes: Mapping[str, str], targets: Collection[str]
) -> list[PlannedTransfer]:
    """Return the moves to the shards that the map names for the tenants; only to *targets*.

    *homes* are the shards that the map names, by tenant id.
    """
    return [
        PlannedTransfer(tenant, home)
        for tenant in sorted(tenants)
        if (home := homes[tenant.tenant_id]) != tenant.shard_id and home in targets
    ]
