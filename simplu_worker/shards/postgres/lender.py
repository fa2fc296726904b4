"""The connections to one shard, lent to its callers: first come, first served.

The connection returned last is lent first, so that surplus ones stay idle and are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from simplu_worker.shards.postgres.connection_budget import ConnectionBudget, PoolMember
from simplu_worker.shards.postgres.connector import ShardConnection
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

SWEEPS: Final = 4  # per `idle_s`

Opener: TypeAlias = Callable[[], Awaitable[ShardConnection]]


class SharedBudget(ConnectionBudget[ShardConnection]):
    """The budget of all pools that share it; closes connections that were idle for *idle_s*."""

    def __init__(self, max_connections: int, *, idle_s: float) -> None:
        super().__init__(max_connections)
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None

    def park_idle(self, member: PoolMember[ShardConnection], connection: ShardConnection, now: float) -> None:
        """Note that a connection became idle, and schedule the sweep."""
        super().park_idle(member, connection, now)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s / SWEEPS, self._sweep)

    def close(self) -> None:
        """Cancel the sweep."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        now = loop_time()
        for member, connection in self.idle_since_before(now - self._idle_s):
            self.take_idle(connection)
            member.close_idle(connection)
            self.release_slot(member, now)
        self.grant_slots(now)
        self._timer = None
        if self.has_idle:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s / SWEEPS, self._sweep)


