from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.operations.limits import HELD_MAX_S, IDLE_MAX_S, LATE_S, NO_LIMIT, WAIT_MAX_S, WAIT_S, Buckets, Limit

TEN = ("t", Limit(operations_per_s=10))
KILOBYTE = ("b", Limit(bytes_per_s=1000))


@pytest.mark.parametrize(
    ("rows", "limits", "applied_count", "wait_s", "added_s"),
    [
        ([], [], 20, None, {}),
        ([], [TEN], 6, 0.1, {"t": (0.1, -0.5)}),
        ([("t", 0.25, 0.0, None)], [TEN], 3, 0.05, {"t": (0.3, 0.0)}),
        ([("t", 99.0, 0.5, LATE_S + 0.01)], [TEN], 6, 0.1, {"t": (99.1, 0.0)}),
        ([("t", 99.0, 7.0, LATE_S)], [TEN], 20, None, {"t": (98.5, 4.5)}),
        ([("t", -3.0, 0.0, None)], [TEN], 0, 3.0, {"t": (0.0, 0.0)}),
        ([("t", -300.0, 0.0, -9.0)], [TEN], 0, WAIT_MAX_S - WAIT_S, {"t": (0.0, 0.0)}),
        ([("t", 0.5, -9.0, None)], [TEN], 6, 0.1, {"t": (0.6, 0.0)}),
        ([("b", -9.0, 0.5, None)], [KILOBYTE], 2, 0.3, {"b": (0.0, 0.8)}),
        ([("b", 9.0, 0.1, None)], [TEN, KILOBYTE], 1, 0.3, {"t": (-0.4, -0.5), "b": (8.5, 0.4)}),
    ],
)
def test_operations_go_while_no_bucket_owes(
    rows: list[tuple[str, float, float, float | None]],
    limits: list[tuple[str, Limit]],
    applied_count: int,
    wait_s: float | None,
    added_s: dict[str, tuple[float, float]],
) -> None:
    buckets = Buckets(rows)
    taken = [buckets.take(limits, 400) for _ in range(20)]
    assert taken[:applied_count] == [None] * applied_count
    assert taken[applied_count:] == pytest.approx([WAIT_S + (wait_s or 0.0)] * (20 - applied_count))
    targets, *columns = buckets.changes() or [[], [], [], []]
    assert dict(zip(targets, zip(*(map(float, one) for one in columns), strict=True), strict=True)) == {
        target: pytest.approx((*both, 0.0 if wait_s is None else WAIT_S + wait_s)) for target, both in added_s.items()
    }


@given(st.sampled_from([TEN, KILOBYTE]), st.lists(st.floats(0.01, HELD_MAX_S), min_size=1, max_size=40))
def test_what_waits_loses_nothing_and_idleness_saves_little(limited: tuple[str, Limit], gaps_s: list[float]) -> None:
    now, taken_s, times, held_until = 0.0, 0.0, [-60.0, -60.0], -50.0
    for gap_s in [0.0, *gaps_s]:
        now += gap_s
        buckets = Buckets([(limited[0], now - times[0], now - times[1], now - held_until)])
        while buckets.take([limited], 100) is None:
            taken_s += 0.1
        _, *columns = buckets.changes()
        *added_s, wait_s = (float(one) for (one,) in columns)
        times, held_until = [at + one for at, one in zip(times, added_s, strict=True)], now + wait_s
    assert now <= taken_s + 1e-6 <= now + IDLE_MAX_S + 0.1 + 1e-5


def test_what_is_held_stays_noted_if_another_operation_goes() -> None:
    buckets = Buckets([("t", -1.0, 0.5, None)])
    assert [buckets.take([("t", limit)], 400) for _, limit in (TEN, KILOBYTE)] == [1.0 + WAIT_S, None]
    assert buckets.changes() == [["t"], ["0.0"], ["0.4"], ["1.25"]]


def test_without_a_limit_nothing_is_limited() -> None:
    assert [bool(one) for _, one in (TEN, KILOBYTE, ("", NO_LIMIT))] == [True, True, False]
