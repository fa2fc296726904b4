"""The door to Postgres: one pool per shard, opened on first use, errors translated by SQLSTATE.

The session of a connection has the settings that the code relies on, and no use changes it; behind a pooler in
transaction mode each transaction makes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, NoReturn, Self, TypeAlias, assert_never

import asyncpg
import structlog

from simplu_worker import instruments
from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import Connector, ShardConnection
from simplu_worker.shards.postgres.errors import (
    ALL_IN_USE,
    EXPIRING_STATES,
    LOCK_TIMEOUT,
    POOLER_STATES,
    READ_ONLY,
    UNIQUE_VIOLATION,
    DuplicateKeyError,
    ErrorMeaning,
    LockTimeoutError,
    LostRaceError,
    StatementFailedError,
    ValueRefusedError,
    WrongDatabaseError,
    error_words,
    foreign_numbers_error,
    is_no_answer,
    meaning_of,
    raiser_of,
    state_words,
)
from simplu_worker.shards.postgres.lender import ConnectionLender, SharedBudget
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS, Isolation, ShardTimeouts, StatementBudget
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.telemetry.log import register_secret
from simplu_worker.timing.circuit_breaker import BreakerDecision, CircuitBreaker
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.vocabulary import ShardErrorKind

SILENCE_MAX_S: Final = 5.0  # without an answer, while a caller waits for one
PROBE_INTERVAL_S: Final = 1.0  # so that a recovered shard is used within two seconds
REFUSAL_COUNTS_S: Final = 30.0  # longer than the back-off of callers that write
NUMBERS_OF_SHARD: Final = frozenset({"log_batches_pkey", "tenants_number_key"})  # which the shard gives, each once
FULL_POOLER: Final = "no more connections allowed"
OF_STATEMENT: Final = frozenset({ErrorMeaning.DATA, ErrorMeaning.STATEMENT})

log = structlog.get_logger(__name__)


def is_of_statement(exc: asyncpg.PostgresError) -> bool:
    """Return whether only the statement failed, on a healthy server."""
    return _meaning_of(exc) in OF_STATEMENT


def is_of_full_server(exc: BaseException | None) -> bool:
    """Return whether *exc* is that of a server, or of PgBouncer before it, that takes no further connection."""
    if isinstance(exc, asyncpg.ProtocolViolationError):
        return str(exc).startswith(FULL_POOLER)
    return isinstance(exc, asyncpg.TooManyConnectionsError)


def _meaning_of(exc: asyncpg.PostgresError, *, is_early: bool = False) -> ErrorMeaning:
    raiser = raiser_of(exc.context, exc.server_source_function)
    is_of_connection = (exc.severity_en or exc.severity) in {"FATAL", "PANIC"}
    meaning = meaning_of(exc.sqlstate or "", raiser, is_early=is_early and not is_of_connection)
    return ErrorMeaning.UNAVAILABLE if meaning in OF_STATEMENT and is_of_connection else meaning


CONNECTIONS_MAX = 100_000  # the default: more than a process may have
PROBE_FRESH_S = 0.5
PROBE_FAILED_FRESH_S = 0.2  # callers back off before the next probe, and the shard may recover first
COUNT_S = 10.0  # a tenant may have millions of operations, and may wait while they are counted

Connection: TypeAlias = ShardConnection


class ShardPool:
    """The connections to one shard, its health, and the translation of vendor errors into ours.

    After a refused write only a commit makes the shard healthy, or a probe that saw it writable. When the circuit
    breaker opens, callers that wait for a connection get an error, and connections without an answer for long are
    ended.
    """

    def __init__(
        self,
        address: ShardAddress,
        *,
        size: int,
        timeouts: ShardTimeouts = DEFAULT_TIMEOUTS,
        budget: SharedBudget | None = None,
        clock: UtcClock = utc_now,
    ) -> None:
        self.clock = clock  # with which the shard's is compared
        self._timeouts = timeouts
        register_secret_of(address)
        self._connector = Connector(address, timeouts=timeouts)
        self._lender = ConnectionLender(
            partial(self._open_connection, within_s=timeouts.connect_s),
            size=size,
            budget=budget or SharedBudget(size, idle_s=timeouts.idle_s),
        )
        self._has_reported = False
        self._is_refused_as_read_only = False
        self.is_healthy = True  # whether its last use or probe succeeded
        self.last_error: str | None = None  # in words; None if it is healthy
        # Where the schema was found to be whole; the server behind it may be another one after an error.
        self.checked_address: ShardAddress | None = None
        # Lends no connection any more; its series are gone, and are not to come back while the last uses end.
        self.is_retired = False
        self._reset(address)
        self._shared_probe = SharedAnswer(self._probe_once, fresh_s=PROBE_FRESH_S, failed_fresh_s=PROBE_FAILED_FRESH_S)
        self.refusal: str | None = None  # why a probe found that this worker may not use it, such as its schema
        self.was_found = False  # whether the shard was found at its address at any time
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> ShardAddress:
        """The address of the shard."""
        return self._address

    def switch_to(self, address: ShardAddress) -> None:
        """Use another address for new connections; older ones end when they are given back."""
        log.info("shard.repointed", shard_id=address.shard_id, place=address.place)
        register_secret_of(address)
        self._connector = Connector(address, timeouts=self._timeouts)
        self._reset(address)
        self.refusal = None
        self._lender.expire()

    def seconds_of(self, budget: StatementBudget) -> float:
        """Return how long one statement of a transaction with *budget* may take."""
        return self._timeouts.limits_of(budget).statement_s

    def counts(self) -> dict[str, int]:
        """Return how many connections are open and idle, and how many callers wait."""
        return self._lender.counts()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[ShardConnection]:
        """Lend a connection; a cancelled use ends it, and the server is asked to stop the statement.

        Raises `ShardUnavailableError` and `LostRaceError`, also for errors inside the block. Never call it while
        holding a connection: all may be lent to callers that wait for a second one.
        """
        await self._admit()
        async with self._lend(StatementBudget.USUAL) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _lend(self, budget: StatementBudget | None) -> AsyncIterator[ShardConnection]:
        try:
            connection = await self._lender.borrow(within_s=self._timeouts.acquire_s)
        except TimeoutError as exc:
            self._count_error(ShardErrorKind.BUSY)
            raise self.unavailable_error(ALL_IN_USE) from exc
        timeout_s = 0.0 if budget is None else self.seconds_of(budget)
        with self._translate_errors(asked_at=loop_time(), is_probe=budget is None, timeout_s=timeout_s):
            try:
                yield connection
            except (asyncpg.PostgresError, WorkerError) as exc:
                self._react_to(connection, exc)
                raise
            except (asyncio.CancelledError, TimeoutError):
                self._stop(connection)
                raise
            except BaseException as exc:
                self._react_to(connection, exc)
                connection.terminate()
                raise
            finally:
                self._lender.give_back(connection)

    @contextlib.asynccontextmanager
    async def transaction(
        self,
        *,
        is_rehearsal: bool = False,
        budget: StatementBudget = StatementBudget.USUAL,
        isolation: Isolation = Isolation.READ_COMMITTED,
    ) -> AsyncIterator[ShardConnection]:
        """Lend a connection within a transaction, committed at the end, or rolled back if it is a rehearsal.

        After an error of the commit its outcome is unknown.
        """
        started = time.perf_counter()
        await self._admit()
        async with self._lend(budget) as connection:
            try:
                await connection.send(self._timeouts.begin(budget, isolation, settings=connection.settings))
                yield connection
            except (asyncpg.PostgresError, WorkerError):
                if not connection.is_closed():
                    await connection.send("ROLLBACK")
                raise
            if is_rehearsal:
                await connection.send("ROLLBACK")
                return
            await connection.send("COMMIT")
        self._record_commit()
        if not self.is_retired:
            instruments.SHARD_RESPONSE.labels(self.address.shard_id).observe(time.perf_counter() - started)

    async def count(self, query: str, *arguments: object) -> list[asyncpg.Record] | None:
        """Return the rows of a query that counts for people; None after COUNT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNT_S), self.connection() as connection:
                rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
                return rows
        return None

    @contextlib.asynccontextmanager
    async def fresh_connection(self) -> AsyncIterator[ShardConnection]:
        """Open a connection for a probe beside the pool's and its budget, within `ShardTimeouts.probe_s`.

        Where the server has no room for one, an idle one of the pool is lent.
        """
        if self.is_retired:
            raise retired_error(self._address.shard_id)
        asked_at = loop_time()
        fresh: ShardConnection | None = None
        try:
            fresh = await self._open_connection(within_s=self._timeouts.probe_s)
        except ShardUnavailableError as exc:
            if not is_of_full_server(exc.__cause__) or not self.counts()["idle"]:
                raise
        with self._translate_errors(asked_at=asked_at, is_probe=True):
            async with asyncio.timeout_at(asked_at + self._timeouts.probe_s):
                if fresh is None:
                    async with self._lend(None) as connection:
                        yield connection
                    return
                try:
                    yield fresh
                    await fresh.close()
                finally:
                    fresh.terminate()

    async def probe(self) -> None:
        """Check, with a shared probe, that the server answers and takes writes, else raise `RetryableError`."""
        await self._shared_probe()

    async def _probe_once(self) -> None:
        self._check_refusal()
        was_healthy = self.is_healthy
        async with self.fresh_connection() as connection:
            if await connection.fetchval(QUERIES["is_read_only"]):
                raise asyncpg.ReadOnlySQLTransactionError("as a write would")
            await connection.execute(QUERIES["take_transaction_id"])
            is_of_pool = connection.generation is not None
        self.record_writable()
        if not was_healthy and not is_of_pool:
            # The old connections may lead to a dead server, and hang for as long as a reply may take.
            self._lender.expire()

    async def close(self, *, within_s: float | None = None) -> None:
        """Close all connections, each when it is given back, forcibly after a few seconds."""
        await self._lender.close(within_s=self._timeouts.close_s if within_s is None else within_s)
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=self._timeouts.stop_s)
            for task in self._stopping:
                task.cancel()

    async def drain(self) -> None:
        """Close all connections, each when it is given back."""
        await self.close(within_s=self._timeouts.reply_s)

    def _check_refusal(self) -> None:
        if self.refusal is not None:
            shard_id = self._address.shard_id
            raise ShardUnavailableError(f"shard {shard_id}: {self.refusal}", shard_id=shard_id)

    async def _admit(self) -> None:
        if self.is_retired:
            raise retired_error(self._address.shard_id)
        self._check_refusal()
        match self._breaker.decide(loop_time()):
            case BreakerDecision.ADMIT:
                pass
            case BreakerDecision.PROBE:
                await self.probe()
            case BreakerDecision.REFUSE:
                raise self.unavailable_error()
            case admission:
                assert_never(admission)

    async def _open_connection(self, *, within_s: float) -> ShardConnection:
        with self._translate_connect_errors():
            return await self._connector.connect(within_s=within_s)

    def _stop(self, connection: ShardConnection) -> None:
        if not self._lender.remove_lent(connection):
            return
        task = asyncio.get_running_loop().create_task(self._end(connection), name=f"stop:{self.address.shard_id}")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _end(self, connection: ShardConnection) -> None:
        try:
            with contextlib.suppress(Exception):
                await connection.close(timeout=self._timeouts.cancel_s)
        finally:
            connection.terminate()
            self._lender.release_slot()

    def _react_to(self, connection: ShardConnection, exc: BaseException) -> None:
        sqlstate = exc.sqlstate if isinstance(exc, asyncpg.PostgresError) and not is_of_statement(exc) else None
        if sqlstate in POOLER_STATES:
            self._connector.has_pooler = True
        if sqlstate == READ_ONLY:
            self._connector.put_last(connection.place)
        if sqlstate in EXPIRING_STATES or isinstance(exc, asyncpg.OutdatedSchemaCacheError):
            self._lender.expire()

    def _reset(self, address: ShardAddress) -> None:
        self._address = address
        self._breaker = CircuitBreaker(
            rest_s=PROBE_INTERVAL_S, rest_max_s=PROBE_INTERVAL_S, silence_max_s=SILENCE_MAX_S
        )
        self._refused_at: float | None = None  # when it last answered that it could not run a statement

    def unavailable_error(self, error: str | None = None) -> ShardUnavailableError:
        """Return the error for a caller that may not use the shard, by default the last one."""
        message = self._address.error_with_place(error or self.last_error)
        return ShardUnavailableError(message, shard_id=self._address.shard_id)

    def _record_commit(self) -> None:
        self._refused_at = None
        self._report(healthy=True)

    def record_writable(self) -> None:
        """Record that the server takes writes; after another refusal that is no proof for a while."""
        refused_at = self._refused_at
        if refused_at is None or self._is_refused_as_read_only or loop_time() - refused_at > REFUSAL_COUNTS_S:
            self._record_commit()

    @contextlib.contextmanager
    def _translate_errors(self, *, asked_at: float, is_probe: bool = False, timeout_s: float = 0.0) -> Iterator[None]:
        """Translate and record the errors of a use of a connection since *asked_at*.

        A statement cancelled before *timeout_s* was cancelled by another session. In a probe the shard is at fault.
        """
        try:
            yield
        except asyncpg.PostgresError as exc:
            self._raise(exc, asked_at, is_probe=is_probe, timeout_s=timeout_s)
        except asyncpg.OutdatedSchemaCacheError as exc:
            raise self._record_lost_race(error_words(exc)) from exc
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as exc:
            raise self._record_unavailable(ShardErrorKind.CONNECTION, exc, asked_at=asked_at) from exc
        else:
            self._breaker.record_answer(loop_time())
            if self._refused_at is None:
                self._report(healthy=True)

    @contextlib.contextmanager
    def _translate_connect_errors(self) -> Iterator[None]:
        """Translate and record the errors of connecting, which are never about a statement or data."""
        asked_at = loop_time()
        try:
            yield
        except ShardUnavailableError as exc:  # the connector's own
            is_broken = isinstance(exc, WrongDatabaseError)  # else it has no password
            kind = ShardErrorKind.BROKEN if is_broken else ShardErrorKind.CONNECTION
            self._record_error(kind, self._address.without_name(str(exc)))
            raise
        except asyncpg.TargetServerAttributeNotMatched as exc:
            self._record_refusal(is_read_only=True)
            raise self._record_unavailable(ShardErrorKind.UNAVAILABLE, exc) from exc
        except asyncpg.PostgresError as exc:
            if is_of_full_server(exc) and self._lender.has_connections:
                # The server has no room for another connection, and works on the existing ones.
                self._breaker.record_answer(loop_time())
                self._count_error(ShardErrorKind.UNAVAILABLE)
                raise self.unavailable_error(error_words(exc)) from exc
            kind = (
                ShardErrorKind.BROKEN
                if meaning_of(exc.sqlstate or "") is ErrorMeaning.BROKEN
                else ShardErrorKind.UNAVAILABLE
            )
            raise self._record_unavailable(kind, exc, asked_at=self._record_answer(exc, asked_at)) from exc
        except (ValueError, ArithmeticError, LookupError) as exc:
            # Errors of the libraries over the address: a port beyond 65535, an invalid host name, an unknown sslmode.
            # Not chained: such an error may quote the connection string.
            raise self._record_unavailable(ShardErrorKind.CONNECTION, exc, asked_at=asked_at) from None
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
            raise self._record_unavailable(ShardErrorKind.CONNECTION, exc, asked_at=asked_at) from exc

    def _raise(self, exc: asyncpg.PostgresError, asked_at: float, *, is_probe: bool, timeout_s: float) -> NoReturn:
        meaning = _meaning_of(exc, is_early=loop_time() - asked_at < timeout_s)
        since = self._record_answer(exc, asked_at)
        if meaning in OF_STATEMENT and is_probe:
            meaning = ErrorMeaning.UNAVAILABLE
        error, shard_id = state_words(exc.sqlstate), self._address.shard_id
        match meaning:
            case ErrorMeaning.TRY_AGAIN:
                raise self._record_lost_race(error, is_lock=exc.sqlstate == LOCK_TIMEOUT) from exc
            case ErrorMeaning.STATEMENT if exc.constraint_name in NUMBERS_OF_SHARD:
                self._count_error(ShardErrorKind.STATEMENT)
                raise foreign_numbers_error(shard_id) from exc
            case ErrorMeaning.STATEMENT | ErrorMeaning.DATA:
                raise self._statement_error(exc, meaning, error) from exc
            case ErrorMeaning.UNAVAILABLE | ErrorMeaning.BROKEN:
                if since is None:
                    self._record_refusal(is_read_only=exc.sqlstate == READ_ONLY)
                raise self._record_unavailable(ShardErrorKind(meaning), exc, asked_at=since) from exc
            case _:
                assert_never(meaning)

    def _statement_error(self, exc: asyncpg.PostgresError, meaning: ErrorMeaning, error: str) -> StatementFailedError:
        message, is_duplicate = self._address.error_with_place(error), exc.sqlstate == UNIQUE_VIOLATION
        self._count_error(ShardErrorKind.DUPLICATE_KEY if is_duplicate else ShardErrorKind.STATEMENT)
        if is_duplicate:
            return DuplicateKeyError(message, error=error, table=exc.table_name)
        if meaning is ErrorMeaning.DATA:
            return ValueRefusedError(message, error=error)
        return StatementFailedError(message, error=error, is_timeout=isinstance(exc, asyncpg.QueryCanceledError))

    def _record_answer(self, exc: asyncpg.PostgresError, asked_at: float) -> float | None:
        if is_no_answer(exc.sqlstate or "") and not is_of_statement(exc):
            return asked_at
        self._breaker.record_answer(loop_time())
        return None

    def _record_refusal(self, *, is_read_only: bool) -> None:
        self._refused_at = loop_time()
        self._is_refused_as_read_only = is_read_only

    def _record_lost_race(self, error: str, *, is_lock: bool = False) -> LostRaceError:
        self._count_error(ShardErrorKind.LOST_RACE)
        return (LockTimeoutError if is_lock else LostRaceError)(f"shard {self._address.shard_id}: {error}")

    def _record_unavailable(
        self, kind: ShardErrorKind, exc: Exception, *, asked_at: float | None = None
    ) -> ShardUnavailableError:
        self._record_error(kind, error_words(exc))
        if asked_at is not None:
            self._record_no_answer(asked_at)
        return self.unavailable_error()

    def _record_no_answer(self, asked_at: float) -> None:
        now, lent_since = loop_time(), self._lender.lent_since
        if self._breaker.record_failure(now, asked_at=asked_at if lent_since is None else min(asked_at, lent_since)):
            log.warning("shard.cut_off", shard_id=self._address.shard_id, error=self.last_error)
            self._lender.reject_waiters(self.unavailable_error)
            # A use without an answer for that long gets none, and other shards need the slot.
            self._lender.terminate_lent(before=now - SILENCE_MAX_S)

    def _record_error(self, kind: ShardErrorKind, error: str) -> None:
        self._count_error(kind)
        self.last_error = error
        self.checked_address = None
        self._report(healthy=False)

    def _count_error(self, kind: ShardErrorKind) -> None:
        if not self.is_retired:
            instruments.SHARD_ERRORS.labels(self._address.shard_id, kind).inc()

    def _report(self, *, healthy: bool) -> None:
        if self._has_reported and healthy is self.is_healthy:
            return
        if healthy and not self.is_healthy:
            log.info("shard.recovered", shard_id=self._address.shard_id)
            self.last_error = None
        self._has_reported = True
        self.is_healthy = healthy
        if not self.is_retired:
            instruments.SHARD_HEALTHY.labels(self._address.shard_id).set(healthy)


