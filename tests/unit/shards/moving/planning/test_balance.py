"""Plans of moves: about equally full shards, and an empty one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.moving.planning.balance import (
    EVEN_RATIO,
    WeighedTenant,
    leads_through,
    plan_balance,
    plan_by_name,
    plan_drain,
)

SHARDS = ["a", "b", "c"]
TENANTS = st.lists(st.tuples(st.sampled_from(SHARDS), st.integers(0, 1000)), max_size=30).map(
    lambda drawn: [WeighedTenant("b", str(number), shard, weight) for number, (shard, weight) in enumerate(drawn)]
)


def loads_of(tenants: list[WeighedTenant], plan: list[tuple[WeighedTenant, str]] | None = None) -> Counter[str]:
    """Return the weight of each shard, after the moves of a plan."""
    moved = {one.tenant_id: target for one, target in plan or ()}
    loads: Counter[str] = Counter(dict.fromkeys(SHARDS, 0))
    for one in tenants:
        loads[moved.get(one.tenant_id, one.shard_id)] += one.weight
    return loads


def test_full_shard_gives_to_a_new_one() -> None:
    """The largest tenants that fit, each once."""
    tenants = [WeighedTenant("b", str(number), "a", weight) for number, weight in enumerate([50, 30, 20, 10, 10])]
    plan = plan_balance(tenants, ["a", "b"])
    assert [(one.tenant.weight, one.target_id) for one in plan] == [(50, "b"), (10, "b")]


@given(TENANTS)
def test_balance_makes_no_shard_fuller_than_the_fullest_was(tenants: list[WeighedTenant]) -> None:
    """Each tenant moves once at most, and what is left cannot be made more even by one more."""
    plan = [(one.tenant, one.target_id) for one in plan_balance(tenants, SHARDS)]
    before, after = loads_of(tenants), loads_of(tenants, plan)
    assert len({one.tenant_id for one, _ in plan}) == len(plan)
    assert max(after.values()) <= max(before.values())
    assert min(after.values()) >= min(before.values())
    assert all(one.shard_id != target for one, target in plan)


@given(TENANTS)
def test_even_shards_are_left_alone(tenants: list[WeighedTenant]) -> None:
    """A tenth above the mean is even enough."""
    loads = loads_of(tenants)
    if max(loads.values()) <= EVEN_RATIO * sum(loads.values()) / len(loads):
        assert plan_balance(tenants, SHARDS) == []


@given(st.integers(0, 30), st.dictionaries(st.sampled_from(["b", "c", "d"]), st.integers(-3, 12)))
def test_drain_fills_no_shard_beyond_its_room(count: int, rooms: dict[str, int]) -> None:
    """Each tenant has a place, or is named as one without."""
    tenants = [WeighedTenant("b", str(number), "a") for number in range(count)]
    plan, homeless = plan_drain(tenants, rooms)
    room = sum(max(0, one) for one in rooms.values())
    assert (len(plan), len(homeless)) == (min(count, room), max(0, count - room))
    filled = Counter(one.target_id for one in plan)
    assert all(filled[name] <= rooms[name] for name in filled)


def test_map_is_followed_to_the_given_shards_only() -> None:
    """Tenants that are where the map has them stay; so do those that it has on another shard."""
    tenants = [WeighedTenant("b", name, "a") for name in ("1", "2", "3")]
    plan = plan_by_name(tenants, {"b-1": "a", "b-2": "b", "b-3": "retired"}, ["a", "b"])
    assert [(one.tenant.tenant_id, one.target_id) for one in plan] == [("b-2", "b")]


def test_way_to_a_home_from_the_shard_that_is_named() -> None:
    """A tenant has gone from a to b, and from there to c; a circle, made by hand, ends too."""
    left_for = {"a": "b", "b": "c", "x": "y", "y": "x"}
    names = ["a", "b", "c", "z", None, "x"]
    assert [name for name in names if leads_through(name, "b", left_for)] == ["a", "b"]
