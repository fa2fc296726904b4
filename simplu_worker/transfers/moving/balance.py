"""Which tenants move where when shards are drained, balanced, filled by the map, or removed. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_map import ShardMap
from simplu_worker.shards.settling import Transfer
from simplu_worker.transfers.moving.types import LEAVING
from simplu_worker.vocabulary import TenantState, TransferStep

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

    Tenants of *businesses* need no room.
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
    """Return the room of each shard; with *by_capacity* one without a limit counts as one with the mean limit.

    *there* are the businesses of each shard; *coming* those on their way.
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

    Each is from the fullest shard with a fitting tenant to the emptiest with room: the largest tenant that makes the
    other no fuller than the one. The *settled* stay. *types* are the business types of each shard; without them all
    take all. *by_business* moves all locations of a business on a shard together; they weigh 1, or 0 where the target
    has it.
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
    """Return where the tenants of a shard are to go, and those for which there is no room on a shard with their type.

    The largest are first, each to the shard with the most room; without room to one with the tenant's business.
    """
    rooms = _Rooms(shards)
    free = {shard.shard_id: shard.room for shard in shards}
    plan: list[PlannedTransfer] = []
    homeless: list[WeighedTenant] = []
    for tenant in sorted(tenants, key=lambda one: (-one.weight, one)):
        fitting = [one for one in free if rooms.takes(tenant, one) and _has_type(tenant, one, types)]
        if not fitting:
            homeless.append(tenant)
            continue
        target_id = min(fitting, key=lambda one: (rooms.left[one] <= 0, -free[one], one))
        plan.append(PlannedTransfer(tenant, target_id))
        rooms.add(tenant, target_id)
        free[target_id] -= 1
    return plan, homeless


FoundTenant: TypeAlias = tuple[WeighedTenant, TenantState]
"""A tenant with the shard that has a row of it, and the state of that row."""


class BegunMove(msgspec.Struct, frozen=True):
    """A row of the journal of the shard *source_id*, of a move that has not ended."""

    tenant_id: str
    source_id: str
    target_id: str
    step: str  # a `TransferStep`, or one that only a newer mover knows


def sort_begun_moves(
    found: Sequence[FoundTenant], moves: Iterable[BegunMove], target_ids: Collection[str]
) -> tuple[list[PlannedTransfer], list[PlannedTransfer]]:
    """Return the *moves* that can end, those that have committed first, and those that can not.

    *target_ids* take tenants.
    """
    rows = {(one.tenant_id, one.shard_id): one for one, _ in found}
    homes: defaultdict[str, set[str]] = defaultdict(set)
    for one in homes_of(found):
        homes[one.tenant_id].add(one.shard_id)
    going_on: list[PlannedTransfer] = []
    stuck: list[PlannedTransfer] = []
    for move in sorted(moves, key=lambda move: (move.step != TransferStep.COMMITTED, move.tenant_id, move.source_id)):
        tenant, home_ids = rows.get((move.tenant_id, move.source_id)), homes[move.tenant_id]
        if tenant is None:
            continue
        if move.step == TransferStep.COMMITTED:
            if home_ids <= {move.target_id}:
                going_on.append(PlannedTransfer(tenant, move.target_id))
        elif move.source_id in home_ids:
            can_end = move.step == TransferStep.OPEN and move.target_id in target_ids
            (going_on if can_end else stuck).append(PlannedTransfer(tenant, move.target_id))
    return going_on, stuck


def homes_of(found: Iterable[FoundTenant]) -> list[WeighedTenant]:
    """Return the tenants on the shards that are their homes."""
    return [tenant for tenant, state in found if state in LEAVING]


def homes_after(homes: Iterable[WeighedTenant], expected: Iterable[PlannedTransfer]) -> list[WeighedTenant]:
    """Return the tenants on their homes once the moves of *expected* have ended."""
    moved = {one.tenant.tenant_id: one for one in expected}  # an open move comes after a committed one
    return [
        *(tenant for tenant in homes if tenant.tenant_id not in moved),
        *(msgspec.structs.replace(one.tenant, shard_id=one.target_id) for one in moved.values()),
    ]


NOT_COMMITTED = frozenset({TransferStep.OPEN, TransferStep.UNDOING})  # steps of the journal


class WayBack(msgspec.Struct, frozen=True):
    """The steps of a rollback, in this order; an empty one is left out."""

    undone: tuple[str, ...]  # the targets of moves that have not committed
    back_to: str | None = None  # the shard to move the tenant to
    is_unended: bool = False  # the move to its home has committed, and has no certificate: that has to end first