class Pools:
    """All pools of this replica, by shard id; closed at the end of the context."""

    def __init__(
        self,
        *,
        size: int,
        max_connections: int = CONNECTIONS_MAX,
        timeouts: ShardTimeouts = DEFAULT_TIMEOUTS,
        clock: UtcClock = utc_now,
    ) -> None:
        self._clock = clock
        self._size = min(size, max_connections)
        self._timeouts = timeouts
        self._budget = SharedBudget(max_connections, idle_s=timeouts.idle_s)
        self._pools: dict[str, ShardPool] = {}
        self._retired: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.TaskGroup() as tasks:
            for shard_id, pool in self._pools.items():
                tasks.create_task(pool.close(), name=f"close:{shard_id}")

    def ensure_pool(self, address: ShardAddress) -> ShardPool:
        """Return the pool of a shard, which may be at another address by now; create it without I/O.

        Raises `ShardUnavailableError` for an address that may not be used, and for a retired shard.
        """
        if address.refusal is not None:
            raise ShardUnavailableError(address.refusal)
        if address.shard_id in self._retired:
            raise retired_error(address.shard_id)
        pool = self._pools.get(address.shard_id)
        if pool is None:
            pool = self._pools[address.shard_id] = ShardPool(
                address, size=self._size, timeouts=self._timeouts, budget=self._budget, clock=self._clock
            )
        return pool

    def by_shard_id(self) -> Mapping[str, ShardPool]:
        """Return the pools that exist, by shard id."""
        return self._pools

    def pool_of(self, shard_id: str) -> ShardPool:
        """Return the existing pool of a shard. Raises `ShardUnavailableError` without one."""
        pool = self.by_shard_id().get(shard_id)
        if pool is None:
            raise retired_error(shard_id)
        return pool

    def is_retired(self, shard_id: str) -> bool:
        """Return whether a shard is not to be used any more."""
        return shard_id in self._retired

    def retire(self, shard_ids: Collection[str]) -> list[ShardPool]:
        """Stop the use of shards by any caller until `restore`; return their pools, to be closed."""
        self._retired.update(shard_ids)
        pools = [pool for pool in (self._pools.pop(shard_id, None) for shard_id in shard_ids) if pool is not None]
        for pool in pools:
            pool.is_retired = True
        return pools

    def restore(self, shard_ids: Iterable[str]) -> None:
        """Allow the use of shards that may have been retired before."""
        self._retired.difference_update(shard_ids)


def retired_error(shard_id: str) -> ShardUnavailableError:
    """Return the error for a use of a retired shard."""
    return ShardUnavailableError(f"shard {shard_id}: it is not among the shards any more")


def register_secret_of(address: ShardAddress) -> None:
    """Keep the password of a connection string out of every log line."""
    userinfo = address.connection_string.partition("://")[2].rpartition("@")[0]
    password = userinfo.partition(":")[2]
    if password:
        register_secret(password)
