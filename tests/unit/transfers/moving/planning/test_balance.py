"""Plans of moves: about equally full shards, and an empty one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.transfers.moving.balance import (
    EVEN_RATIO,
    NO_LIMIT,
    ShardRoom,
    WeighedTenant,
    plan_balance,
    plan_drain,
    rooms_of,
)

SHARDS = ["a", "b", "c"]
ALIKE = [ShardRoom(name) for name in SHARDS]
TENANTS = st.lists(st.tuples(st.sampled_from(SHARDS), st.integers(0, 1000)), max_size=30).map(
    lambda drawn: [WeighedTenant(str(number), "l", shard, weight) for number, (shard, weight) in enumerate(drawn)]
)


def loads_of(tenants: list[WeighedTenant], plan: list[tuple[WeighedTenant, str]] | None = None) -> Counter[str]:
    """Return the weight of each shard, after the moves of a plan."""
    moved = {one.tenant_id: target for one, target in plan or ()}
    loads: Counter[str] = Counter(dict.fromkeys(SHARDS, 0))
    for one in tenants:
        loads[moved.get(one.tenant_id, one.shard_id)] += one.weight
    return loads


def share_of(load: int, capacity: int) -> float:
    return load / capacity if capacity else float("inf") if load else 0.0


def test_full_shard_gives_to_a_new_one() -> None:
    tenants = [WeighedTenant("b", str(number), "a", weight) for number, weight in enumerate([50, 30, 20, 10, 10])]
    plan = plan_balance(tenants, ALIKE[:2])
    assert [(one.tenant.weight, one.target_id) for one in plan] == [(50, "b"), (10, "b")]


@given(TENANTS)
def test_balance_makes_no_shard_fuller_than_the_fullest_was(tenants: list[WeighedTenant]) -> None:
    plan = [(one.tenant, one.target_id) for one in plan_balance(tenants, ALIKE)]
    before, after = loads_of(tenants), loads_of(tenants, plan)
    assert len({one.tenant_id for one, _ in plan}) == len(plan)
    assert max(after.values()) <= max(before.values())
    assert min(after.values()) >= min(before.values())
    assert all(one.shard_id != target for one, target in plan)


@given(TENANTS)
def test_even_shards_are_left_alone(tenants: list[WeighedTenant]) -> None:
    loads = loads_of(tenants)
    if max(loads.values()) <= EVEN_RATIO * sum(loads.values()) / len(loads):
        assert plan_balance(tenants, ALIKE) == []


@given(st.integers(0, 30), st.dictionaries(st.sampled_from(["b", "c", "d"]), st.integers(-3, 12)))
def test_drain_fills_no_shard_beyond_its_room(count: int, rooms: dict[str, int]) -> None:
    tenants = [WeighedTenant(str(number), "l", "a") for number in range(count)]
    plan, homeless = plan_drain(tenants, [ShardRoom(name, room=room) for name, room in rooms.items()])
    room = sum(max(0, one) for one in rooms.values())
    assert (len(plan), len(homeless)) == (min(count, room), max(0, count - room))
    filled = Counter(one.target_id for one in plan)
    assert all(filled[name] <= rooms[name] for name in filled)


def test_second_shard_gives_where_the_fullest_one_has_nothing_to_give() -> None:
    tenants = [WeighedTenant("b", "large", "a", 1000), *(WeighedTenant("b", str(one), "b", 50) for one in range(10))]
    plan = plan_balance(tenants, [*ALIKE, ShardRoom("d")])
    assert {one.tenant.shard_id for one in plan} == {"b"}
    assert loads_of(tenants, [(one.tenant, one.target_id) for one in plan]).keys() >= {"a", "b", "c", "d"}


def test_settled_tenants_stay_and_count() -> None:
    tenants = [WeighedTenant("b", str(number), "a") for number in range(4)]
    plan = plan_balance(tenants, ALIKE[:2], settled={"b-0", "b-1", "b-2"})
    assert [(one.tenant.tenant_id, one.target_id) for one in plan] == [("b-3", "b")]


@pytest.mark.parametrize(
    ("capacities", "counts", "moved"),
    [
        # A full shard beside a small and a large one: each is used by the same share.
        ({"a": 10, "b": 2, "c": 20}, {"a": 10, "b": 0, "c": 0}, {"b": 1, "c": 6}),
        ({"a": 10, "b": 10, "c": 10}, {"a": 9, "b": 0, "c": 0}, {"b": 3, "c": 3}),
        # Alike by number, and not by share.
        ({"a": 10, "b": 100, "c": 100}, {"a": 10, "b": 10, "c": 10}, {"b": 4, "c": 4}),
        # By share they are alike.
        ({"a": 10, "b": 20, "c": 40}, {"a": 5, "b": 10, "c": 20}, {}),
        # A shard that is to have none.
        ({"a": 0, "b": 10, "c": 10}, {"a": 4, "b": 0, "c": 0}, {"b": 2, "c": 2}),
    ],
)
def test_tenants_are_balanced_by_capacity(
    capacities: dict[str, int], counts: dict[str, int], moved: dict[str, int]
) -> None:
    addresses = [ShardAddress(name, "", business_count=counts[name], business_max=capacities[name]) for name in SHARDS]
    tenants = [WeighedTenant(f"{name}{number}", "l", name) for name in SHARDS for number in range(counts[name])]
    plan = plan_balance(tenants, rooms_of(addresses, {}, {}, by_capacity=True), by_business=True)
    assert Counter(one.target_id for one in plan) == moved


@given(
    TENANTS,
    st.lists(st.tuples(st.integers(0, 40), st.integers(-3, 12)), min_size=3, max_size=3),
)
def test_balance_fills_no_shard_beyond_its_room_or_the_fullest_share(
    tenants: list[WeighedTenant], limits: list[tuple[int, int]]
) -> None:
    rooms = [ShardRoom(name, capacity, room) for name, (capacity, room) in zip(SHARDS, limits, strict=True)]
    plan = [(one.tenant, one.target_id) for one in plan_balance(tenants, rooms)]
    assert len({one.tenant_id for one, _ in plan}) == len(plan)
    came = Counter(target for _, target in plan)
    assert all(count <= limits[SHARDS.index(name)][1] for name, count in came.items())
    before, after = loads_of(tenants), loads_of(tenants, plan)
    shares = [
        [share_of(loads[name], capacity) for name, (capacity, _) in zip(SHARDS, limits, strict=True)]
        for loads in (before, after)
    ]
    assert max(shares[1]) <= max(shares[0])


def test_room_is_what_citrus_leaves_beside_those_that_are_coming() -> None:
    addresses = [
        ShardAddress("a", "", business_count=7, business_max=10),
        ShardAddress("b", "", business_count=1, business_max=30),
        ShardAddress("c", ""),
    ]
    there, coming = {"a": "vwxyz", "b": "xyz"}, {"b": "uvz", "c": "x"}
    assert rooms_of(addresses, there, coming, by_capacity=True) == [
        ShardRoom("a", 10, 3, frozenset("vwxyz")),
        ShardRoom("b", 30, 25, frozenset("uvxyz")),
        ShardRoom("c", 20, NO_LIMIT - 1, frozenset("x")),
    ]
    assert [one.capacity for one in rooms_of(addresses, there, coming, by_capacity=False)] == [1, 1, 1]


def test_location_needs_no_room_where_its_business_is() -> None:
    tenants = [WeighedTenant(business, str(number), "a") for business in "xyz" for number in range(3)]
    shards = [ShardRoom("b", room=1, businesses=frozenset("y"))]

    plan, homeless = plan_drain(tenants, shards)
    balanced = plan_balance(tenants, [ShardRoom("a"), *shards])

    assert Counter(one.tenant.business_id for one in plan) == {"x": 3, "y": 3}
    assert {one.business_id for one in homeless} == {"z"}
    assert Counter(one.tenant.business_id for one in balanced) == {"x": 3, "y": 1}


@pytest.mark.parametrize(
    ("there", "settled", "second_type", "moved"),
    [
        ({"a": "uuuuuuxyz"}, (), "t", {"u": "b", "x": "c"}),  # however many locations each has
        ({"a": "uux", "b": "u", "c": "y"}, (), "t", {"u": "b"}),  # one that is there already weighs nothing
        ({"a": "uuxy"}, ("u-a1",), "t", {"x": "b", "y": "c"}),
        ({"a": "uuxy"}, (), "s", {"x": "b", "y": "c"}),  # a location has a type that only its shard has
        ({"a": "uuuuuu"}, (), "t", {}),
    ],
)
def test_businesses_are_balanced_whole(
    there: dict[str, str], settled: tuple[str, ...], second_type: str, moved: dict[str, str]
) -> None:
    tenants = [
        WeighedTenant(business, f"{shard_id}{number}", shard_id, 1, second_type if number == 1 else "t")
        for shard_id, businesses in there.items()
        for number, business in enumerate(businesses)
    ]
    rooms = [ShardRoom(name, businesses=frozenset(there.get(name, ()))) for name in SHARDS]
    plan = plan_balance(tenants, rooms, settled=settled, types={"a": "ts", "b": "t", "c": "t"}, by_business=True)
    expected = {(one, moved[one.business_id]) for one in tenants if one.shard_id == "a" and one.business_id in moved}
    assert sorted((one.tenant, one.target_id) for one in plan) == sorted(expected)
