from __future__ import annotations

import pytest

from simplu_worker.fairness import OVER_SHARE_S, WAITS_MAX, find_over_share, turns_of

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
    assert find_over_share(costs_s, {}, active_count=active_count, turns=turns) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, "a"), ({"a": 0.1}, "a"), ({"a": 3.0}, None), ({"a": 10.0}, None), ({"b": 0.05}, "b"), ({"b": 10.0}, "a")],
)
def test_tenant_over_the_share_that_its_weight_gives_it(weights: dict[str, float], expected: str | None) -> None:
    assert find_over_share({"a": 4.0, "b": 0.8}, weights, active_count=2, turns=1) == expected


def test_few_of_many_lanes_count() -> None:
    assert [turns_of(count) for count in (0, 1, 31)] == [1, 2, 1 + WAITS_MAX]
