"""How often the operations of messages have failed, as far as this process remembers. Pure.

A count contains only failures that this process saw: after a restart it is too low, and never too high. So a message is
never given up too early by it.
"""

from __future__ import annotations

from typing import Final

REMEMBERED_MAX: Final = 4096  # messages; beyond, the one with the oldest failure is forgotten


class FailureMemory:
    """The counts of at most *max_count* messages."""

    def __init__(self, max_count: int = REMEMBERED_MAX) -> None:
        self._max_count = max_count
        self._counts: dict[str, int] = {}  # by message id, the oldest failure first

    def __repr__(self) -> str:
        return f"FailureMemory({self._counts})"

    def add(self, message_id: str) -> int:
        """Count one failure more of a message; return their number."""
        count = self._counts.pop(message_id, 0) + 1
        self._counts[message_id] = count
        if len(self._counts) > self._max_count:
            del self._counts[next(iter(self._counts))]
        return count
