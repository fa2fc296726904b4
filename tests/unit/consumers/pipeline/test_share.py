"""Who has more than its share of a lane."""

from __future__ import annotations

import pytest

from simplu_worker.consumers.pipeline.share import OVER_SHARE_S, find_over_share


@pytest.mark.parametrize(
    ("costs_s", "active_count", "waiting_count", "expected"),
    [
        pytest.param({}, 5, 0, None, id="nothing is queued"),
        pytest.param({"a": 9.0}, 1, 0, None, id="alone"),
        pytest.param({"a": 9.0}, 2, 0, "a", id="others were here lately"),
        pytest.param({"a": 2.0, "b": 9.0, "c": 0.1}, 3, 0, "b", id="the furthest"),
        pytest.param({"a": OVER_SHARE_S - 0.01, "b": 0.0}, 2, 0, None, id="the shard takes it soon"),
        pytest.param({"a": OVER_SHARE_S, "b": 0.0}, 2, 0, "a", id="it takes just so long"),
        pytest.param({"a": OVER_SHARE_S - 0.01, "b": 0.0}, 2, 1, "a", id="not where another lane comes between"),
        pytest.param({"a": OVER_SHARE_S / 5, "b": 0.0}, 2, 31, None, id="a few lists, where many lanes are full"),
        pytest.param({"a": 1.0, "b": 0.6}, 2, 0, None, id="the other has about as much"),
        pytest.param({"a": 1.0, "b": 0.6}, 4, 0, "a", id="two more have nothing"),
    ],
)
def test_tenant_over_its_share(
    costs_s: dict[str, float], active_count: int, waiting_count: int, expected: str | None
) -> None:
    """It has twice what the others have on average, and they would wait OVER_SHARE_S for it."""
    found = find_over_share(costs_s, {}, active_count=active_count, waiting_count=waiting_count)
    assert found == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, "a"), ({"a": 0.1}, "a"), ({"a": 3.0}, None), ({"a": 10.0}, None), ({"b": 0.1}, "b"), ({"b": 10.0}, "a")],
)
def test_tenant_over_the_share_that_its_weight_gives_it(weights: dict[str, float], expected: str | None) -> None:
    """One with ten times the weight may have ten times as much queued."""
    found = find_over_share({"a": 4.0, "b": 0.8}, weights, active_count=2, waiting_count=0)
    assert found == expected
