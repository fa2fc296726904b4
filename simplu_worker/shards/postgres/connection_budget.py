"""Who may open a connection, of all shards within one number of them.

A pool takes a free place, else that of the connection that has been idle longest, whosesoever it is. Where none is
idle pools take turns: the one with the fewest connections first, among equals the one that waits longest. A pool that
has used a connection for its turn gives it up to one that has none, or clearly fewer, and queues up again at the end.
So a pool with a thousand waiters has its turn as often as one with a single one, and everybody has one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

TURN_MAX_S: Final = 0.5  # some hundred times what it takes to connect
ROUND_S: Final = 4.0  # about how long it takes until everybody has had a turn: less than anybody waits

ConnectionT = TypeVar("ConnectionT", bound=Hashable)
LentT_contra = TypeVar("LentT_contra", contravariant=True)


class PoolMember(Protocol[LentT_contra]):
    """A pool, as the budget knows it. It keeps count of its own connections."""

    @property
    def open_count(self) -> int:
        """How many connections it has, those included that it is opening."""

    @property
    def wants_connection(self) -> bool:
        """Whether somebody waits, and it has fewer connections than it may."""

    def open_another(self) -> bool:
        """Let the first who waits open a connection; false when nobody waits any more."""

    def close_idle(self, connection: LentT_contra) -> None:
        """Close one that is idle."""


class _Idle(NamedTuple, Generic[ConnectionT]):
    owner: PoolMember[ConnectionT]
    since: float


class ConnectionBudget(Generic[ConnectionT]):
    """The places for connections, who has them, and who waits for one."""

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._idle: dict[ConnectionT, _Idle[ConnectionT]] = {}  # the one that has been idle longest first
        self._queue: dict[
            PoolMember[ConnectionT], None
        ] = {}  # those that wait for a place, in the order of their turns
        self.open_count = 0

    def __repr__(self) -> str:
        return (
            f"ConnectionBudget({self.open_count}/{self._max} open, {len(self._idle)} idle, "
            f"{len(self._queue)} in the queue)"
        )

    @property
    def has_idle(self) -> bool:
        """Whether a connection is idle."""
        return bool(self._idle)

    def take_slot(self, member: PoolMember[ConnectionT], now: float) -> bool:
        """Take a place for one more connection of *party*; false when it has to wait for `open_another`.

        To be called when it has fewer than it may.
        """
        if self._make_room(member, now):
            self.open_count += 1
            return True
        self._queue.setdefault(member)
        return False

    def withdraw(self, member: PoolMember[ConnectionT]) -> None:
        """Note that nobody of *party* waits any more."""
        self._queue.pop(member, None)

    def release_slot(self, member: PoolMember[ConnectionT], now: float) -> None:
        """Note that a connection of *party* ended, or was never made."""
        self.open_count -= 1
        if member.wants_connection:
            self._queue.setdefault(member)
        self.grant_slots(now)

    def park_idle(self, member: PoolMember[ConnectionT], connection: ConnectionT, now: float) -> None:
        """Note that a connection became idle."""
        self._idle[connection] = _Idle(member, now)
        if self._queue:
            self.grant_slots(now)

    def take_idle(self, connection: ConnectionT) -> bool:
        """Note that a connection is idle no longer; false when it was not."""
        return self._idle.pop(connection, None) is not None

    def must_yield(self, member: PoolMember[ConnectionT], *, used_s: float) -> bool:
        """Tell whether *party* should close a connection that it has used for so long, though somebody waits for it."""
        rival = self._next()
        if rival is None or rival is member or used_s < self._turn_s():
            return False
        return rival.open_count == 0 or rival.open_count < member.open_count - 1

    def idle_since_before(self, moment: float) -> list[tuple[PoolMember[ConnectionT], ConnectionT]]:
        """Return the connections that have been idle since before *moment*."""
        found = []
        for connection, idle in self._idle.items():
            if idle.since > moment:
                break
            found.append((idle.owner, connection))
        return found

    def grant_slots(self, now: float) -> None:
        """Give away what places there are, or can be made."""
        while (member := self._next()) is not None and self._make_room(member, now):
            del self._queue[member]
            self.open_count += 1
            if not member.open_another():
                self.open_count -= 1
            elif member.wants_connection:
                self._queue[member] = None

    def _next(self) -> PoolMember[ConnectionT] | None:
        while self._queue:
            member = min(self._queue, key=_open_count)
            if member.wants_connection:
                return member
            del self._queue[member]
        return None

    def _make_room(self, member: PoolMember[ConnectionT], now: float) -> bool:
        if self.open_count < self._max:
            return True
        for connection, idle in self._idle.items():
            # One that is used again and again is not taken for somebody who has another.
            if member.open_count and now - idle.since < self._turn_s():
                return False
            del self._idle[connection]
            idle.owner.close_idle(connection)
            self.open_count -= 1
            return True
        return False

    def _turn_s(self) -> float:
        return min(TURN_MAX_S, ROUND_S * self._max / max(1, len(self._queue)))


def _open_count(member: PoolMember[ConnectionT]) -> int:
    return member.open_count
