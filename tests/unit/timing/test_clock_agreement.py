"""Clocks may be some minutes apart, and no more, where something ends by the time."""

from __future__ import annotations

import pytest
from support.clocks import APART

from simplu_worker.timing.clock import shard_problem


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [
        *((ahead_s, None) for ahead_s in (-60.0, 0.0, 60.0)),
        (-60.1, f"its clock is 60 s behind this machine's; {APART}"),
        (float("nan"), f"its clock is nan s behind this machine's; {APART}"),
        (-1200.0, f"its clock is 1200 s behind this machine's; {APART}"),
        (480.4, f"its clock is 480 s ahead of this machine's; {APART}"),
    ],
)
def test_problem_names_the_difference_and_the_remedy(ahead_s: float, expected: str | None) -> None:
    assert shard_problem(ahead_s) == expected
