"""Plans of moves: balanced shards, drained ones, moves that have begun, rollbacks, and removals."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.settling import Transfer
from simplu_worker.transfers.moving.balance import (
    EVEN_RATIO,
    NO_LIMIT,
    BegunMove,
    FoundTenant,
    PlannedTransfer,
    ShardRoom,
    TenantRows,
    WayBack,
    WeighedTenant,
    describe_removal,
    homes_after,
    homes_of,
    leads_through,
    plan_balance,
    plan_by_map,
    plan_drain,
    rooms_of,
    sort_begun_moves,
    way_back,
)
from simplu_worker.vocabulary import TenantState, TransferStep

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


def alike(**counts: int) -> list[WeighedTenant]:
    return [
        WeighedTenant(f"{name}{number}", "l", name, 1, "t") for name, count in counts.items() for number in range(count)
    ]


@pytest.mark.parametrize(
    ("tenants", "rooms", "targets"),
    [
        (alike(a=11, b=9), ALIKE[:2], []),  # even enough
        (alike(a=12, b=9), ALIKE[:2], ["b"]),
        (alike(a=4), [ShardRoom("a"), ShardRoom("b", room=1)], ["b"]),
        ([*alike(a=2), WeighedTenant("b", "none", "a", 0)], ALIKE[:2], ["b"]),  # one that weighs nothing stays
        ([*alike(a=1, b=1), WeighedTenant("b", "large", "z", 10)], ALIKE[:2], []),  # of a shard that nobody asked about
        (alike(a=6, b=50), [ShardRoom("a", 10), ShardRoom("b", 100), ShardRoom("c", 1, room=1)], []),
    ],
)
def test_balance_moves_what_makes_shards_even(
    tenants: list[WeighedTenant], rooms: list[ShardRoom], targets: list[str]
) -> None:
    assert [one.target_id for one in plan_balance(tenants, rooms)] == targets


def test_drain_knows_no_type_on_a_shard_that_did_not_say() -> None:
    (tenant,) = alike(a=1)
    plan, _ = plan_drain([tenant], [ShardRoom("b"), ShardRoom("c")], {"c": "t"})
    assert plan == [PlannedTransfer(tenant, "c")]


@given(st.integers(0, 30), st.dictionaries(st.sampled_from(["b", "c", "d"]), st.integers(-3, 12)))
def test_drain_fills_no_shard_beyond_its_room(count: int, rooms: dict[str, int]) -> None:
    tenants = [WeighedTenant(str(number), "l", "a") for number in range(count)]
    plan, homeless = plan_drain(tenants, [ShardRoom(name, room=room) for name, room in rooms.items()])
    room = sum(max(0, one) for one in rooms.values())
    assert (len(plan), len(homeless)) == (min(count, room), max(0, count - room))
    filled = Counter(one.target_id for one in plan)
    assert all(filled[name] <= rooms[name] for name in filled)


def test_drain_takes_the_shard_with_most_room_that_has_the_type() -> None:
    tenants = [WeighedTenant("b", str(one), "a", one, kind) for one, kind in enumerate("ttts")]
    rooms = [ShardRoom("b", room=2), ShardRoom("c", room=3), ShardRoom("d", room=0, businesses=frozenset("b"))]
    plan, homeless = plan_drain(tenants, rooms, {"b": "t", "c": "t", "d": "t"})
    assert [(one.tenant.location_id, one.target_id) for one in plan] == [("2", "c"), ("1", "b"), ("0", "c")]
    assert [one.location_id for one in homeless] == ["3"]


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


@given(TENANTS, st.lists(st.tuples(st.integers(0, 40), st.integers(-3, 12)), min_size=3, max_size=3))
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


def found(**states: str) -> list[FoundTenant]:
    """Return the rows of a tenant by shard; their weights are 10 on a, 20 on b and 30 on c."""
    weights = {"a": 10, "b": 20, "c": 30}
    return [(WeighedTenant("b", "l", name, weights[name]), TenantState(state)) for name, state in states.items()]


def transfer(source_id: str, target_id: str, weight: int) -> PlannedTransfer:
    return PlannedTransfer(WeighedTenant("b", "l", source_id, weight), target_id)


A_TO_B = [transfer("a", "b", 10)]


@pytest.mark.parametrize(
    ("rows", "target_id", "step", "going_on", "stuck"),
    [
        (found(a="active", b="incoming"), "b", "open", A_TO_B, []),
        (found(a="fenced", b="ready"), "b", "open", A_TO_B, []),
        (found(a="active"), "b", "open", A_TO_B, []),
        # Its target takes no more tenants, or a rollback has begun.
        (found(a="active"), "c", "open", [], [transfer("a", "c", 10)]),
        (found(a="active", b="incoming"), "b", "undoing", [], A_TO_B),
        # A tenant that has left its shard has one way only.
        (found(a="moved", b="ready"), "b", "committed", A_TO_B, []),
        (found(a="moved", b="active"), "b", "committed", A_TO_B, []),
        (found(a="moved"), "b", "committed", A_TO_B, []),
        (found(a="moved", c="active"), "c", "committed", [transfer("a", "c", 10)], []),
        # It has moved on, or was destroyed: nothing ends the move.
        (found(a="moved", b="moved", c="active"), "b", "committed", [], []),
        (found(a="destroyed", b="incoming"), "b", "open", [], []),
        (found(b="active"), "b", "open", [], []),
    ],
)
def test_move_that_has_begun(
    rows: list[FoundTenant], target_id: str, step: str, going_on: list[PlannedTransfer], stuck: list[PlannedTransfer]
) -> None:
    assert sort_begun_moves(rows, [BegunMove("b-l", "a", target_id, step)], {"a", "b"}) == (going_on, stuck)


def test_homes_are_those_after_the_moves_that_have_begun() -> None:
    rows = [
        *found(a="moved", b="ready"),
        (WeighedTenant("b", "2", "a", 1), TenantState.ACTIVE),
        (WeighedTenant("b", "3", "a", 1), TenantState.FENCED),
        (WeighedTenant("b", "3", "b", 1), TenantState.INCOMING),
        (WeighedTenant("b", "4", "a", 1), TenantState.DESTROYED),
    ]
    begun, _ = sort_begun_moves(
        rows,
        [BegunMove("b-l", "a", "b", TransferStep.COMMITTED), BegunMove("b-3", "a", "b", TransferStep.OPEN)],
        {"a", "b"},
    )
    assert [(one.tenant_id, one.shard_id) for one in homes_of(rows)] == [("b-2", "a"), ("b-3", "a")]
    after = homes_after(homes_of(rows), begun)
    assert [(one.tenant_id, one.shard_id, one.weight) for one in after] == [
        ("b-2", "a", 1),
        ("b-l", "b", 10),
        ("b-3", "b", 1),
    ]


def test_tenant_that_moves_twice_is_last_where_the_second_move_goes() -> None:
    rows = found(a="moved", b="active", c="incoming")
    moves = [BegunMove("b-l", "b", "c", TransferStep.OPEN), BegunMove("b-l", "a", "b", TransferStep.COMMITTED)]
    moves.insert(0, BegunMove("a-l", "a", "b", TransferStep.COMMITTED))  # of a tenant that has gone
    begun, stuck = sort_begun_moves(rows, moves, {"a", "b", "c"})
    assert (begun, stuck) == ([transfer("a", "b", 10), transfer("b", "c", 20)], [])
    assert [one.shard_id for one in homes_after(homes_of(rows), begun)] == ["c"]


NOW = datetime(2026, 11, 1, tzinfo=UTC)


def journal(target_id: str, step: str) -> Transfer:
    return Transfer(target_id, "1", step, 1, {}, NOW, NOW)


@pytest.mark.parametrize(
    ("copies", "came_from", "last_departure", "last_move", "way"),
    [
        # Nothing but a move that has ended.
        ((), "a", None, journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", None, None, WayBack((), back_to="a")),
        ((), None, None, None, WayBack(())),
        # A move that has not committed.
        (("c",), None, journal("c", "open"), None, WayBack(("c",))),
        (("c",), "a", journal("c", "open"), journal("b", "done"), WayBack(("c",))),
        (("c",), None, None, None, WayBack(("c",))),
        # The same before its copy has begun, or after it is gone.
        ((), "a", journal("c", "open"), journal("b", "done"), WayBack(("c",))),
        ((), "a", journal("c", "undoing"), journal("b", "done"), WayBack(("c",))),
        ((), "a", journal("c", "undone"), journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", journal("gone", "open"), journal("b", "done"), WayBack((), back_to="a")),
        # A move back that was stopped, also beside the copy of another move.
        (("a",), "a", journal("a", "open"), journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", journal("a", "open"), journal("b", "done"), WayBack((), back_to="a")),
        (("a", "c"), "a", journal("a", "open"), journal("b", "done"), WayBack(("c",), back_to="a")),
        # A move that has committed without a certificate has to end first.
        ((), "a", None, journal("b", "committed"), WayBack((), is_unended=True)),
        ((), "a", journal("a", "done"), journal("b", "committed"), WayBack((), is_unended=True)),
        ((), "a", None, journal("c", "committed"), WayBack((), back_to="a")),
        ((), "a", journal("a", "done"), journal("b", "done"), WayBack((), back_to="a")),
    ],
)
def test_steps(
    copies: tuple[str, ...],
    came_from: str | None,
    last_departure: Transfer | None,
    last_move: Transfer | None,
    way: WayBack,
) -> None:
    found = way_back(
        "b", copies, came_from=came_from, last_departure=last_departure, last_move=last_move, known=("a", "b", "c")
    )
    assert found == way


@pytest.mark.parametrize(("copies", "undone"), [((), ()), (("a",), ("a",)), (("c", "a"), ("a", "c"))])
def test_tenant_that_is_to_stay_is_moved_nowhere(copies: tuple[str, ...], undone: tuple[str, ...]) -> None:
    found = way_back(
        "b",
        copies,
        came_from="a",
        last_departure=None,
        last_move=journal("b", "committed"),
        known=("a", "b", "c"),
        stay=True,
    )
    assert found == WayBack(undone)


NAMES = ["s1", "s2", "s3", "s4", "s5"]


def map_of(count: int, tenants: dict[str, str] | None = None, *, retired: tuple[str, ...] = ()) -> ShardMap:
    shards = [MappedShard(name, f"postgresql://u@h/{name}", retired=name in retired) for name in NAMES[:count]]
    return ShardMap(tuple(shards), tenants or {})


def placed(shard_map: ShardMap, count: int = 500) -> list[WeighedTenant]:
    names = map(str, range(count))
    return [WeighedTenant("b", name, shard_map.shard_of(f"b-{name}").shard_id) for name in names]


def plan(
    tenants: list[WeighedTenant], shard_map: ShardMap, *, left: tuple[tuple[str, str], ...] = ()
) -> list[PlannedTransfer]:
    """Return the plan, with all shards as targets that are not retired."""
    targets = [shard.shard_id for shard in shard_map.shards if not shard.retired]
    return plan_by_map(tenants, shard_map, targets, left)


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
    moves = plan([tenant], map_of(3, {"b-1": "s2"}))
    assert [one.target_id for one in moves] == ["s2"]
    assert plan([tenant], map_of(3, {"b-1": "s2"}, retired=("s2",))) == []


def test_map_is_followed_to_the_given_shards_only() -> None:
    tenants = [WeighedTenant(*one.names, "s1") for one in placed(map_of(3), 60)]
    moves = plan_by_map(tenants, map_of(3), ["s3"], ())
    assert {one.target_id for one in moves} == {"s3"}
    assert len(moves) == sum(one.shard_id == "s3" for one in placed(map_of(3), 60))


def row(tenant_id: str, state: str, moved_to: str | None = None) -> dict[str, Any]:
    return {"id": tenant_id, "state": state, "moved_to": moved_to}


def test_way_to_a_home_from_the_shard_that_is_named() -> None:
    left_for = {"a": "b", "b": "c", "x": "y", "y": "x"}
    names = ["a", "b", "c", "z", None, "x"]
    assert [name for name in names if leads_through(name, "b", left_for)] == ["a", "b"]


def test_tenants_of_a_shard_and_those_that_live_elsewhere() -> None:
    rows = TenantRows(
        [
            ("a", row("t-home", "active")),
            ("a", row("t-coming", "incoming")),
            ("b", row("t-coming", "active")),
            ("a", row("t-left", "moved", "b")),
            ("b", row("t-left", "active")),
            ("b", row("t-other", "active")),
            ("a", row("t-gone", "destroyed")),
            ("b", row("t-gone", "destroyed")),
            ("a", row("t-made-again", "destroyed")),
            ("b", row("t-made-again", "active")),
        ]
    )
    assert rows.on("a") == ["t-coming", "t-home"]
    assert rows.elsewhere("a") == ["t-left", "t-made-again", "t-other"]


@pytest.mark.parametrize(("named", "routed"), [("a", True), ("b", False), ("c", True), ("d", False), (None, False)])
def test_tenant_that_is_looked_for_on_a_shard(named: str | None, routed: bool) -> None:  # noqa: FBT001
    rows = TenantRows([("c", row("t", "moved", "a")), ("a", row("t", "moved", "b")), ("b", row("t", "active"))])
    assert rows.led_through("a", {"t": named}) == (["t"] if routed else [])


def test_tenant_without_a_row_on_the_shard_may_be_looked_for_there() -> None:
    rows = TenantRows([("b", row("t", "active"))])
    assert rows.led_through("a", dict.fromkeys(rows.elsewhere("a"), "a")) == ["t"]


def test_verdict_has_each_reason() -> None:
    assert describe_removal([], [], []) == []
    kept_by = describe_removal(["t", "u"], ["v"], ["w"], "Citrus is away")
    assert [reason.partition(":")[0] for reason in kept_by] == [
        "2 tenants are still there, such as t",
        "1 tenants have left it, and are still looked for there, such as v",
        "where 1 tenants are looked for is unknown, such as w",
    ]
