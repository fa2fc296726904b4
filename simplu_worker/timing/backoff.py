"""How long to wait before the next try, the pace of work, and times on a grid for work of many objects. Pure.

Work done together, right after one sleep of the process, takes two thirds of the processor time.
"""

from __future__ import annotations

from math import floor, isinf
from typing import Final

DOUBLINGS_MAX = 32  # past any cap in use; keeps the power small


def backoff_s(failure_count: int, *, draw: float, base_s: float, max_s: float) -> float:
    """Return the pause after the *failure_count*-th failure in a row, counted from 1.

    The span doubles from *base_s* to *max_s*; *draw* (0 to 1) picks within its upper half.
    """
    span_s = min(max_s, base_s * 2.0 ** min(max(failure_count - 1, 0), DOUBLINGS_MAX))
    return span_s * (0.5 + draw / 2)


def jittered(interval_s: float, *, ratio: float, draw: float) -> float:
    """Return *interval_s*, up to *ratio* of it more or less by *draw* (0 to 1)."""
    return interval_s * (1 - ratio + 2 * ratio * draw)


GRID_S: Final = 0.1  # work for a thousand objects a second is done for a hundred at a time
EARLY_S: Final = 0.01  # work that began so little before a grid time counts as begun at it
INTERVAL_MIN_S: Final = 10 * GRID_S  # a shorter one is not aligned: the grid shortens it by nearly GRID_S


def shared_pause_s(now: float, interval_s: float) -> float:
    """Return the time until the next multiple of *interval_s*, up to EARLY_S before which the one after counts."""
    return interval_s + EARLY_S - (now + EARLY_S) % interval_s


def aligned_time(since: float, interval_s: float, grid_s: float = GRID_S) -> float:
    """Return when to repeat work that began at *since*: the last grid time within *interval_s* + EARLY_S after it."""
    at = since + interval_s
    return at if interval_s < INTERVAL_MIN_S or isinf(at) else floor((at + EARLY_S) / grid_s) * grid_s


class Pacer:
    """Keeps work at *per_s* units a second, whoever does it; None: no bound. *now* is monotonic throughout."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._free_at = float("-inf")

    def pause_s(self, count: int, *, now: float) -> float:
        """Note *count* units that were just done; return the pause before the next. Slow times are not made up for."""
        if self._per_s is None:
            return 0.0
        self._free_at = max(self._free_at, now) + count / self._per_s
        return self._free_at - now
