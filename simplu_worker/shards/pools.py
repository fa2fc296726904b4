"""The door to Postgres: one pool per shard, opened on first use, errors translated by SQLSTATE.

Connections carry no session state: what a transaction needs is set for it alone. So they also work through a pooler in
transaction mode, and nothing has to be reset between two uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Self, TypeAlias

import asyncpg
import msgspec
import structlog

from simplu_worker.errors import TryAgainLaterError, WorkerError
from simplu_worker.log import register_secret
from simplu_worker.metrics import instruments
from simplu_worker.shards.address import ShardAddress
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.shared_look import SharedLook
from simplu_worker.shards.sqlstate import Meaning, meaning_of

IDLE_CONNECTION_LIFETIME_S = 60.0

# One round trip, in the simple protocol; plans are made for the arrays at hand, as a plan for arrays of any length
# joins them by nested loops.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
SET LOCAL plan_cache_mode = force_custom_plan;
"""

log = structlog.get_logger(__name__)

# Of the pool, or a fresh one.
Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"


class InvalidDataError(WorkerError):
    """Postgres cannot store something in the batch; the transaction is gone."""


class LostRaceError(TryAgainLaterError):
    """The transaction lost a race against another one; run again at once, it may win."""


class ShardUnavailableError(TryAgainLaterError):
    """The shard cannot be used now: unreachable, starting, read-only, full, or not set up as expected.

    *shard_id* is given where it is the shard that does not answer, so that a probe tells when it does again.
    """

    def __init__(self, message: str, *, shard_id: str | None = None) -> None:
        super().__init__(message)
        self.shard_id = shard_id


class StatementFailedError(ShardUnavailableError):
    """A statement failed by itself while the server works: whoever can take its batch apart finds out what makes it.

    To everybody else it is trouble of the shard. *error* is the server's error by class and code.
    """

    def __init__(self, message: str, *, error: str, is_timeout: bool) -> None:
        super().__init__(message)
        self.error = error
        self.is_timeout = is_timeout


class Deadlines(msgspec.Struct, frozen=True):
    """How long each thing done to a shard may take, in seconds.

    The server's own are the shorter ones, a lock wait the shortest: a waiter learns why it failed, and a server that
    answers nothing at all, such as a frozen one, is given up by *reply_s*. A probe has *probe_s* for everything.
    """

    connect_s: float = 5.0
    acquire_s: float = 10.0
    lock_s: float = 5.0
    statement_s: float = 25.0
    idle_in_transaction_s: float = 30.0
    reply_s: float = 30.0
    close_s: float = 3.0
    probe_s: float = 3.0

    @property
    def begin(self) -> str:
        """The statements that open a transaction in which they hold."""
        seconds = {"lock_ms": self.lock_s, "statement_ms": self.statement_s, "idle_ms": self.idle_in_transaction_s}
        return BEGIN.format(**{name: round(value * 1000) for name, value in seconds.items()})


DEADLINES = Deadlines()


