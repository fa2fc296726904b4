"""Which caller gets which connection, within the budget that the pools of all shards share. Pure.

A caller gets the connection that its pool got back last, so that surplus ones stay idle and are closed. Else the pool
takes a free slot, or that of the connection idle longest, of any pool. If none is idle, the pools take turns: first the
pool with the fewest connections, among equals the one that has waited longest. A pool yields a connection after its
turn, so every pool gets one, however many wait in others.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

TURN_MAX_S: Final = 0.5  # some hundred times the time to connect
ROUND_S: Final = 4.0  # about the time until every pool has had a turn: shorter than any caller waits


class Opened(Protocol):
    """A connection, as the budget sees it."""

    opened_at: float


ConnectionT = TypeVar("ConnectionT", bound=Opened)
RequestT = TypeVar("RequestT")


class Assignment(NamedTuple, Generic[ConnectionT, RequestT]):
    """What is to be done. The slots of all these connections are accounted for."""

    lend: list[tuple[RequestT, ConnectionT]]
    open: list[RequestT]  # the callers that may open a connection
    close: list[ConnectionT]


class PoolConnections(Generic[ConnectionT, RequestT]):
    """The connections of one pool, at most *size*, and the requests that wait for one, first come, first served."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.idle: list[ConnectionT] = []  # returned last at the end
        self.lent: dict[ConnectionT, float] = {}  # since when; longest lent first
        self.requests: deque[RequestT] = deque()
        self.open_count = 0  # with those that are being opened or closed


class _Idle(NamedTuple, Generic[ConnectionT, RequestT]):
    pool: PoolConnections[ConnectionT, RequestT]
    since: float


class ConnectionBudget(Generic[ConnectionT, RequestT]):
    """The connections of all pools. After any change `assign` returns what is to be done."""

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._idle: dict[ConnectionT, _Idle[ConnectionT, RequestT]] = {}  # of all pools, longest idle first
        self._queue: dict[PoolConnections[ConnectionT, RequestT], None] = {}  # pools with requests, by turns
        self._changed: list[PoolConnections[ConnectionT, RequestT]] = []  # with a request or connection to assign
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

    def request(self, pool: PoolConnections[ConnectionT, RequestT], request: RequestT) -> None:
        """Note that a caller waits."""
        pool.requests.append(request)
        self._queue.setdefault(pool)
        self._changed.append(pool)

    def withdraw(self, pool: PoolConnections[ConnectionT, RequestT], request: RequestT) -> bool:
        """Note that a caller waits no more; return false if it does not wait, because its turn has come."""
        if request not in pool.requests:
            return False
        pool.requests.remove(request)
        if not pool.requests:
            del self._queue[pool]
        return True

    def park(self, pool: PoolConnections[ConnectionT, RequestT], connection: ConnectionT, now: float) -> None:
        """Note that a connection of *pool* is idle."""
        pool.idle.append(connection)
        self._idle[connection] = _Idle(pool, now)
        self._changed.append(pool)

    def release(self, pool: PoolConnections[ConnectionT, RequestT]) -> None:
        """Note that a slot of *pool* is free: its connection ended, or was never opened."""
        pool.open_count -= 1
        self.open_count -= 1
        self._put_last(pool)

    def drop(self, connection: ConnectionT) -> bool:
        """Release the slot of an idle connection that ends; return false if it is not idle."""
        idle = self._idle.pop(connection, None)
        if idle is None:
            return False
        idle.pool.idle.remove(connection)
        self.release(idle.pool)
        return True

    def drop_idle_since(self, instant: float) -> list[ConnectionT]:
        """Release the slots of the connections that have been idle since *instant*; return these, to be closed."""
        return [
            connection for connection, idle in [*self._idle.items()] if idle.since <= instant and self.drop(connection)
        ]

    def assign(self, now: float) -> Assignment[ConnectionT, RequestT]:
        """Serve the requests that can be served now."""
        assignment: Assignment[ConnectionT, RequestT] = Assignment([], [], [])
        while self._changed:
            pool = self._changed.pop()
            if pool.requests and pool.idle:
                connection = pool.idle.pop()
                del self._idle[connection]
                if self._must_yield(pool, now - connection.opened_at):
                    assignment.close.append(connection)
                    self.release(pool)
                else:
                    pool.lent[connection] = now
                    assignment.lend.append((self._take_request(pool), connection))
        while self._has_room() and (needy := self._neediest_pool()) is not None:
            if not self._make_room(needy, now, assignment.close):
                break
            needy.open_count += 1
            self.open_count += 1
            assignment.open.append(self._take_request(needy))
        return assignment

    def _take_request(self, pool: PoolConnections[ConnectionT, RequestT]) -> RequestT:
        request = pool.requests.popleft()
        if not pool.requests:
            del self._queue[pool]
        return request

    def _put_last(self, pool: PoolConnections[ConnectionT, RequestT]) -> None:
        if pool in self._queue:
            self._queue[pool] = self._queue.pop(pool)

    def _neediest_pool(self) -> PoolConnections[ConnectionT, RequestT] | None:
        return min((pool for pool in self._queue if pool.open_count < pool.size), key=_open_count, default=None)

    def _must_yield(self, pool: PoolConnections[ConnectionT, RequestT], used_s: float) -> bool:
        rival = self._neediest_pool()
        if rival is None or used_s < self._turn_s():
            return False
        return rival.open_count == 0 or rival.open_count < pool.open_count - 1

    def _has_room(self) -> bool:
        return self.open_count < self._max or bool(self._idle)

    def _make_room(self, pool: PoolConnections[ConnectionT, RequestT], now: float, closed: list[ConnectionT]) -> bool:
        if self.open_count < self._max:
            return True
        connection, idle = next(iter(self._idle.items()))
        # A connection in regular use is not taken for a pool that already has one.
        if pool.open_count and now - idle.since < self._turn_s():
            return False
        closed.append(connection)
        return self.drop(connection)

    def _turn_s(self) -> float:
        return min(TURN_MAX_S, ROUND_S * self._max / len(self._queue))


def _open_count(pool: PoolConnections[ConnectionT, RequestT]) -> int:
    return pool.open_count
