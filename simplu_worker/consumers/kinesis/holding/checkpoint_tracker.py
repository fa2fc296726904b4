"""The checkpoint of a stream shard: the position up to which no record is pending. Pure.

Records are numbered in the order of reading (their tickets) and finish in any order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

P = TypeVar("P")


class _Run(Generic[P]):
    """Records that were read together, some of them pending."""

    __slots__ = ("before", "pending", "positions", "tickets")

    def __init__(self, tickets: range, before: P | None, positions: Sequence[P | None]) -> None:
        self.tickets = tickets
        self.before = before
        self.positions = positions
        self.pending = set(tickets)

    @property
    def first_pending(self) -> int:
        return min(self.pending)

    def position_before(self, ticket: int) -> P | None:
        index = ticket - self.tickets.start
        return self.positions[index - 1] if index else self.before


class CheckpointTracker(Generic[P]):
    """The pending records of one stream shard, by ticket; *P* is the type of a position."""

    def __init__(self, last: P | None = None) -> None:
        """*last* is the position before the first record, None if there is none."""
        self._runs: list[_Run[P]] = []
        self._first_tickets: list[int] = []  # of the runs, for bisection
        self._last_read = last
        self._next_ticket = 0

    def __len__(self) -> int:
        """Return the number of pending records."""
        return sum(len(run.pending) for run in self._runs)

    @property
    def checkpoint(self) -> P | None:
        """The last position up to which no record is pending; None before there is one."""
        for run in self._runs:
            return run.position_before(run.first_pending)
        return self._last_read

    @property
    def first_pending(self) -> P | None:
        """The position of the first pending record; None without one."""
        for run in self._runs:
            return run.positions[run.first_pending - run.tickets.start]
        return None

    @property
    def first_pending_ticket(self) -> int | None:
        """The ticket of the first pending record; None without one."""
        for run in self._runs:
            return run.first_pending
        return None

    @property
    def next_ticket(self) -> int:
        """The ticket of the next record."""
        return self._next_ticket

    @property
    def last_read(self) -> P | None:
        """The position of the last record that was started or skipped."""
        return self._last_read

    def position_before(self, ticket: int) -> P | None:
        """Return the last position before a pending record. Raises KeyError where its run has none pending."""
        return self._runs[self._run_index(ticket)].position_before(ticket)

    def skip(self, position: P) -> None:
        """Record that the record at *position* was read and is not pending here."""
        self._last_read = position

    def rewind(self, position: P | None) -> None:
        """Have all pending records, which were started at the last position, at *position*."""
        self._last_read = position
        for run in self._runs:
            run.before, run.positions = position, [position] * len(run.positions)

    def start(self, position: P) -> int:
        """Add a pending record at *position*; return its ticket."""
        return self.start_all([position]).start

    def start_all(self, positions: Sequence[P]) -> range:
        """Add pending records at *positions*, in this order; return their tickets."""
        if not positions:
            return range(self._next_ticket, self._next_ticket)
        tickets = self._add_run(positions)
        self._last_read = positions[-1]
        return tickets

    def start_at_last(self) -> int:
        """Add a pending record at the last position; return its ticket."""
        return self._add_run([self._last_read]).start

    def finish(self, tickets: Iterable[int]) -> None:
        """Finish the records of *tickets*. Raises KeyError if one is finished.

        Never leaves a run without a pending record, not even at an exception.
        """
        left = set(tickets)
        while left:
            ticket = next(iter(left))
            run_index = self._run_index(ticket)
            run = self._runs[run_index]
            own = run.pending & left
            if not own:
                raise KeyError(ticket)
            if own == run.pending:
                del self._runs[run_index], self._first_tickets[run_index]
            else:
                run.pending -= own
            left -= own

    def _add_run(self, positions: Sequence[P | None]) -> range:
        tickets = range(self._next_ticket, self._next_ticket + len(positions))
        self._runs.append(_Run(tickets, self._last_read, positions))
        self._first_tickets.append(tickets.start)
        self._next_ticket = tickets.stop
        return tickets

    def _run_index(self, ticket: int) -> int:
        run_index = bisect_right(self._first_tickets, ticket) - 1
        if run_index < 0 or ticket not in self._runs[run_index].tickets:
            raise KeyError(ticket)
        return run_index
