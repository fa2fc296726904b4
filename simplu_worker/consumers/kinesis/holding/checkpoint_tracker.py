"""How far a stream shard is done: the position before which nothing is owed to anyone. Pure.

Records are numbered in the order in which they were read (their ticket) and may be done in any order. The checkpoint
is the last position before the first one still owed, so it never passes a record that is not applied, failed with an
outcome, or stored as a dead letter (invariant 1).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

P = TypeVar("P")


class _Run(Generic[P]):
    """Records that were read together, and of which some are owed; nearly always they are done with together too."""

    __slots__ = ("are_done", "before", "first", "left", "positions")

    def __init__(self, first: int, before: P | None, positions: Sequence[P | None]) -> None:
        """*first* is the ticket of the first one, *before* the last position before it."""
        self.first = first
        self.before = before
        self.positions = positions
        self.left = len(positions)
        self.are_done: bytearray | None = None  # by place, as soon as some are

    def __repr__(self) -> str:
        return f"_Stretch({self.first}, {self.left} of {len(self.positions)})"

    @property
    def first_left(self) -> int:
        """The place of the first one that is owed."""
        return 0 if self.are_done is None else self.are_done.index(0)

    def is_all_left(self, tickets: Sequence[int]) -> bool:
        """Tell whether *tickets*, each of a record that is owed somewhere, are all that is owed here."""
        if len(tickets) != self.left:
            return False
        return self.first <= min(tickets) and max(tickets) < self.first + len(self.positions)

    def before_place(self, place: int) -> P | None:
        """Return the last position before a record."""
        return self.positions[place - 1] if place else self.before

    def note_done(self, place: int) -> None:
        """Note that a record is done with. Raises KeyError where it was."""
        if self.are_done is None:
            self.are_done = bytearray(len(self.positions))
        if self.are_done[place]:
            raise KeyError(self.first + place)
        self.are_done[place] = 1
        self.left -= 1


class CheckpointTracker(Generic[P]):
    """The records of one stream shard that were read and are not done, by ticket; *P* is a position.

    Takes memory only for what was read together with something that is owed, however much was read and done since.
    """

    def __init__(self, last: P | None = None) -> None:
        """*last* is the position before the first record; None: there is none."""
        self._stretches: list[_Run[P]] = []
        self._firsts: list[int] = []  # their first tickets, to be searched
        self._last = last
        self._next_ticket = 0
        self._count = 0

    def __repr__(self) -> str:
        return f"Owed(checkpoint={self.checkpoint}, owed={len(self)}, read={self._next_ticket})"

    def __len__(self) -> int:
        """How many records are owed."""
        return self._count

    @property
    def checkpoint(self) -> P | None:
        """The last position before which, itself included, nothing is owed; None before there is one."""
        for stretch in self._stretches:
            return stretch.before_place(stretch.first_left)
        return self._last

    @property
    def first(self) -> P | None:
        """The position of the first record owed; None when nothing is."""
        for stretch in self._stretches:
            return stretch.positions[stretch.first_left]
        return None

    @property
    def last(self) -> P | None:
        """The position of the last record read or passed over."""
        return self._last

    def before(self, ticket: int) -> P | None:
        """Return the last position before an owed record; None before there is one."""
        stretch = self._stretches[self._number_of(ticket)]
        return stretch.before_place(ticket - stretch.first)

    def pass_over(self, position: P) -> None:
        """Note that the record at *position* was read and is not owed here."""
        self._last = position

    def take(self, position: P) -> int:
        """Note that the record at *position* was read; return its ticket."""
        return self.take_all([position]).start

    def take_all(self, positions: Sequence[P]) -> range:
        """Note that the records at *positions* were read, in this order; return their tickets."""
        if not positions:
            return range(self._next_ticket, self._next_ticket)
        tickets = self._add(positions)
        self._last = positions[-1]
        return tickets

    def take_at_last(self) -> int:
        """Note that a record was read which counts as being where the last one was; return its ticket.

        For what has to be done with before the next record.
        """
        return self._add([self._last]).start

    def done(self, tickets: Iterable[int]) -> None:
        """Note that these records are done with; each ticket once."""
        own = list(tickets)
        if not own:
            return
        number = self._number_of(own[0])
        if self._stretches[number].is_all_left(own):
            self._drop(number)
        else:
            for ticket in own:
                number = self._number_of(ticket)
                stretch = self._stretches[number]
                stretch.note_done(ticket - stretch.first)
                if not stretch.left:
                    self._drop(number)
        self._count -= len(own)

    def _add(self, positions: Sequence[P | None]) -> range:
        tickets = range(self._next_ticket, self._next_ticket + len(positions))
        self._stretches.append(_Run(tickets.start, self._last, positions))
        self._firsts.append(tickets.start)
        self._next_ticket = tickets.stop
        self._count += len(positions)
        return tickets

    def _number_of(self, ticket: int) -> int:
        """Return which of the stretches has a record that is owed."""
        return bisect_right(self._firsts, ticket) - 1

    def _drop(self, number: int) -> None:
        del self._stretches[number], self._firsts[number]
