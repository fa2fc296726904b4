"""The retention of the log of operations, and the pauses between its deletions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

SOURCE_MARGIN: Final = timedelta(hours=24)  # docs/configuration.md, OPERATION_RETENTION_HOURS
DELETING_SHARE: Final = 0.2  # of the time, at most


def effective_retention(configured: timedelta, sources: Iterable[timedelta | None]) -> timedelta | None:
    """Return how long a row must stay: as *configured*, or longer if a source keeps its records longer.

    Only a record's row shows that it was applied. None, if a source's retention is unknown: nothing may be deleted.
    """
    longest = configured
    for retention in sources:
        if retention is None:
            return None
        longest = max(longest, retention + SOURCE_MARGIN)
    return longest


def deletion_pause_s(busy_s: float) -> float:
    """Return the pause after a deletion that took *busy_s*, for at most DELETING_SHARE of the time."""
    return busy_s * (1 / DELETING_SHARE - 1)
