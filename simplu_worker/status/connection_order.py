"""The order in which connections are closed for new ones, and the number of requests at one time. Pure.

A connection waits for a complete request, then for the view that makes its answer, then until its peer has taken the
answer; or its answer lasts, as that of a request that waits for an operation, and a stream of events. At the limit a
new connection takes the place of the one that has waited longest for a request, or else of the one that has waited
longest for its peer to take the answer, or else of the answer that has lasted longest: its peer asks again. While
another answer is made its connection stays open: `Places` allows fewer of these than connections, so there is always
another one to close, and a probe is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

CONNECTIONS_MAX: Final = 100  # of strangers: well below the open files that a process may have

Connection = TypeVar("Connection", bound=Hashable)


class ConnectionOrder(Generic[Connection]):
    """The open connections, at most *limit*, each in one of four states and there the oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._receiving: dict[Connection, None] = {}
        self._viewing: dict[Connection, None] = {}
        self._sending: dict[Connection, None] = {}
        self._lasting: dict[Connection, None] = {}

    def __repr__(self) -> str:
        states = f"{len(self._receiving)} receiving, {len(self._viewing)} viewing, {len(self._sending)} sending"
        return f"ConnectionOrder({states}, {len(self._lasting)} lasting, at most {self.limit})"

    def __len__(self) -> int:
        return len(self._receiving) + len(self._viewing) + len(self._sending) + len(self._lasting)

    def add(self, connection: Connection) -> Connection | None:
        """Add a new connection; return the one to close, which is removed: *connection* itself if no other may be."""
        closed: Connection | None = None
        if len(self) >= self.limit:
            closed = next(iter(self._receiving or self._sending or self._lasting), connection)
            self.remove(closed)
        if closed is not connection:
            self._receiving[connection] = None
        return closed

    def receive(self, connection: Connection) -> None:
        """Note that *connection* waits for its next request from now on."""
        self._move(connection, self._receiving)

    def view(self, connection: Connection) -> None:
        """Note that the request of *connection* is complete."""
        self._move(connection, self._viewing)

    def send(self, connection: Connection) -> None:
        """Note that the answer of *connection* is made, and has to be taken."""
        self._move(connection, self._sending)

    def last(self, connection: Connection) -> None:
        """Note that the answer of *connection* lasts: it may end at any time."""
        self._move(connection, self._lasting)

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection. Idempotent."""
        for state in (self._receiving, self._viewing, self._sending, self._lasting):
            state.pop(connection, None)

    def _move(self, connection: Connection, state: dict[Connection, None]) -> None:
        count = len(self)
        self.remove(connection)
        if len(self) < count:  # a connection that was closed for another one stays removed
            state[connection] = None


class Places:
    """Places in what is bounded: at most *each_max* of one path (or token, or tenant), and *all_max* in all."""

    def __init__(self, *, each_max: int, all_max: int) -> None:
        self._each_max = each_max
        self._all_max = all_max
        self._taken: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Places({dict(self._taken)}, at most {self._each_max} of {self._all_max})"

    def take(self, key: str) -> bool:
        """Take a place for *key*; return False if there is none."""
        if self._taken[key] >= self._each_max or self._taken.total() >= self._all_max:
            return False
        self._taken[key] += 1
        return True

    def free(self, key: str) -> None:
        """Return a place of *key*."""
        self._taken[key] -= 1
        self._taken += Counter()  # without what is zero