class ShardPool:
    """The connections to one shard.

    `address` may be replaced at any time (a failover, a new password): it holds from the next connection on, and those
    in use end when they are given back.
    """

    def __init__(self, address: ShardAddress, *, size: int, deadlines: Deadlines = DEADLINES) -> None:
        self.address = address
        self._opened_for = address
        self._size = size
        self._deadlines = deadlines
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()
        self._shared_look = SharedLook(self._look)
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
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection. A cancelled or late use ends it: what the server still does on it is unknown.

        Raises `ShardUnavailableError`, `InvalidDataError` and `LostRaceError`, also for what happens inside.
        """
        with self._translated():
            pool, connection = await self._acquired()
            try:
                yield connection
            except (asyncpg.PostgresError, WorkerError):
                raise
            except BaseException:
                connection.terminate()
                raise
            finally:
                await pool.release(connection, timeout=self._deadlines.close_s)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection within a transaction (READ COMMITTED, bounded in time), committed at the end.

        An error from the commit itself leaves its outcome unknown, as any error of the network does.
        """
        started = time.perf_counter()
        async with self.connection() as connection:
            try:
                await connection.execute(self._deadlines.begin)
                yield connection
            except (asyncpg.PostgresError, WorkerError):
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
        instruments.SHARD_RESPONSE.labels(self.address.shard_id).observe(time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def fresh_connection(self) -> AsyncIterator[Connection]:
        """Open a connection beside the pool's, for a short look: all of it within `Deadlines.probe_s`.

        So it tells how the server is now, also while those of the pool hang or lead to where the server was before.
        Raises as `connection` does.
        """
        with self._translated():
            async with asyncio.timeout(self._deadlines.probe_s):
                with self._address_translated():
                    connection = await asyncpg.connect(self.address.connection_string, timeout=self._deadlines.probe_s)
                try:
                    yield connection
                    await connection.close()
                finally:
                    connection.terminate()

    async def probe(self) -> None:
        """Make sure that the server answers and takes writes; many who ask at once share one look.

        Raises `TryAgainLaterError` when not.
        """
        await self._shared_look()

    async def _look(self) -> None:
        was_healthy = self.is_healthy
        async with self.fresh_connection() as connection:
            if await connection.fetchval(QUERIES["is_read_only"]):
                raise asyncpg.ReadOnlySQLTransactionError("what a write would meet")
        if not was_healthy and self._pool is not None:
            # Those of before may lead to a server that is gone without a word, each for as long as a reply may take.
            await self._pool.expire_connections()

    async def close(self) -> None:
        """Close all connections, forcibly after a few seconds."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._deadlines.close_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def _acquired(self) -> tuple[asyncpg.Pool[Any], asyncpg.pool.PoolConnectionProxy[Any]]:
        with self._address_translated():
            pool = await self._opened()
            return pool, await pool.acquire(timeout=self._deadlines.acquire_s)

    async def _opened(self) -> asyncpg.Pool[Any]:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self.address.connection_string,
                    timeout=self._deadlines.connect_s,
                    command_timeout=self._deadlines.reply_s,
                    min_size=0,
                    max_size=self._size,
                    max_inactive_connection_lifetime=IDLE_CONNECTION_LIFETIME_S,
                    reset=_keep,
                )
            elif self._opened_for is not self.address:
                self._pool.set_connect_args(
                    self.address.connection_string,
                    timeout=self._deadlines.connect_s,
                    command_timeout=self._deadlines.reply_s,
                )
                await self._pool.expire_connections()
            self._opened_for = self.address
        return self._pool

    @contextlib.contextmanager
    def _address_translated(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, ArithmeticError, LookupError) as exc:
            # What the address does to the libraries: a port beyond 65535, a host that is no name, an unknown sslmode.
            # Not chained: such an error may quote the connection string.
            raise self._unavailable("connection", exc) from None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as exc:
            self._raise(exc)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as exc:
            raise self._unavailable("connection", exc) from exc
        else:
            self._report(healthy=True)

    def _raise(self, exc: asyncpg.PostgresError) -> None:
        meaning = meaning_of(exc.sqlstate or "")
        if meaning in {Meaning.DATA, Meaning.STATEMENT} and _ended_the_connection(exc):
            meaning = Meaning.UNAVAILABLE
        error = f"{type(exc).__name__} ({exc.sqlstate})"
        match meaning:
            case Meaning.DATA:
                raise InvalidDataError(error) from exc
            case Meaning.TRY_AGAIN:
                instruments.SHARD_ERRORS.labels(self.address.shard_id, "lost_race").inc()
                raise LostRaceError(f"shard {self.address.shard_id}: {error}") from exc
            case Meaning.STATEMENT:
                instruments.SHARD_ERRORS.labels(self.address.shard_id, meaning).inc()
                raise StatementFailedError(
                    f"shard {self.address.shard_id} at {self.address.place}: {error}",
                    error=error,
                    is_timeout=isinstance(exc, asyncpg.QueryCanceledError),
                ) from exc
            case Meaning.UNAVAILABLE | Meaning.BROKEN:
                raise self._unavailable(meaning, exc) from exc

    def _unavailable(self, kind: str, exc: Exception) -> ShardUnavailableError:
        instruments.SHARD_ERRORS.labels(self.address.shard_id, kind).inc()
        # Server messages may quote rows; the class and its code say enough.
        code = getattr(exc, "sqlstate", None)
        self.last_error = f"{type(exc).__name__} ({code})" if code else type(exc).__name__
        self._report(healthy=False)
        message = f"shard {self.address.shard_id} at {self.address.place}: {self.last_error}"
        return ShardUnavailableError(message, shard_id=self.address.shard_id)

    def _report(self, *, healthy: bool) -> None:
        if healthy and not self.is_healthy:
            log.info("shard.recovered", shard_id=self.address.shard_id)
            self.last_error = None
        self.is_healthy = healthy
        instruments.SHARD_HEALTHY.labels(self.address.shard_id).set(healthy)


class Pools:
    """All pools of this replica, by shard id. Closes them when left."""

    def __init__(self, *, size: int, deadlines: Deadlines = DEADLINES) -> None:
        self._size = size
        self._deadlines = deadlines
        self._pools: dict[str, ShardPool] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.TaskGroup() as tasks:
            for shard_id, pool in self._pools.items():
                tasks.create_task(pool.close(), name=f"close:{shard_id}")

    def pool(self, address: ShardAddress) -> ShardPool:
        """Return the pool of a shard, made or re-pointed where needed. Opens no connection.

        Raises `ShardUnavailableError` for an address that may not be used.
        """
        if address.refusal is not None:
            raise ShardUnavailableError(address.refusal)
        pool = self._pools.get(address.shard_id)
        if pool is None:
            register_secret_of(address)
            pool = self._pools[address.shard_id] = ShardPool(address, size=self._size, deadlines=self._deadlines)
        elif pool.address.connection_string != address.connection_string:
            register_secret_of(address)
            log.info("shard.repointed", shard_id=address.shard_id, place=address.place)
            pool.address = address
        return pool

    async def probe(self) -> None:
        """Ask the shards that last failed whether they are back; one that nobody uses would stay unhealthy for ever."""
        async with asyncio.TaskGroup() as tasks:
            for shard_id, pool in self._pools.items():
                if not pool.is_healthy:
                    tasks.create_task(_probe(pool), name=f"probe:{shard_id}")

    def by_shard_id(self) -> Mapping[str, ShardPool]:
        """Return the pools that exist, by shard id."""
        return self._pools


def register_secret_of(address: ShardAddress) -> None:
    """Keep the password of a connection string out of every log line."""
    userinfo = address.connection_string.partition("://")[2].rpartition("@")[0]
    password = userinfo.partition(":")[2]
    if password:
        register_secret(password)


async def _probe(pool: ShardPool) -> None:
    with contextlib.suppress(TryAgainLaterError):  # its health says what came of it
        await pool.probe()


def _ended_the_connection(exc: asyncpg.PostgresError) -> bool:
    """Tell whether it was said of the connection, by the server or a pooler in front of it, and not of a statement."""
    return (exc.severity_en or exc.severity) in {"FATAL", "PANIC"}


async def _keep(_: object) -> None:
    """Reset nothing: no session state is ever made, and the round trip costs as much as a small query."""
