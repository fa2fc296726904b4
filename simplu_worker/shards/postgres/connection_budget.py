"""The budget of connections that the pools of all shards share: which pool may open one. Pure.

A pool takes a free slot, or else that of the connection idle longest, of any pool. If none is idle, the pools take
turns: first the pool with the fewest connections, among equals the one that has waited longest. A pool yields a
connection after its turn, so every pool gets one, however many wait in others.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

TURN_MAX_S: Final = 0.5  # some hundred times the time to connect
ROUND_S: Final = 4.0  # about the time until every pool has had a turn: shorter than any caller waits

ConnectionT = TypeVar("ConnectionT", bound=Hashable)
LentT_contra = TypeVar("LentT_contra", contravariant=True)


class PoolMember(Protocol[LentT_contra]):
    """A pool, as the budget sees it. The pool counts its own connections."""

    @property
    def open_count(self) -> int:
        """The count of its connections, including those being opened."""

    @property
    def wants_connection(self) -> bool:
        """Whether a caller waits, and the pool has fewer connections than it may."""

    def open_another(self) -> bool:
        """Let the first waiter open a connection; return false if no caller waits any more."""

    def close_idle(self, connection: LentT_contra) -> None:
        """Close an idle connection."""


class _Idle(NamedTuple, Generic[ConnectionT]):
    owner: PoolMember[ConnectionT]
    since: float


class ConnectionBudget(Generic[ConnectionT]):
    """The slots for connections, and the queue of pools that wait for one."""

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._idle: dict[ConnectionT, _Idle[ConnectionT]] = {}  # longest idle first
        self._queue: dict[PoolMember[ConnectionT], None] = {}  # pools that wait for a slot, in the order of their turns
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
        """Take a slot for one more connection of *member*; return false when it must wait for `open_another`."""
        if self._make_room(member, now):
            self.open_count += 1
            return True
        self._queue.setdefault(member)
        return False

    def withdraw(self, member: PoolMember[ConnectionT]) -> None:
        """Note that no caller of *member* waits any more."""
        self._queue.pop(member, None)

    def release_slot(self, member: PoolMember[ConnectionT], now: float) -> None:
        """Note that a connection of *member* ended, or was never opened."""
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
        """Note that a connection is no longer idle; return false if it was not."""
        return self._idle.pop(connection, None) is not None

    def must_yield(self, member: PoolMember[ConnectionT], *, used_s: float) -> bool:
        """Return whether *member* must close a connection used for so long."""
        rival = self._next_member()
        if rival is None or rival is member or used_s < self._turn_s():
            return False
        return rival.open_count == 0 or rival.open_count < member.open_count - 1

    def idle_since_before(self, instant: float) -> list[tuple[PoolMember[ConnectionT], ConnectionT]]:
        """Return the connections that have been idle since before *instant*."""
        found = []
        for connection, idle in self._idle.items():
            if idle.since > instant:
                break
            found.append((idle.owner, connection))
        return found

    def grant_slots(self, now: float) -> None:
        """Grant all slots that are free, or can be freed, to the waiting pools."""
        while (member := self._next_member()) is not None and self._make_room(member, now):
            del self._queue[member]
            self.open_count += 1
            if not member.open_another():
                self.open_count -= 1
            elif member.wants_connection:
                self._queue[member] = None

    def _next_member(self) -> PoolMember[ConnectionT] | None:
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
            # A connection in regular use is not taken for a pool that already has one.
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
