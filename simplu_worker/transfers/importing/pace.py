"""The pace of an import: at most so many rows a second, whatever the number of connections. Pure."""

from __future__ import annotations


class RowPace:
    """The pause after each page of rows. Without *max_rows_per_s* there is none; *started_at* is monotonic."""

    def __init__(self, max_rows_per_s: float | None, *, started_at: float) -> None:
        self._max_rows_per_s = max_rows_per_s
        self._free_at = started_at

    def __repr__(self) -> str:
        return f"RowPace({self._max_rows_per_s})"

    def pause_s(self, row_count: int, *, now: float) -> float:
        """Note *row_count* rows that were just read; return how long to wait before the next page, in seconds.

        A slow time is not made up for by a fast one.
        """
        if self._max_rows_per_s is None:
            return 0.0
        self._free_at = max(self._free_at, now) + row_count / self._max_rows_per_s
        return self._free_at - now
