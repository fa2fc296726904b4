"""How far a stream shard is done: the position before which nothing is owed to anyone. Pure.

Records are numbered in the order in which they were read (their ticket) and may be done in any order. The checkpoint
is the last position before the first one still owed, so it never passes a record that is not applied, failed with an
outcome, or stored as a dead letter (invariant 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Generic, TypeVar

P = TypeVar("P")


class Owed(Generic[P]):
    """The records of one stream shard that were read and are not done, by ticket; *P* is a position.

    Takes memory only for what is owed, however much was read and done since.
    """

    def __init__(self, last: P | None = None) -> None:
        """*last* is the position before the first record; None: there is none."""
        # By ticket, in order: its own position, and the one before. No pairs of them, of which each would be an object
        # more for the garbage collector to look at.
        self._owed: dict[int, P | None] = {}
        self._before: dict[int, P | None] = {}
        self._last = last
        self._next_ticket = 0

    def __repr__(self) -> str:
        return f"Owed(checkpoint={self.checkpoint}, owed={len(self)}, read={self._next_ticket})"

    def __len__(self) -> int:
        """How many records are owed."""
        return len(self._owed)

    @property
    def checkpoint(self) -> P | None:
        """The last position before which, itself included, nothing is owed; None before there is one."""
        for before in self._before.values():
            return before
        return self._last

    @property
    def first(self) -> P | None:
        """The position of the first record owed; None when nothing is."""
        for own in self._owed.values():
            return own
        return None

    @property
    def last(self) -> P | None:
        """The position of the last record read or passed over."""
        return self._last

    def before(self, ticket: int) -> P | None:
        """Return the last position before an owed record; None before there is one."""
        return self._before[ticket]

    def pass_over(self, position: P) -> None:
        """Note that the record at *position* was read and is not owed here."""
        self._last = position

    def take(self, position: P) -> int:
        """Note that the record at *position* was read; return its ticket."""
        ticket = self._next_ticket
        self._owed[ticket] = position
        self._before[ticket] = self._last
        self._last = position
        self._next_ticket += 1
        return ticket

    def take_all(self, positions: Sequence[P]) -> range:
        """Note that the records at *positions* were read, in this order; return their tickets."""
        tickets = range(self._next_ticket, self._next_ticket + len(positions))
        self._owed.update(zip(tickets, positions, strict=True))
        self._before.update(zip(tickets, chain([self._last], positions), strict=False))
        if positions:
            self._last = positions[-1]
        self._next_ticket = tickets.stop
        return tickets

    def take_at_last(self) -> int:
        """Note that a record was read which counts as being where the last one was; return its ticket.

        For what has to be done with before the next record.
        """
        ticket = self._next_ticket
        self._owed[ticket] = self._before[ticket] = self._last
        self._next_ticket += 1
        return ticket

    def done(self, tickets: Iterable[int]) -> None:
        """Note that these records are done with; each ticket once."""
        for ticket in tickets:
            del self._owed[ticket], self._before[ticket]
