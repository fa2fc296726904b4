"""Where to cut a batch, to find the operation at fault or to apply an operation apart from the others. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

TIMEOUT_PARTS_MAX: Final = 64  # of a batch that took too long: three such cuts find one operation of any batch


def cut_points(suspects: Sequence[int], *, is_timeout: bool) -> list[int]:
    """Return where to cut a batch, to find the one of several *suspects* that makes it fail.

    In two, each with half of the suspects. After a timeout, though, into many parts at once: a part with the culprit
    takes its whole time again, and the other parts take little more time than together.
    """
    if not is_timeout:
        return [suspects[len(suspects) // 2]]
    size = -(-len(suspects) // TIMEOUT_PARTS_MAX)
    parts = [suspects[start : start + size] for start in range(0, len(suspects), size)]
    return sorted({point for part in parts for point in (part[0], part[-1] + 1)})


def points_around(indexes: Iterable[int]) -> list[int]:
    """Return where to cut a batch so that each of *indexes* is a part of its own."""
    return sorted({index + offset for index in indexes for offset in (0, 1)})