def way_back(
    home_id: str,
    copies: Iterable[str],
    *,
    came_from: str | None,
    last_departure: Transfer | None,
    last_move: Transfer | None,
    known: Collection[str],
    stay: bool = False,
) -> WayBack:
    """Return the steps of a rollback of a tenant with its home on *home_id*; *stay* moves it nowhere.

    *copies* are the shards to which it is moving, *came_from* the one that it left for its home. *last_departure* and
    *last_move* are the journals of the moves away from its home, and to it.
    """
    targets = set(copies)
    if last_departure is not None and last_departure.step in NOT_COMMITTED:
        targets |= {last_departure.place}.intersection(known)
    if stay:
        return WayBack(tuple(sorted(targets)))
    undone = tuple(sorted(targets - {came_from}))
    if came_from in targets:  # an earlier rollback was stopped
        return WayBack(undone, back_to=came_from)
    if undone:
        return WayBack(undone)
    if last_move is not None and last_move.step == TransferStep.COMMITTED and last_move.place == home_id:
        return WayBack((), is_unended=True)
    return WayBack((), back_to=came_from)


def plan_by_map(
    tenants: Iterable[WeighedTenant], shard_map: ShardMap, targets: Collection[str], left: Collection[tuple[str, str]]
) -> list[PlannedTransfer]:
    """Return the moves to the shards that the map names, only to *targets*.

    A tenant that was pinned because shards were added moves to the added one. *left* are tenants with shards that they
    have moved away from.
    """
    unpinned = shard_map.without_pins()
    places = {shard.shard_id: place for place, shard in enumerate(shard_map.shards)}

    def added_shard_of(tenant: WeighedTenant) -> str:
        tenant_id, home = tenant.tenant_id, tenant.shard_id
        hashed = unpinned.shard_of(tenant_id).shard_id
        if places[hashed] <= places[home] or (tenant_id, hashed) in left:
            return home
        return hashed if home in {shard.shard_id for shard in unpinned.possible_homes(tenant_id)} else home

    plan = []
    for tenant in sorted(tenants):
        named = shard_map.shard_of(tenant.tenant_id).shard_id
        if named == tenant.shard_id:
            named = added_shard_of(tenant)
        if named != tenant.shard_id and named in targets:
            plan.append(PlannedTransfer(tenant, named))
    return plan


LEFT = frozenset({TenantState.MOVED, TenantState.DESTROYED})


class TenantRows:
    """The rows of all tenants, as the shards have them."""

    def __init__(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self._states: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by tenant and shard
        self._left_for: defaultdict[str, dict[str, str]] = defaultdict(dict)  # the next shard, by tenant and shard
        for shard_id, row in rows:
            self._states[row["id"]][shard_id] = row["state"]
            if row["state"] == TenantState.MOVED:
                self._left_for[row["id"]][shard_id] = row["moved_to"]

    def on(self, shard_id: str) -> list[str]:
        """Return the tenants that have not left a shard."""
        return sorted(one for one in self._states if not self._has_left(one, shard_id))

    def elsewhere(self, shard_id: str) -> list[str]:
        """Return the tenants that live, or may live, on other shards, also without a row on *shard_id*."""
        return sorted(
            one
            for one, states in self._states.items()
            if self._has_left(one, shard_id) and any(state != TenantState.DESTROYED for state in states.values())
        )

    def led_through(self, shard_id: str, named: Mapping[str, str | None]) -> list[str]:
        """Return the tenants that are looked for on a shard; *named* is what the locator names for them."""
        return sorted(one for one, name in named.items() if leads_through(name, shard_id, self._left_for.get(one, {})))

    def _has_left(self, tenant_id: str, shard_id: str) -> bool:
        return self._states[tenant_id].get(shard_id, TenantState.MOVED) in LEFT


def leads_through(named: str | None, shard_id: str, left_for: Mapping[str, str]) -> bool:
    """Return whether the way to a tenant's home from the shard *named* for it leads through *shard_id*."""
    place, passed = named, set[str]()
    while place is not None and place != shard_id and place not in passed:
        passed.add(place)
        place = left_for.get(place)
    return place == shard_id


def describe_removal(staying: list[str], routed: list[str], unknown: list[str], error: str | None = None) -> list[str]:
    """Return why a shard has to be kept: tenants that are *staying*, *routed* there, or of which that is *unknown*."""
    reasons = []
    if staying:
        reasons.append(f"{len(staying)} tenants are still there, such as {staying[0]}: keep it")
    if routed:
        reasons.append(
            f"{len(routed)} tenants have left it, and are still looked for there, such as {routed[0]}: "
            "keep it until Citrus or the map names their new shards"
        )
    if unknown:
        reasons.append(
            f"where {len(unknown)} tenants are looked for is unknown, such as {unknown[0]}: {error}; "
            "keep it, and run the command again"
        )
    return reasons