class ConnectionLender:
    """The lender of the connections to one shard, opened by *open_one*, at most *size*."""

    def __init__(self, open_one: Opener, *, size: int, budget: SharedBudget) -> None:
        self._open_one = open_one
        self._size = size
        self._budget = budget
        self._idle: list[ShardConnection] = []
        self._lent: dict[ShardConnection, float] = {}  # since when; longest lent first
        self._waiters: deque[asyncio.Future[ShardConnection | None]] = deque()  # None: the waiter may open one
        self._generation = 0
        self._all_returned: asyncio.Event | None = None  # set while `close` waits for it
        self.open_count = 0

    def counts(self) -> dict[str, int]:
        """Return how many connections are open and idle, and how many callers wait."""
        return {"open": self.open_count, "idle": len(self._idle), "waiting": len(self._waiters)}

    @property
    def has_connections(self) -> bool:
        """Whether a connection is open, lent or idle."""
        return bool(self._lent or self._idle)

    @property
    def lent_since(self) -> float | None:
        """The time at which the longest-lent connection was lent."""
        return next(iter(self._lent.values()), None)

    async def borrow(self, *, within_s: float) -> ShardConnection:
        """Return a connection, to be given back. Raises `TimeoutError`, and as *open_one* does."""
        now = loop_time()
        while self._idle:
            connection = self._idle.pop()
            self._budget.take_idle(connection)
            if not connection.is_closed():
                self._lent[connection] = now
                return connection
            self._release_slot(now)
        async with asyncio.timeout(within_s):
            if self._waiters or self.open_count >= self._size or not self._take_slot(now):
                turn = await self._wait_for_turn()
                if turn is not None:
                    return turn
            return await self._open()

    def give_back(self, connection: ShardConnection) -> None:
        """Take a connection back; end it if it is closed, expired, or in a transaction."""
        now = loop_time()
        if not self.remove_lent(connection):
            return
        is_good = not connection.is_closed() and connection.generation == self._generation
        if not is_good or connection.is_in_transaction():
            self._terminate(connection, now)
        elif not self._waiters:
            self._park_idle(connection, now)
        elif self._budget.must_yield(self, used_s=now - connection.opened_at):
            self._terminate(connection, now)
        else:
            self._hand_on(connection, now)
            self._budget.grant_slots(now)  # other connections may have been idle for long enough by now

    def remove_lent(self, connection: ShardConnection) -> bool:
        """Take back a lent connection that is to end; its slot stays until `release_slot`."""
        if self._lent.pop(connection, None) is None:
            return False
        if self._all_returned is not None and not self._lent:
            self._all_returned.set()
        return True

    def release_slot(self) -> None:
        """Release the slot of a connection that was removed and has ended."""
        self._release_slot(loop_time())

    def expire(self) -> None:
        """End idle connections now, and lent ones when they are given back."""
        self._generation += 1
        now = loop_time()
        for connection in self._idle:
            self._budget.take_idle(connection)
            connection.terminate()
        ended, self._idle = len(self._idle), []
        for _ in range(ended):
            self._release_slot(now)

    def terminate_lent(self, *, before: float) -> None:
        """End the connections that were lent before *before*."""
        for connection, since in self._lent.items():
            if since <= before:
                connection.terminate()

    def reject_waiters(self, error: Callable[[], Exception]) -> None:
        """Fail every waiting caller with an error of its own."""
        waiters, self._waiters = self._waiters, deque()
        self._budget.withdraw(self)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error())

    async def close(self, *, within_s: float) -> None:
        """End all connections; wait for lent ones up to *within_s*."""
        self.reject_waiters(lambda: ShardUnavailableError("the pool is being closed"))
        self.expire()
        try:
            if self._lent:
                self._all_returned = asyncio.Event()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await self._all_returned.wait()
        finally:
            self._all_returned = None
            self.terminate_lent(before=float("inf"))

    # The protocol `PoolMember`.

    @property
    def wants_connection(self) -> bool:
        """Whether a caller waits, and the pool has fewer connections than it may."""
        return bool(self._waiters) and self.open_count < self._size

    def open_another(self) -> bool:
        """Let the first waiter open a connection."""
        waiter = self._next_waiter()
        if waiter is None:
            return False
        self.open_count += 1
        waiter.set_result(None)
        return True

    def close_idle(self, connection: ShardConnection) -> None:
        """Close an idle connection."""
        self._idle.remove(connection)
        self.open_count -= 1
        connection.terminate()

    def _take_slot(self, now: float) -> bool:
        if not self._budget.take_slot(self, now):
            return False
        self.open_count += 1
        return True

    async def _wait_for_turn(self) -> ShardConnection | None:
        waiter: asyncio.Future[ShardConnection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif (
                waiter.done() and not waiter.cancelled() and waiter.exception() is None
            ):  # granted and cancelled at once
                self._return_turn(waiter.result())
            raise
        finally:
            if not self._waiters:
                self._budget.withdraw(self)

    def _return_turn(self, turn: ShardConnection | None) -> None:
        if turn is None:
            self._release_slot(loop_time())
        else:
            self.give_back(turn)

    async def _open(self) -> ShardConnection:
        generation = self._generation
        try:
            connection = await self._open_one()
        except BaseException:
            self._release_slot(loop_time())
            raise
        connection.generation = generation
        connection.add_termination_listener(self._on_terminated)
        self._lent[connection] = loop_time()
        return connection

    def _park_idle(self, connection: ShardConnection, now: float) -> None:
        self._idle.append(connection)
        self._budget.park_idle(self, connection, now)

    def _hand_on(self, connection: ShardConnection, now: float) -> None:
        waiter = self._next_waiter()
        if waiter is None:
            self._park_idle(connection, now)
            return
        self._lent[connection] = now
        waiter.set_result(connection)

    def _next_waiter(self) -> asyncio.Future[ShardConnection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # otherwise cancelled, and not yet removed
                return waiter
        return None

    def _terminate(self, connection: ShardConnection, now: float) -> None:
        connection.terminate()
        self._release_slot(now)

    def _release_slot(self, now: float) -> None:
        self.open_count -= 1
        self._budget.release_slot(self, now)

    def _on_terminated(self, connection: object) -> None:
        if isinstance(connection, ShardConnection) and connection in self._idle:
            self._idle.remove(connection)
            self._budget.take_idle(connection)
            self._release_slot(loop_time())
