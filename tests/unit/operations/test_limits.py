from __future__ import annotations

import pytest

from simplu_worker.operations.limits import NO_LIMIT, SAVED_MAX_S, WAIT_MAX_S, WAIT_S, Buckets, Limit

TEN = ("t", Limit(operations_per_s=10))
KILOBYTE = ("b", Limit(bytes_per_s=1000))


@pytest.mark.parametrize(
    ("saved_s", "limits", "applied_count", "wait_s", "spent_s"),
    [
        ({}, [TEN], 1, 0.1, {"t": (0.1, 0.0)}),
        ({"t": (0.25, 0.0)}, [TEN], 3, 0.05, {"t": (0.3, 0.0)}),
        ({"t": (99.0, 0.0)}, [TEN], 13, 0.05, {"t": (1.3, 0.0)}),
        ({"t": (-3.0, 0.0)}, [TEN], 0, 3.0, {}),
        ({"t": (-300.0, 0.0)}, [TEN], 0, WAIT_MAX_S - WAIT_S, {}),
        ({"t": (1.0, -9.0)}, [TEN], 11, 0.1, {"t": (1.1, 0.0)}),
        ({"b": (-9.0, 0.5)}, [KILOBYTE], 2, 0.3, {"b": (0.0, 0.8)}),
        ({"t": (1.0, 0.0), "b": (0.0, 0.1)}, [TEN, KILOBYTE], 1, 0.3, {"t": (0.1, 0.0), "b": (0.0, 0.4)}),
    ],
)
def test_operations_go_while_no_bucket_owes(
    saved_s: dict[str, tuple[float, float]],
    limits: list[tuple[str, Limit]],
    applied_count: int,
    wait_s: float,
    spent_s: dict[str, tuple[float, float]],
) -> None:
    buckets = Buckets(saved_s)
    taken = [buckets.take(limits, 400) for _ in range(20)]
    assert taken[:applied_count] == [None] * applied_count
    assert taken[applied_count:] == pytest.approx([WAIT_S + wait_s] * (20 - applied_count))
    assert buckets.spent_s.keys() == spent_s.keys()
    assert all(buckets.spent_s[one] == pytest.approx(spent) for one, spent in spent_s.items())


def test_without_a_limit_nothing_waits() -> None:
    assert (SAVED_MAX_S, [bool(one) for _, one in (TEN, KILOBYTE, ("", NO_LIMIT))]) == (1.25, [True, True, False])
    assert Buckets({}).take([], 400) is None
