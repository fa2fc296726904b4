"""Tenants move to where the map places them, also those that were pinned when shards were added."""

from __future__ import annotations

import pytest

from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.transfers.moving.balance import PlannedTransfer, WeighedTenant, plan_by_map

NAMES = ["s1", "s2", "s3", "s4", "s5"]


def map_of(count: int, tenants: dict[str, str] | None = None, *, retired: tuple[str, ...] = ()) -> ShardMap:
    shards = [MappedShard(name, f"postgresql://u@h/{name}", retired=name in retired) for name in NAMES[:count]]
    return ShardMap(tuple(shards), tenants or {})


def placed(shard_map: ShardMap, count: int = 500) -> list[WeighedTenant]:
    names = map(str, range(count))
    return [WeighedTenant("b", name, shard_map.shard_of(f"b-{name}").shard_id) for name in names]


def plan(
    tenants: list[WeighedTenant],
    shard_map: ShardMap,
    *,
    left: tuple[tuple[str, str], ...] = (),
    keep_pins: bool = False,
) -> list[PlannedTransfer]:
    """Return the plan, with all shards as targets that are not retired."""
    targets = [shard.shard_id for shard in shard_map.shards if not shard.retired]
    return plan_by_map(tenants, shard_map, targets, left, keep_pins=keep_pins)


@pytest.mark.parametrize("pins_all", [True, False])
def test_tenants_that_were_pinned_when_a_shard_was_added_move_there_alone(pins_all: bool) -> None:  # noqa: FBT001
    tenants = placed(map_of(4))
    longer = map_of(5)
    pins = {
        one.tenant_id: one.shard_id
        for one in tenants
        if pins_all or longer.shard_of(one.tenant_id).shard_id != one.shard_id
    }

    moves = plan(tenants, map_of(5, pins))
    assert {one.target_id for one in moves} == {"s5"}
    assert 0.15 < len(moves) / len(tenants) < 0.25
    assert {one.tenant.tenant_id for one in moves} == {
        one.tenant_id for one in tenants if longer.shard_of(one.tenant_id).shard_id == "s5"
    }
    assert plan(tenants, map_of(5, pins), keep_pins=True) == []


def test_plan_goes_on_where_a_part_was_moved() -> None:
    tenants = placed(map_of(4))
    pins = {one.tenant_id: one.shard_id for one in tenants}
    first, *rest = plan(tenants, map_of(5, pins))
    del pins[first.tenant.tenant_id]
    moved = WeighedTenant(*first.tenant.names, first.target_id)
    now = [moved if one == first.tenant else one for one in tenants]
    assert plan(now, map_of(5, pins)) == rest


def test_shards_that_were_added_one_after_the_other_are_filled_together() -> None:
    tenants = placed(map_of(2))
    moves = plan(tenants, map_of(4, {one.tenant_id: one.shard_id for one in tenants}))
    assert {one.target_id for one in moves} == {"s3", "s4"}
    assert 0.4 < len(moves) / len(tenants) < 0.6


def test_tenant_that_was_pinned_by_hand_stays() -> None:
    longer = map_of(5)
    places = {shard.shard_id: place for place, shard in enumerate(longer.shards)}
    for one in placed(longer, 200):
        earlier = {shard.shard_id for shard in longer.possible_homes(one.tenant_id)}
        for home in NAMES:
            if home == one.shard_id:
                continue
            tenant = WeighedTenant(*one.names, home)
            pinned = map_of(5, {one.tenant_id: home})
            moves = [move.target_id for move in plan([tenant], pinned)]
            is_growth = home in earlier and places[home] < places[one.shard_id]
            assert moves == ([one.shard_id] if is_growth else [])
            assert plan([tenant], pinned, left=((one.tenant_id, one.shard_id),)) == []
            assert [move.target_id for move in plan([tenant], longer)] == [one.shard_id]


def test_tenant_that_is_pinned_to_another_shard_moves_there() -> None:
    tenant = WeighedTenant("b", "1", "s1")
    for keep_pins in (True, False):
        moves = plan([tenant], map_of(3, {"b-1": "s2"}), keep_pins=keep_pins)
        assert [one.target_id for one in moves] == ["s2"]
        assert plan([tenant], map_of(3, {"b-1": "s2"}, retired=("s2",)), keep_pins=keep_pins) == []


def test_map_is_followed_to_the_given_shards_only() -> None:
    tenants = [WeighedTenant(*one.names, "s1") for one in placed(map_of(3), 60)]
    moves = plan_by_map(tenants, map_of(3), ["s3"], ())
    assert {one.target_id for one in moves} == {"s3"}
    assert len(moves) == sum(one.shard_id == "s3" for one in placed(map_of(3), 60))
