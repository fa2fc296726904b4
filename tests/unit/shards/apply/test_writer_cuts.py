"""Where a batch is cut to find the operation that makes it fail."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.apply.writer import cut_points


@pytest.mark.parametrize(
    ("suspects", "is_timeout", "expected"),
    [
        ([0, 1], False, [1]),
        ([3, 7, 8, 9], False, [8]),
        ([0, 1], True, [0, 1, 2]),
        ([3, 7], True, [3, 4, 7, 8]),
    ],
)
def test_cuts_halve_the_suspects_or_part_each_after_a_timeout(
    suspects: list[int], expected: list[int], *, is_timeout: bool
) -> None:
    """Halving costs the deadline again at each step; one by one costs it once for each culprit."""
    assert cut_points(suspects, is_timeout=is_timeout) == expected


@given(suspects=st.sets(st.integers(0, 30), min_size=2), is_timeout=st.booleans())
def test_cuts_leave_fewer_suspects_in_every_part(suspects: set[int], *, is_timeout: bool) -> None:
    """So the search ends; after a timeout every suspect is alone."""
    parts = pairwise([0, *cut_points(sorted(suspects), is_timeout=is_timeout), 31])
    counts = [len(suspects & set(range(start, end))) for start, end in parts]

    assert sum(counts) == len(suspects)
    assert max(counts) <= (1 if is_timeout else (len(suspects) + 1) // 2)
