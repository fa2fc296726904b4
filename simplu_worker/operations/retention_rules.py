"""The retention of the log of operations, and the pauses between its deletions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

SOURCE_MARGIN: Final = timedelta(hours=24)  # docs/configuration.md, OPERATION_RETENTION_HOURS
DELETING_SHARE: Final = 0.1  # of the time, at most
LATE_SHARE: Final = 0.25  # the same while rows stay for much longer than they have to
LATE_TURNS: Final = 2  # from which on that is
STATEMENT_LEAST_S: Final = 0.025  # a statement that takes less may have more rows
STATEMENT_MOST_S: Final = 0.1
ROWS_GROWTH: Final = 10  # the most rows of a statement ÷ those of the first one


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


def deletion_pause_s(busy_s: float, share: float = DELETING_SHARE) -> float:
    """Return the pause after a deletion that took *busy_s*, for at most *share* of the time."""
    return busy_s * (1 / share - 1)


def deleting_share(late_s: float, turn_s: float) -> float:
    """Return the share of the time that deletions may take; the oldest row has been due for *late_s*."""
    return LATE_SHARE if late_s > LATE_TURNS * turn_s else DELETING_SHARE


def next_row_count(row_count: int, busy_s: float, first_count: int) -> int:
    """Return how many rows the statement after one of *row_count* rows deletes; the shard took *busy_s* for it."""
    if busy_s > STATEMENT_MOST_S:
        return max(row_count // 2, 1)
    if busy_s < STATEMENT_LEAST_S:
        return min(row_count * 2, first_count * ROWS_GROWTH)
    return row_count
