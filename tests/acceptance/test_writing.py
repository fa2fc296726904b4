"""What the row costs that each batch writes, on a small scale: `make bench-writing` tells it at full size."""

from __future__ import annotations

import json

import pytest
from acceptance.programs import run_program

pytestmark = pytest.mark.slow(6)

SMALL = ("--seconds", "0.5", "--rounds", "1", "--sizes", "1", "100", "--tenants", "10", "--writes", "100")


def test_benchmark_of_writing_tells_that_its_bounds_are_missed() -> None:
    """Both twins have the same in the end, the row is rewritten on its page, and a bound that is missed is told."""
    answer = json.loads(run_program("benchmarks.writing", *SMALL, "--least-ratio", "1000", "--json", status=1))

    assert answer["differences"] == []
    assert [bound["kept"] for bound in answer["bounds"]] == [False] * 2  # 100 operations, both ways to commit
    assert answer["row"]["updates"] >= 100
    assert answer["row"]["hot_updates"] >= 0.9 * answer["row"]["updates"]
