from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.apply.duplicates import TIMEOUT_PARTS_MAX, cut_points, points_around


@pytest.mark.parametrize(
    ("suspects", "is_timeout", "expected"),
    [([0, 1], False, [1]), ([3, 7, 8, 9], False, [8]), ([0, 1], True, [0, 1, 2]), ([3, 7], True, [3, 4, 7, 8])],
)
def test_cuts_halve_the_suspects_or_part_each_after_a_timeout(
    suspects: list[int], expected: list[int], *, is_timeout: bool
) -> None:
    assert cut_points(suspects, is_timeout=is_timeout) == expected


@given(suspects=st.sets(st.integers(0, 300), min_size=2), is_timeout=st.booleans())
def test_cuts_leave_fewer_suspects_in_every_part(suspects: set[int], *, is_timeout: bool) -> None:
    parts = pairwise([0, *cut_points(sorted(suspects), is_timeout=is_timeout), 301])
    counts = [len(suspects & set(range(start, end))) for start, end in parts]

    assert sum(counts) == len(suspects)
    assert max(counts) <= -(-len(suspects) // (TIMEOUT_PARTS_MAX if is_timeout else 2))


def test_cuts_find_one_of_the_largest_batch_in_three_steps() -> None:
    suspects, steps = list(range(7500)), 0
    while len(suspects) > 1:
        points = [0, *cut_points(suspects, is_timeout=True), len(suspects)]
        suspects = list(range(max(end - start for start, end in pairwise(points))))
        steps += 1

    assert steps == 3


def test_points_around_set_each_operation_apart() -> None:
    assert points_around([3, 4, 9]) == [3, 4, 5, 9, 10]
