from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.fairness import (
    OVER_SHARE_S,
    SHARE_S,
    WAITS_MAX,
    ShardTime,
    divide,
    find_behind,
    find_excess,
    find_over_share,
    turns_of,
)

LATE_S = OVER_SHARE_S
SOME_LISTS = {f"t{number}": 0.001 for number in range(100)} | {f"list-{number}": 0.03 for number in range(5)}


@pytest.mark.parametrize(
    ("costs_s", "active_count", "turns", "expected"),
    [
        pytest.param({}, 5, 1, None, id="nothing is queued"),
        pytest.param({"a": 9.0}, 1, 1, None, id="alone"),
        pytest.param({"a": 9.0}, 2, 1, "a", id="others were here lately"),
        pytest.param({"a": 0.0, "b": 0.0}, 2, 1, None, id="what is queued costs nothing"),
        pytest.param({"a": 0.9, "b": 9.0, "c": 0.1}, 3, 1, "b", id="the furthest"),
        pytest.param({"a": LATE_S - 0.01, "b": 0.0}, 2, 1, None, id="the shard takes it soon"),
        pytest.param({"a": LATE_S, "b": 0.0}, 2, 1, "a", id="it takes just so long"),
        pytest.param({"a": LATE_S - 0.01, "b": 0.0}, 2, 2, "a", id="not where another lane comes between"),
        pytest.param({"a": 1.0, "b": 0.6}, 2, 1, None, id="the other has about as much"),
        pytest.param({"a": 3.0, "b": 1.0}, 2, 1, None, id="a quarter is the other's"),
        pytest.param({"a": 4.0, "b": 1.0}, 2, 1, "a", id="a fifth is the other's"),
        pytest.param({"a": 1.0, "b": 0.25}, 4, 1, "a", id="two more have nothing"),
        pytest.param({"a": 0.07, "b": 0.08, "c": 0.07, "d": 0.001}, 10, 1, "b", id="together they are late"),
        pytest.param({"a": 0.05, "b": 0.05, "c": 0.05, "d": 0.06}, 10, 1, "d", id="four of ten"),
        pytest.param({"a": 0.2, "b": 0.1, "c": 0.01}, 3, 1, "a", id="two of three"),
        pytest.param({"a": 0.3, "b": 0.3, "c": 0.3}, 4, 1, None, id="most of them"),
        pytest.param(dict.fromkeys("abcde", 0.3), 40, 1, None, id="five of many"),
        pytest.param(SOME_LISTS, 105, 4, None, id="a backlog of all, with lists of some"),
    ],
)
def test_tenant_over_its_share(costs_s: dict[str, float], active_count: int, turns: int, expected: str | None) -> None:
    assert find_over_share(costs_s, costs_s, active_count=active_count, turns=turns) == expected
    by_business = {one: {f"{one}-l": cost_s} for one, cost_s in costs_s.items()}
    counts = {str(number): 1 for number in range(active_count)}
    excess = find_excess(by_business, ShardTime(), active_counts=counts, turns=turns)
    assert excess.keys() <= {f"{expected}-l"}


@pytest.mark.parametrize("level", ["businesses", "their locations", "locations of one business"])
@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, "a"), ({"a": 0.1}, "a"), ({"a": 3.0}, None), ({"a": 10.0}, None), ({"b": 0.05}, "b"), ({"b": 10.0}, "a")],
)
def test_over_the_share_that_a_weight_gives(weights: dict[str, float], expected: str | None, level: str) -> None:
    time, costs_s = ShardTime(), {"a": {"a-1": 3.0, "a-2": 1.0}, "b": {"b-1": 0.8}}
    by_tenant = {tenant_id: weights.get(one, 1.0) for one, own in costs_s.items() for tenant_id in own}
    time.note_weights(*(({}, weights) if level == "businesses" else (by_tenant, {})))
    if level == "locations of one business":
        time.note_weights(weights, {})
        excess = find_excess({"x": {"a": 4.0, "b": 0.8}}, time, active_counts={"x": 2}, turns=1)
        assert excess == ({} if expected is None else {expected: SHARE_S})
    else:
        excess = find_excess(costs_s, time, active_counts={"a": 2, "b": 1}, turns=1)
        assert {tenant_id[0] for tenant_id in excess} == ({expected} if expected else set())
        assert sum(excess.values()) == (pytest.approx(SHARE_S) if expected else 0.0)


@pytest.mark.parametrize("location_count", [1, 5, 20, 100])
def test_flooding_business_is_named_whatever_its_locations(location_count: int) -> None:
    flood = {f"chain-{number}": 3.0 / location_count for number in range(location_count)}
    costs_s = {"chain": flood | {"chain-calm": 0.0001}} | {f"q{number}": {f"q{number}-l": 0.02} for number in range(9)}
    counts = {one: len(own) for one, own in costs_s.items()}
    for turns in (1, 4):
        excess = find_excess(costs_s, ShardTime(), active_counts=counts, turns=turns)
        assert excess.keys() == flood.keys()
        assert sum(excess.values()) == pytest.approx(SHARE_S / turns - 0.0001)
    assert find_excess({"chain": flood}, ShardTime(), active_counts={"chain": 1}, turns=1) == {}


names = st.sampled_from("abcdefgh")


@given(
    total_s=st.floats(0, 100),
    wanted_s=st.dictionaries(names, st.floats(0, 100), max_size=8),
    weights=st.dictionaries(names, st.floats(0.1, 10)),
)
def test_parts_are_what_each_wants_or_as_much_as_others_have(
    total_s: float, wanted_s: dict[str, float], weights: dict[str, float]
) -> None:
    parts = divide(total_s, wanted_s, weights)
    assert parts.keys() == wanted_s.keys()
    assert sum(parts.values()) == pytest.approx(min(total_s, sum(wanted_s.values())))
    short = [one for one in parts if parts[one] < wanted_s[one]]
    for one in short:
        for other in parts:
            assert parts[other] / weights.get(other, 1.0) <= parts[one] / weights.get(one, 1.0) * (1 + 1e-9) + 1e-9


def test_what_is_late_is_beyond_the_parts_of_businesses_and_of_their_locations() -> None:
    time = ShardTime()
    time.note_weights({"a-2": 3.0}, {"b": 2.0})
    costs_s = {"a": {"a-1": 5.0, "a-2": 5.0}, "b": {"b-1": 5.0}, "c": {"c-1": 0.1, "c-2": 0.0}}
    assert find_behind(costs_s, time, 0.4) == pytest.approx({"a-1": 0.025, "a-2": 0.075, "b-1": 0.2})
    assert find_behind(costs_s, time, 100.0) == {}


def test_few_of_many_lanes_count() -> None:
    assert [turns_of(count) for count in (0, 1, 31)] == [1, 2, 1 + WAITS_MAX]
