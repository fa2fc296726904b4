"""Times on a common grid for periodic work of many objects; times are arguments. Pure.

Work that is done together, right after one sleep of the process, takes about two thirds of the processor time.
"""

from __future__ import annotations

from math import floor, isinf
from typing import Final

GRID_S: Final = 0.1  # work for a thousand objects a second is done for a hundred at a time
EARLY_S: Final = 0.01  # work that began so little before a grid time counts as begun at it
INTERVAL_MIN_S: Final = 10 * GRID_S  # a shorter one is not aligned: the grid shortens it by nearly GRID_S


def shared_pause_s(now: float, interval_s: float) -> float:
    """Return the time until the next multiple of *interval_s*, at which all that repeats at this interval wakes up.

    For work that takes next to no time itself: to wake the process takes longer. Up to EARLY_S before a multiple, the
    one after it counts.
    """
    return interval_s + EARLY_S - (now + EARLY_S) % interval_s


def aligned_time(since: float, interval_s: float, grid_s: float = GRID_S) -> float:
    """Return when to repeat work that began at *since*: the last grid time within *interval_s* + EARLY_S after it.

    Work that began at a grid time, up to EARLY_S early or a little late, gets the grid time *interval_s* later.
    """
    at = since + interval_s
    return at if interval_s < INTERVAL_MIN_S or isinf(at) else floor((at + EARLY_S) / grid_s) * grid_s
