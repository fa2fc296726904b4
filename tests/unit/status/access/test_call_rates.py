"""The rate of calls of each peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.guard import PEERS_MAX, CallRates


def test_peer_may_call_in_a_burst_and_then_at_its_rate() -> None:
    rates = CallRates(per_s=2.0, burst=3)
    assert [rates.wait_s("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rates.wait_s("a", 0.25) == pytest.approx(0.25)
    assert rates.wait_s("b", 0.25) == 0.0
    assert rates.wait_s("a", 0.5) == 0.0
    assert [rates.wait_s("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@given(st.lists(st.floats(0.0, 2.0), max_size=60))
def test_calls_stay_within_the_rate(gaps_s: list[float]) -> None:
    rates, now, admitted = CallRates(per_s=1.0, burst=5), 0.0, 0
    for gap_s in gaps_s:
        now += gap_s
        admitted += rates.wait_s("a", now) == 0.0
        assert admitted <= 5 + now + 1e-6


def test_peers_are_forgotten_beyond_the_limit() -> None:
    rates = CallRates(per_s=0.001, burst=1)
    for number in range(PEERS_MAX):
        rates.wait_s(str(number), 0.0)
    assert rates.wait_s("0", 0.0) > 0
    rates.wait_s("new", 0.0)
    assert rates.wait_s("0", 0.0) > 0
    assert rates.wait_s("1", 0.0) == 0.0
