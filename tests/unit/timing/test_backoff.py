"""Intervals between tries and turns."""

from __future__ import annotations

import pytest

from simplu_worker.timing.backoff import jittered


def test_jitter_is_a_part_of_the_interval_to_either_side() -> None:
    expected = [8.0, 10.0, 12.0]

    assert [jittered(10.0, ratio=0.2, draw=draw) for draw in (0.0, 0.5, 1.0)] == pytest.approx(expected)
