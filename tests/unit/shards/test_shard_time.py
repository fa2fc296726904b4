"""What operations cost a shard: learned from transactions alone, and charged to the tenant that causes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queued_operations import queued_operation

from simplu_worker import fairness
from simplu_worker.fairness import (
    CALM_BATCH_S,
    CALM_TURN_S,
    CHANGE_MAX,
    COST_MAX_S,
    COST_MIN_S,
    FIRST_BYTE_S,
    FIRST_COST_S,
    FIRST_LIST_S,
    FLOOD_S,
    TURN_MIN_S,
    TURN_S,
    Demand,
    ShardTime,
)
from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import OperationKind

FIXED_S = 0.005
TrueCosts: TypeAlias = Mapping[tuple[str, OperationKind], float]
CREATE, LIST = OperationKind.CREATE, OperationKind.LIST


def operation(tenant_id: str, kind: OperationKind = CREATE, size_bytes: int = 100) -> Operation:
    return msgspec.structs.replace(queued_operation(tenant_id).operation, kind=kind, size_bytes=size_bytes)


def run(time: ShardTime, operations: Sequence[Operation], costs: TrueCosts, *, byte_s: float = 0.0) -> None:
    took_s = sum(costs[one.tenant_id, one.kind] + byte_s * one.size_bytes for one in operations)
    time.note([Demand.of(operations)], FIXED_S + took_s)


HEAVY: TrueCosts = {("loud", LIST): 0.01, ("loud", CREATE): 0.0001, ("quiet", CREATE): 0.0001}


def test_heavy_lists_are_charged_to_their_tenant_alone() -> None:
    time, loud = ShardTime(), [operation("loud", LIST)] * 30 + [operation("loud")] * 60
    for _ in range(10):
        run(time, [*loud, *[operation("quiet")] * 5], HEAVY)

    assert time.batch_cost_s(Demand.of(loud)) == pytest.approx(0.306, rel=0.1)
    assert time.cost_s(operation("quiet")) < 0.0003
    assert time.cost_s(operation("new")) == pytest.approx(FIRST_COST_S, rel=0.1)


def test_heavy_kind_is_found_where_transactions_differ() -> None:
    time = ShardTime()
    for number in range(200):
        run(time, [operation("loud", LIST)] * (number % 7) + [operation("loud")] * 60, HEAVY)

    assert time.cost_s(operation("loud", LIST)) == pytest.approx(0.01, rel=0.2)
    assert time.cost_s(operation("loud")) < 0.0005


def test_cost_of_a_new_tenant_is_that_of_its_kind() -> None:
    time = ShardTime()
    for _ in range(20):
        run(time, [operation(f"t{number}") for number in range(500)], dict.fromkeys(_keys(500), 0.002))

    assert time.cost_s(operation("new")) == pytest.approx(0.002, rel=0.2)


def test_large_documents_cost_more_than_small_ones() -> None:
    time, costs = ShardTime(), {("a", CREATE): 0.0001}
    for number in range(200):
        run(time, [operation("a", size_bytes=100 if number % 2 else 200_000)] * 20, costs, byte_s=1e-8)

    assert time.cost_s(operation("a", size_bytes=200_000)) > 5 * time.cost_s(operation("a"))


@pytest.mark.parametrize(
    ("took_s", "change"), [(0.02, 2.0), (0.005, 0.5), (0.010, 1.0), (100.0, CHANGE_MAX), (0.0, 1 / CHANGE_MAX)]
)
def test_each_cost_is_corrected_in_proportion_to_its_part(took_s: float, change: float) -> None:
    time, one = ShardTime(), operation("a", LIST, size_bytes=100_000)
    time.note([Demand.of([one])], took_s)

    byte_s = FIRST_BYTE_S * change**0.2
    assert time.cost_s(one) == pytest.approx(FIRST_LIST_S * change**0.5 + 100_000 * byte_s)
    assert time.batch_cost_s(Demand.of([one, one])) == pytest.approx(2 * time.cost_s(one))
    assert time.cost_s(operation("new", LIST, size_bytes=1000)) == pytest.approx(FIRST_LIST_S + 1000 * byte_s)


def test_small_tenants_correct_the_cost_of_their_kind() -> None:
    time = ShardTime()
    time.note([Demand.of([operation(f"t{number}", size_bytes=0)]) for number in range(100)], 0.026)

    expected_s = FIRST_COST_S * 2 ** (10 / 13)
    assert time.cost_s(operation("t1", size_bytes=0)) == pytest.approx(expected_s)
    assert time.cost_s(operation("new", size_bytes=0)) == pytest.approx(expected_s)
    assert time.cost_s(operation("t1", LIST, size_bytes=0)) == FIRST_LIST_S


def test_tenant_with_a_large_part_has_a_cost_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "NOTED_SHARE", 0.5)
    time, one = ShardTime(), operation("a", LIST, size_bytes=100_000)
    time.note([Demand.of([one])], 0.02)
    assert time.cost_s(operation("new", LIST, size_bytes=0)) == FIRST_LIST_S


def test_only_weights_other_than_one_are_remembered() -> None:
    time = ShardTime()
    time.note_weights({"a": 2.0, "b": 0.5, "c": 1.0}, {"k": 2.0, "l": 1.0})
    assert (time.weights, time.business_weights) == ({"a": 2.0, "b": 0.5}, {"k": 2.0})
    time.note_weights({"a": 1.0, "b": 3.0}, {"k": 1.0})
    assert (time.weights, time.business_weights) == ({"b": 3.0}, {})


def test_many_small_transactions_say_nothing_about_an_operation() -> None:
    time = ShardTime()
    for _ in range(200):
        time.note([Demand.of([operation("a")])], 0.02)

    assert time.cost_s(operation("a")) < 0.005


def test_seconds_of_a_transaction_are_divided_among_its_tenants() -> None:
    time, loud, quiet = ShardTime(), [operation("loud", LIST)] * 30, [operation("quiet", size_bytes=50)] * 5
    for _ in range(10):
        run(time, [*loud, *quiet], HEAVY)

    time.take()

    time.note([Demand.of(loud), Demand.of([*quiet, operation("loud")])], 0.4)
    time.note([Demand.of([])], 0.1)
    taken = time.take()
    assert taken is time.last_took_s
    ((loud_s, quiet_s),) = [(own["loud"], own["quiet"]) for own in taken.values()]
    assert loud_s + quiet_s == pytest.approx(0.4)
    assert quiet_s < 0.01
    for _ in range(2):
        time.note([Demand.of(loud)], 0.2)
    assert [sum(own.values()) for own in time.take().values()] == [pytest.approx(0.4)]
    assert time.take() == {}


@pytest.mark.parametrize(
    ("waiting", "now", "is_shared", "batch_s", "turn_s"),
    [
        (0, 9.9, False, CALM_BATCH_S, CALM_TURN_S),
        (15, 9.9, True, TURN_S, CALM_TURN_S),
        (0, 10.0, False, TURN_S, TURN_S),
        (0, 10.0, True, TURN_S, TURN_S),
        (1, 10.0, False, TURN_S / 2, TURN_S),
        (15, 10.0, True, TURN_MIN_S, TURN_S),
        (15, 10.0 + FLOOD_S, False, CALM_BATCH_S, CALM_TURN_S),
    ],
    ids=["before", "several tenants", "flooded", "flooded, several", "one waits", "many wait", "after"],
)
def test_turns_are_short_while_a_tenant_may_flood_the_shard(
    waiting: int, now: float, batch_s: float, turn_s: float, *, is_shared: bool
) -> None:
    time = ShardTime()
    time.waiting_count += waiting
    if now >= 10.0:
        time.note_flood(10.0)
    assert (time.batch_s(now, is_shared=is_shared), time.turn_s(now)) == (batch_s, turn_s)


def test_batch_takes_several_times_an_empty_transaction() -> None:
    time = ShardTime()
    time.note_flood(0.0)
    for _ in range(100):
        time.note([Demand.of([operation("a")])], 0.08)
    assert 2 * TURN_S > time.batch_s(0.0, is_shared=False) > TURN_S
    assert time.turn_s(0.0) == time.batch_s(0.0, is_shared=True)
    time.waiting_count = 1
    assert time.batch_s(0.0, is_shared=True) == time.turn_s(0.0) / 2

    time.waiting_count = 0
    for _ in range(200):
        time.note([Demand.of([operation("a")])], 5.0)
    assert time.batch_s(0.0, is_shared=True) == CALM_BATCH_S


def test_transactions_that_stand_still_do_not_become_larger() -> None:
    time = ShardTime()
    time.note_flood(0.0)
    time.note([Demand.of([operation("a")])], 0.004)
    for _ in range(20):
        time.note([Demand.of([operation("loud", LIST)] * 20)], 0.3)
    assert time.turn_s(0.0) == TURN_S


def test_batches_between_two_of_a_lane_are_counted() -> None:
    time = ShardTime()
    assert time.batches_between == 0
    time.together_count = 3
    assert time.batches_between == 2
    time.waiting_count = 5
    assert time.batches_between == 5


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.sampled_from("abc"), st.sampled_from(list(OperationKind)), st.integers(0, 10**6)),
                max_size=20,
            ),
            st.floats(0, 10**4),
        )
    )
)
def test_costs_are_bounded_whatever_a_transaction_took(
    transactions: list[tuple[list[tuple[str, OperationKind, int]], float]],
) -> None:
    time = ShardTime()
    for parts, took_s in transactions:
        operations = [operation(*part) for part in parts]
        time.note([Demand.of(operations)], took_s)
        assert sum(sum(own.values()) for own in time.take().values()) == pytest.approx(took_s if operations else 0.0)
        for one in operations:
            assert COST_MIN_S <= time.cost_s(one) <= COST_MAX_S * (1 + one.size_bytes)


def test_only_the_last_tenants_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "TENANT_KINDS_MAX", 2)
    time = ShardTime()
    for tenant_id in ("a", "b", "c"):
        for _ in range(10):
            time.note([Demand.of([operation(tenant_id)] * 100)], 1.0)
    time.note([Demand.of([operation("d")] * 1000)], 0.1)  # and their kind costs little by now

    assert time.cost_s(operation("a")) == time.cost_s(operation("b")) == time.cost_s(operation("new"))
    assert time.cost_s(operation("c")) > 2 * FIRST_COST_S


@pytest.mark.parametrize(("measured", "remembered"), [("abac", [True, False, True]), ("abb", [True, True, False])])
def test_tenant_that_was_measured_again_is_one_of_the_last(
    monkeypatch: pytest.MonkeyPatch, measured: str, remembered: list[bool]
) -> None:
    monkeypatch.setattr(fairness, "TENANT_KINDS_MAX", 2)
    time = ShardTime()
    for tenant_id in measured:
        time.note([Demand.of([operation(tenant_id)] * 100)], 1.0)
    new_s = time.cost_s(operation("new"))

    assert [time.cost_s(operation(tenant_id)) > new_s for tenant_id in "abc"] == remembered


def _keys(count: int) -> list[tuple[str, OperationKind]]:
    return [(f"t{number}", CREATE) for number in range(count)]
