"""How far a stream shard is done: the position before which nothing is owed to anyone. Pure.

Records are numbered in the order in which they were read (their ticket) and may be done in any order. The checkpoint
is the last position before the first one still owed, so it never passes a record that is not applied, failed with an
outcome, or stored as a dead letter (invariant 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

P = TypeVar("P")


class Owed(Generic[P]):
    """The records of one stream shard that were read and are not yet all done, by ticket; *P* is a position."""

    def __init__(self) -> None:
        self._positions: deque[P] = deque()
        self._first_ticket = 0
        self._done: set[int] = set()
        self.checkpoint: P | None = None

    def __repr__(self) -> str:
        return f"Owed(checkpoint={self.checkpoint}, owed={len(self)}, from_ticket={self._first_ticket})"

    def __len__(self) -> int:
        """How many records were read from the first one owed on, done or not."""
        return len(self._positions)

    @property
    def first(self) -> P | None:
        """The position of the first record owed; None when nothing is."""
        return self._positions[0] if self._positions else None

    def take(self, position: P) -> int:
        """Note that the record at *position* was read; return its ticket."""
        self._positions.append(position)
        return self._first_ticket + len(self._positions) - 1

    def done(self, tickets: Iterable[int]) -> None:
        """Note that these records are done with; each ticket once."""
        self._done.update(tickets)
        while self._first_ticket in self._done:
            self._done.remove(self._first_ticket)
            self._first_ticket += 1
            self.checkpoint = self._positions.popleft()
