"""The door to Postgres: one pool per shard, opened on first use, errors translated by SQLSTATE.

Connections carry no session state: what a transaction needs is set for it alone. So they also work through a pooler in
transaction mode, and nothing has to be reset between two uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Self

import asyncpg
import structlog

from simplu_worker.errors import TryAgainLaterError, WorkerError
from simplu_worker.log import register_secret
from simplu_worker.metrics import instruments
from simplu_worker.shards.address import ShardAddress
from simplu_worker.shards.sqlstate import Meaning, meaning_of

CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 3.0
IDLE_CONNECTION_LIFETIME_S = 60.0

# One round trip, in the simple protocol. The lock wait is short of the statement's deadline, so that a waiter learns
# why it failed; plans are made for the arrays at hand, as a plan for arrays of any length joins them by nested loops.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = '5s';
SET LOCAL statement_timeout = '25s';
SET LOCAL idle_in_transaction_session_timeout = '30s';
SET LOCAL plan_cache_mode = force_custom_plan;
"""

log = structlog.get_logger(__name__)

Connection = asyncpg.pool.PoolConnectionProxy


class InvalidDataError(WorkerError):
    """Postgres cannot store something in the batch; the transaction is gone."""


class LostRaceError(WorkerError):
    """The transaction lost a race against another one; run again, it may win."""


class ShardUnavailableError(TryAgainLaterError):
    """The shard cannot be used now: unreachable, starting, read-only, full, or not set up as expected."""


class ShardPool:
    """The connections to one shard.

    `address` may be replaced at any time (a failover, a new password): it holds from the next connection on, and those
    in use end when they are given back.
    """

    def __init__(self, address: ShardAddress, *, size: int) -> None:
        self.address = address
        self._opened_for = address
        self._size = size
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()
        self.is_healthy = True
        self.last_error: str | None = None

    def __repr__(self) -> str:
        return f"ShardPool({self.address.shard_id}, {self.address.place}, {self.counts()})"

    def counts(self) -> dict[str, int]:
        """Return how many connections are open and idle."""
        if self._pool is None:
            return {"open": 0, "idle": 0}
        return {"open": self._pool.get_size(), "idle": self._pool.get_idle_size()}

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[Any]]:
        """Lend a connection. A cancelled or late use ends it: what the server still does on it is unknown.

        Raises `ShardUnavailableError`, `InvalidDataError` and `LostRaceError`, also for what happens inside.
        """
        with self._translated():
            pool = await self._opened()
            connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
            try:
                yield connection
            except (asyncpg.PostgresError, WorkerError):
                raise
            except BaseException:
                connection.terminate()
                raise
            finally:
                await pool.release(connection, timeout=CLOSE_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection[Any]]:
        """Lend a connection within a transaction (READ COMMITTED, bounded in time), committed at the end.

        An error from the commit itself leaves its outcome unknown, as any error of the network does.
        """
        started = time.perf_counter()
        async with self.connection() as connection:
            await connection.execute(BEGIN)
            try:
                yield connection
            except (asyncpg.PostgresError, WorkerError):
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
        instruments.SHARD_RESPONSE.labels(self.address.shard_id).observe(time.perf_counter() - started)

    async def close(self) -> None:
        """Close all connections, forcibly after a few seconds."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def _opened(self) -> asyncpg.Pool[Any]:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self.address.connection_string,
                    min_size=0,
                    max_size=self._size,
                    timeout=CONNECT_TIMEOUT_S,
                    command_timeout=STATEMENT_TIMEOUT_S,
                    max_inactive_connection_lifetime=IDLE_CONNECTION_LIFETIME_S,
                    reset=_keep,
                )
            elif self._opened_for is not self.address:
                self._pool.set_connect_args(self.address.connection_string, timeout=CONNECT_TIMEOUT_S)
                await self._pool.expire_connections()
            self._opened_for = self.address
        return self._pool

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as exc:
            self._raise(exc)
        except asyncpg.exceptions.DataError:
            raise  # an argument of ours that cannot be encoded: a bug
        except (asyncpg.InterfaceError, OSError, TimeoutError) as exc:
            raise self._unavailable("connection", exc) from exc
        else:
            self._report(healthy=True)

    def _raise(self, exc: asyncpg.PostgresError) -> None:
        meaning = meaning_of(exc.sqlstate or "")
        match meaning:
            case Meaning.DATA:
                raise InvalidDataError(f"{type(exc).__name__} ({exc.sqlstate})") from exc
            case Meaning.TRY_AGAIN:
                instruments.SHARD_ERRORS.labels(self.address.shard_id, "lost_race").inc()
                raise LostRaceError(f"{type(exc).__name__} ({exc.sqlstate})") from exc
            case Meaning.UNAVAILABLE | Meaning.BROKEN:
                raise self._unavailable(meaning, exc) from exc

    def _unavailable(self, kind: str, exc: Exception) -> ShardUnavailableError:
        instruments.SHARD_ERRORS.labels(self.address.shard_id, kind).inc()
        # Server messages may quote rows; the class and its code say enough.
        code = getattr(exc, "sqlstate", None)
        self.last_error = f"{type(exc).__name__} ({code})" if code else type(exc).__name__
        self._report(healthy=False)
        return ShardUnavailableError(f"shard {self.address.shard_id} at {self.address.place}: {self.last_error}")

    def _report(self, *, healthy: bool) -> None:
        if healthy and not self.is_healthy:
            log.info("shard.recovered", shard_id=self.address.shard_id)
            self.last_error = None
        self.is_healthy = healthy
        instruments.SHARD_HEALTHY.labels(self.address.shard_id).set(healthy)


class Pools:
    """All pools of this replica, by shard id. Closes them when left."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._pools: dict[str, ShardPool] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.TaskGroup() as tasks:
            for shard_id, pool in self._pools.items():
                tasks.create_task(pool.close(), name=f"close:{shard_id}")

    def pool(self, address: ShardAddress) -> ShardPool:
        """Return the pool of a shard, made or re-pointed where needed. Opens no connection."""
        pool = self._pools.get(address.shard_id)
        register_secret_of(address)
        if pool is None:
            pool = self._pools[address.shard_id] = ShardPool(address, size=self._size)
        elif pool.address.connection_string != address.connection_string:
            log.info("shard.repointed", shard_id=address.shard_id, place=address.place)
            pool.address = address
        return pool

    def by_shard_id(self) -> Mapping[str, ShardPool]:
        """Return the pools that exist, by shard id."""
        return self._pools


def register_secret_of(address: ShardAddress) -> None:
    """Keep the password of a connection string out of every log line."""
    userinfo = address.connection_string.partition("://")[2].rpartition("@")[0]
    password = userinfo.partition(":")[2]
    if password:
        register_secret(password)


async def _keep(_: object) -> None:
    """Reset nothing: no session state is ever made, and the round trip costs as much as a small query."""
