"""The connections of the pools, lent to their callers: by the turns of the budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from simplu_worker.shards.postgres.assignment import ConnectionBudget, PoolConnections
from simplu_worker.shards.postgres.connector import ShardConnection
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time


class Request:
    """A caller that waits for its turn. It may be granted one while it is being cancelled, and gives that back."""

    def __init__(self) -> None:
        self.is_over = False
        self.connection: ShardConnection | None = None  # None: the caller may open one
        self.error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None

    def grant(self, connection: ShardConnection | None, *, error: Exception | None = None) -> None:
        """Let the caller go on."""
        self.is_over, self.connection, self.error = True, connection, error
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self) -> None:
        """Wait for the end."""
        if not self.is_over:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake


SharedBudget: TypeAlias = ConnectionBudget[ShardConnection, Request]


class ConnectionLender:
    """The lender of the connections to one shard, opened by *open_one*, at most *size*."""

    def __init__(self, open_one: Callable[[], Awaitable[ShardConnection]], *, size: int, budget: SharedBudget) -> None:
        self._open_one = open_one
        self._budget = budget
        self._pool = PoolConnections[ShardConnection, Request](size)
        self._generation = 0
        self._all_returned: asyncio.Event | None = None  # set while `close` waits for it

    def counts(self) -> dict[str, int]:
        """Return how many connections are open and idle, and how many callers wait."""
        pool = self._pool
        return {"open": pool.open_count, "idle": len(pool.idle), "waiting": len(pool.requests)}

    @property
    def has_connections(self) -> bool:
        """Whether a connection is open, lent or idle."""
        return bool(self._pool.lent or self._pool.idle)

    @property
    def lent_since(self) -> float | None:
        """The time at which the longest-lent connection was lent."""
        return next(iter(self._pool.lent.values()), None)

    async def borrow(self, *, within_s: float) -> ShardConnection:
        """Return a connection, to be given back. Raises `TimeoutError`, and as *open_one* does."""
        while (connection := self._budget.take_idle(self._pool, loop_time())) is not None:
            if not connection.is_closed():
                return connection  # without a timer, which costs more than all the rest
            self.give_back(connection)
        async with asyncio.timeout(within_s):
            while (connection := await self._wait_for_turn()) is not None:
                if not connection.is_closed():
                    return connection
                self.give_back(connection)
            return await self._open()

    def give_back(self, connection: ShardConnection) -> None:
        """Take a connection back; end it if it is closed, expired, or in a transaction."""
        if not self.remove_lent(connection):
            return
        is_good = not connection.is_closed() and connection.generation == self._generation
        if is_good and not connection.is_in_transaction():
            self._budget.park(self._pool, connection, loop_time())
            self._budget.assign(loop_time())
        else:
            connection.terminate()
            self.release_slot()

    def remove_lent(self, connection: ShardConnection) -> bool:
        """Take back a lent connection that is to end; its slot stays until `release_slot`."""
        if self._pool.lent.pop(connection, None) is None:
            return False
        if self._all_returned is not None and not self._pool.lent:
            self._all_returned.set()
        return True

    def release_slot(self) -> None:
        """Release the slot of a connection that was removed and has ended."""
        self._budget.release(self._pool)
        self._budget.assign(loop_time())

    def expire(self) -> None:
        """End idle connections now, and lent ones when they are given back."""
        self._generation += 1
        for connection in [*self._pool.idle]:
            self._budget.end(connection)
        self._budget.assign(loop_time())

    def terminate_lent(self, *, before: float) -> None:
        """End the connections that were lent before *before*."""
        for connection, since in self._pool.lent.items():
            if since <= before:
                connection.terminate()

    def reject_waiters(self, error: Callable[[], Exception]) -> None:
        """Fail every waiting caller with an error of its own."""
        for request in [*self._pool.requests]:
            self._budget.withdraw(self._pool, request)
            request.grant(None, error=error())

    async def close(self, *, within_s: float) -> None:
        """End all connections; wait for lent ones up to *within_s*."""
        self.reject_waiters(lambda: ShardUnavailableError("the pool is being closed"))
        self.expire()
        try:
            if self._pool.lent:
                self._all_returned = asyncio.Event()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within_s):
                        await self._all_returned.wait()
        finally:
            self._all_returned = None
            self.terminate_lent(before=float("inf"))

    async def _wait_for_turn(self) -> ShardConnection | None:
        request = Request()
        self._budget.request(self._pool, request)
        self._budget.assign(loop_time())
        try:
            await request.wait()
        except BaseException:
            if not self._budget.withdraw(self._pool, request) and request.error is None:
                if request.connection is None:
                    self.release_slot()
                else:
                    self.give_back(request.connection)
            raise
        if request.error is not None:
            raise request.error
        return request.connection

    async def _open(self) -> ShardConnection:
        generation = self._generation
        try:
            connection = await self._open_one()
        except BaseException:
            self.release_slot()
            raise
        connection.generation = generation
        connection.add_termination_listener(self._on_terminated)
        self._pool.lent[connection] = loop_time()
        return connection

    def _on_terminated(self, connection: object) -> None:
        if isinstance(connection, ShardConnection) and self._budget.drop(connection):
            self._budget.assign(loop_time())
