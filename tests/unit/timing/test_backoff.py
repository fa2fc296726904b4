"""Intervals between tries and turns."""

from __future__ import annotations

import pytest

from simplu_worker.timing.waits import Pacer, jittered


def test_jitter_is_a_part_of_the_interval_to_either_side() -> None:
    expected = [8.0, 10.0, 12.0]

    assert [jittered(10.0, ratio=0.2, draw=draw) for draw in (0.0, 0.5, 1.0)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([(0.0, 100)], [1.0]),
        ([(0.0, 100), (0.5, 100)], [1.0, 1.5]),
        ([(0.0, 100), (5.0, 100)], [1.0, 1.0]),
        ([(0.0, 50), (0.5, 50), (1.0, 50)], [0.5, 0.5, 0.5]),
    ],
)
def test_pause_keeps_the_pace_of_all_connections(pages: list[tuple[float, int]], expected: list[float]) -> None:
    pace = Pacer(100.0)

    assert [pace.pause_s(count, now=now) for now, count in pages] == expected
    assert Pacer(None).pause_s(10**9, now=0.0) == 0.0
