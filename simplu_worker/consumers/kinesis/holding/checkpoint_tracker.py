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

    __slots__ = ("before", "finished_flags", "first_ticket", "pending_count", "positions")

    def __init__(self, first: int, before: P | None, positions: Sequence[P | None]) -> None:
        """*first* is the ticket of the first one, *before* the last position before it."""
        self.first_ticket = first
        self.before = before
        self.positions = positions
        self.pending_count = len(positions)
        self.finished_flags: bytearray | None = None  # by place, as soon as some are

    def __repr__(self) -> str:
        return f"_Stretch({self.first_ticket}, {self.pending_count} of {len(self.positions)})"

    @property
    def first_pending(self) -> int:
        """The place of the first one that is owed."""
        return 0 if self.finished_flags is None else self.finished_flags.index(0)

    def is_all_pending(self, tickets: Sequence[int]) -> bool:
        """Tell whether *tickets*, each of a record that is owed somewhere, are all that is owed here."""
        if len(tickets) != self.pending_count:
            return False
        return self.first_ticket <= min(tickets) and max(tickets) < self.first_ticket + len(self.positions)

    def position_before(self, index: int) -> P | None:
        """Return the last position before a record."""
        return self.positions[index - 1] if index else self.before

    def finish(self, index: int) -> None:
        """Note that a record is done with. Raises KeyError where it was."""
        if self.finished_flags is None:
            self.finished_flags = bytearray(len(self.positions))
        if self.finished_flags[index]:
            raise KeyError(self.first_ticket + index)
        self.finished_flags[index] = 1
        self.pending_count -= 1


class CheckpointTracker(Generic[P]):
    """The records of one stream shard that were read and are not done, by ticket; *P* is a position.

    Takes memory only for what was read together with something that is owed, however much was read and done since.
    """

    def __init__(self, last: P | None = None) -> None:
        """*last* is the position before the first record; None: there is none."""
        self._runs: list[_Run[P]] = []
        self._first_tickets: list[int] = []  # their first tickets, to be searched
        self._last_read = last
        self._next_ticket = 0
        self._pending_count = 0

    def __repr__(self) -> str:
        return f"Owed(checkpoint={self.checkpoint}, owed={len(self)}, read={self._next_ticket})"

    def __len__(self) -> int:
        """How many records are owed."""
        return self._pending_count

    @property
    def checkpoint(self) -> P | None:
        """The last position before which, itself included, nothing is owed; None before there is one."""
        for run in self._runs:
            return run.position_before(run.first_pending)
        return self._last_read

    @property
    def first_pending(self) -> P | None:
        """The position of the first record owed; None when nothing is."""
        for run in self._runs:
            return run.positions[run.first_pending]
        return None

    @property
    def last_read(self) -> P | None:
        """The position of the last record read or passed over."""
        return self._last_read

    def position_before(self, ticket: int) -> P | None:
        """Return the last position before an owed record; None before there is one."""
        run = self._runs[self._run_index(ticket)]
        return run.position_before(ticket - run.first_ticket)

    def skip(self, position: P) -> None:
        """Note that the record at *position* was read and is not owed here."""
        self._last_read = position

    def start(self, position: P) -> int:
        """Note that the record at *position* was read; return its ticket."""
        return self.start_all([position]).start

    def start_all(self, positions: Sequence[P]) -> range:
        """Note that the records at *positions* were read, in this order; return their tickets."""
        if not positions:
            return range(self._next_ticket, self._next_ticket)
        tickets = self._add_run(positions)
        self._last_read = positions[-1]
        return tickets

    def start_at_last(self) -> int:
        """Note that a record was read which counts as being where the last one was; return its ticket.

        For what has to be done with before the next record.
        """
        return self._add_run([self._last_read]).start

    def finish(self, tickets: Iterable[int]) -> None:
        """Note that these records are done with; each ticket once."""
        own = list(tickets)
        if not own:
            return
        run_index = self._run_index(own[0])
        if self._runs[run_index].is_all_pending(own):
            self._remove_run(run_index)
        else:
            for ticket in own:
                run_index = self._run_index(ticket)
                run = self._runs[run_index]
                run.finish(ticket - run.first_ticket)
                if not run.pending_count:
                    self._remove_run(run_index)
        self._pending_count -= len(own)

    def _add_run(self, positions: Sequence[P | None]) -> range:
        tickets = range(self._next_ticket, self._next_ticket + len(positions))
        self._runs.append(_Run(tickets.start, self._last_read, positions))
        self._first_tickets.append(tickets.start)
        self._next_ticket = tickets.stop
        self._pending_count += len(positions)
        return tickets

    def _run_index(self, ticket: int) -> int:
        """Return which of the stretches has a record that is owed."""
        return bisect_right(self._first_tickets, ticket) - 1

    def _remove_run(self, run_index: int) -> None:
        del self._runs[run_index], self._first_tickets[run_index]
