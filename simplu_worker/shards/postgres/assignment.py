"""Which caller gets which connection, within the budget that the pools of all shards share. Pure.

A caller gets the connection that its pool got back last, so that surplus ones stay idle and are closed. Else the pool
takes a free slot, or that of the connection idle longest, of any pool. If none is idle, the pools take turns: first the
pool with the fewest connections, among equals the one that has waited longest. A pool yields a connection after its
turn, so every pool gets one, however many wait in others.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Generic, Protocol, TypeVar

TURN_MAX_S: Final = 0.5  # some hundred times the time to connect
ROUND_S: Final = 4.0  # about the time until every pool has had a turn: shorter than any caller waits


class Opened(Protocol):
    """A connection, as the budget sees it."""

    opened_at: float

    def terminate(self) -> None:
        """End it; its slot is accounted for."""


class Waiting(Protocol):
    """A caller, as the budget sees it."""

    def grant(self, connection: Any) -> None:
        """Let the caller use *connection*, or open one: None."""


ConnectionT = TypeVar("ConnectionT", bound=Opened)
RequestT = TypeVar("RequestT", bound=Waiting)


class PoolConnections(Generic[ConnectionT, RequestT]):
    """The connections of one pool, at most *size*, and the requests that wait for one, first come, first served."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.idle: list[ConnectionT] = []  # returned last at the end
        self.lent: dict[ConnectionT, float] = {}  # since when; longest lent first
        self.requests: deque[RequestT] = deque()
        self.open_count = 0  # with those that are being opened or closed


class ConnectionBudget(Generic[ConnectionT, RequestT]):
    """The connections of all pools, which end after *idle_s*. After any change `assign` is to be called."""

    def __init__(self, max_connections: int, *, idle_s: float) -> None:
        self._max = max_connections
        self._idle_s = idle_s
        # Of all pools, longest idle first, each with its pool and since when.
        self._idle: dict[ConnectionT, tuple[PoolConnections[ConnectionT, RequestT], float]] = {}
        self._queue: dict[PoolConnections[ConnectionT, RequestT], None] = {}  # pools with requests, by turns
        self.open_count = 0

    def take_idle(self, pool: PoolConnections[ConnectionT, RequestT], now: float) -> ConnectionT | None:
        """Lend an idle connection of *pool* at once; None if there is none, or callers wait."""
        if self._queue or not pool.idle:
            return None
        return self._lend(pool, now)

    def request(self, pool: PoolConnections[ConnectionT, RequestT], request: RequestT) -> None:
        """Note that a caller waits."""
        pool.requests.append(request)
        self._queue.setdefault(pool)

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
        self._idle[connection] = (pool, now)

    def release(self, pool: PoolConnections[ConnectionT, RequestT]) -> None:
        """Note that a slot of *pool* is free: its connection ended, or was never opened."""
        pool.open_count -= 1
        self.open_count -= 1
        if pool in self._queue:  # behind the others
            self._queue[pool] = self._queue.pop(pool)

    def drop(self, connection: ConnectionT) -> bool:
        """Release the slot of an idle connection that ends; return false if it is not idle."""
        if connection not in self._idle:
            return False
        pool, _ = self._idle.pop(connection)
        pool.idle.remove(connection)
        self.release(pool)
        return True

    def end(self, connection: ConnectionT) -> None:
        """End an idle connection."""
        self.drop(connection)
        connection.terminate()

    def assign(self, now: float) -> None:
        """End what was idle for too long, and serve the requests that can be served now."""
        while self._idle and (first := next(iter(self._idle.items())))[1][1] <= now - self._idle_s:
            self.end(first[0])
        for pool in [*self._queue]:
            while pool.requests and pool.idle:
                if self._must_yield(pool, now - pool.idle[-1].opened_at):
                    self.end(pool.idle[-1])
                    self._open(now)
                else:
                    self._take_request(pool).grant(self._lend(pool, now))
        self._open(now)

    def _open(self, now: float) -> None:
        while self._queue and (needy := self._neediest_pool()) is not None and self._make_room(needy, now):
            needy.open_count += 1
            self.open_count += 1
            self._take_request(needy).grant(None)

    def _lend(self, pool: PoolConnections[ConnectionT, RequestT], now: float) -> ConnectionT:
        connection = pool.idle.pop()
        del self._idle[connection]
        pool.lent[connection] = now
        return connection

    def _take_request(self, pool: PoolConnections[ConnectionT, RequestT]) -> RequestT:
        request = pool.requests.popleft()
        if not pool.requests:
            del self._queue[pool]
        return request

    def _neediest_pool(self) -> PoolConnections[ConnectionT, RequestT] | None:
        return min(
            (pool for pool in self._queue if pool.open_count < pool.size),
            key=lambda pool: pool.open_count,
            default=None,
        )

    def _must_yield(self, pool: PoolConnections[ConnectionT, RequestT], used_s: float) -> bool:
        rival = self._neediest_pool()
        if rival is None or used_s < self._turn_s():
            return False
        return rival.open_count == 0 or rival.open_count < pool.open_count - 1

    def _make_room(self, pool: PoolConnections[ConnectionT, RequestT], now: float) -> bool:
        if self.open_count < self._max:
            return True
        if not self._idle:
            return False
        connection, (_, since) = next(iter(self._idle.items()))
        # A connection in regular use is not taken for a pool that already has one.
        if pool.open_count and now - since < self._turn_s():
            return False
        self.end(connection)
        return True

    def _turn_s(self) -> float:
        return min(TURN_MAX_S, ROUND_S * self._max / len(self._queue))
