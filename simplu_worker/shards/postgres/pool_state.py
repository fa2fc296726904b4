"""The availability of a shard, as its users find it: their errors, translated, and the circuit breaker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, NoReturn, assert_never

import asyncpg
import structlog

from simplu_worker import instruments
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import (
    LOCK_TIMEOUT,
    READ_ONLY,
    UNIQUE_VIOLATION,
    DuplicateKeyError,
    ErrorMeaning,
    ForeignNumbersError,
    LockTimeoutError,
    LostRaceError,
    StatementFailedError,
    ValueRefusedError,
    WrongDatabaseError,
    error_words,
    foreign_numbers_message,
    is_no_answer,
    meaning_of,
    raiser_of,
    state_words,
)
from simplu_worker.shards.postgres.lender import ConnectionLender
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.circuit_breaker import CircuitBreaker
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import ShardErrorKind

SILENCE_MAX_S: Final = 5.0  # without an answer, while a caller waits for one
PROBE_INTERVAL_S: Final = 1.0  # so that a recovered shard is used within two seconds
REFUSAL_COUNTS_S: Final = 30.0  # longer than the back-off of callers that write
NUMBERS_OF_SHARD: Final = frozenset({"log_batches_pkey", "tenants_number_key"})  # which the shard gives, each once
FULL_POOLER: Final = "no more connections allowed"
OF_STATEMENT: Final = frozenset({ErrorMeaning.DATA, ErrorMeaning.STATEMENT})

log = structlog.get_logger(__name__)


class ShardAvailability:
    """The health of one shard, and the translation of vendor errors into ours.

    After a refused write only a commit makes the shard healthy, or a probe that saw it writable. When the circuit
    breaker opens, callers that wait for a connection get an error, and connections without an answer for long are
    ended.
    """

    def __init__(self, address: ShardAddress, lender: ConnectionLender) -> None:
        self._lender = lender
        self._has_reported = False
        self._is_refused_as_read_only = False
        self.is_healthy = True  # whether its last use or probe succeeded
        self.last_error: str | None = None  # in words; None if it is healthy
        # Where the schema was found to be whole; the server behind it may be another one after an error.
        self.checked_address: ShardAddress | None = None
        # Lends no connection any more; its series are gone, and are not to come back while the last uses end.
        self.is_retired = False
        self.reset(address)

    def reset(self, address: ShardAddress) -> None:
        """Forget the state of the old address."""
        self._address = address
        self._breaker = CircuitBreaker(
            rest_s=PROBE_INTERVAL_S, rest_max_s=PROBE_INTERVAL_S, silence_max_s=SILENCE_MAX_S
        )
        self._refused_at: float | None = None  # when it last answered that it could not run a statement

    def unavailable_error(self, error: str | None = None) -> ShardUnavailableError:
        """Return the error for a caller that may not use the shard, by default the last one."""
        message = self._address.error_with_place(error or self.last_error)
        return ShardUnavailableError(message, shard_id=self._address.shard_id)

    def record_commit(self) -> None:
        """Record a commit: the shard is healthy."""
        self._refused_at = None
        self._report(healthy=True)

    def record_writable(self) -> None:
        """Record that the server takes writes; after another refusal that is no proof for a while."""
        refused_at = self._refused_at
        if refused_at is None or self._is_refused_as_read_only or loop_time() - refused_at > REFUSAL_COUNTS_S:
            self.record_commit()

    @contextlib.contextmanager
    def translate_errors(self, *, asked_at: float, is_probe: bool = False, timeout_s: float = 0.0) -> Iterator[None]:
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
    def translate_connect_errors(self) -> Iterator[None]:
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
                self.count_error(ShardErrorKind.UNAVAILABLE)
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
                self.count_error(ShardErrorKind.STATEMENT)
                raise ForeignNumbersError(foreign_numbers_message(shard_id)) from exc
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
        self.count_error(ShardErrorKind.DUPLICATE_KEY if is_duplicate else ShardErrorKind.STATEMENT)
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
        self.count_error(ShardErrorKind.LOST_RACE)
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
        self.count_error(kind)
        self.last_error = error
        self.checked_address = None
        self._report(healthy=False)

    def count_error(self, kind: ShardErrorKind) -> None:
        """Count an error of the shard."""
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
