"""Moments shared by what each of many does now and then. Pure: times are handed in.

What is done together, right after one sleep of the process, takes about two thirds of the processor time.
"""

from __future__ import annotations

from math import floor, isinf
from typing import Final

GRID_S: Final = 0.1  # what is done for a thousand is done for a hundred at a time
EARLY_S: Final = 0.01  # what was begun so little before its moment was begun at it
INTERVAL_MIN_S: Final = 10 * GRID_S  # less than that is kept as it is: the grid takes nearly GRID_S off


def aligned_time(since: float, interval_s: float) -> float:
    """Return when to do it again: at the last shared moment up to *interval_s*, or EARLY_S more, after *since*.

    What is begun at one, up to EARLY_S early or a little late, comes to the one that is *interval_s* later.
    """
    at = since + interval_s
    return at if interval_s < INTERVAL_MIN_S or isinf(at) else floor((at + EARLY_S) / GRID_S) * GRID_S
