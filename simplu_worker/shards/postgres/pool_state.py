"""How a shard fares, as those who use it find: what became of their errors, and whether it may be asked at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, NoReturn, assert_never

import asyncpg
import structlog

from simplu_worker.metrics import instruments
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.circuit_breaker import SILENCE_MAX_S, Admission, Breaker
from simplu_worker.shards.postgres.errors import InvalidDataError, LostRaceError, StatementFailedError, WrongShardError
from simplu_worker.shards.postgres.lender import ConnectionLender
from simplu_worker.shards.postgres.sqlstate import Meaning, meaning_of, tells_of_the_way
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import loop_time

READ_ONLY_STATE: Final = "25006"
REFUSAL_COUNTS_S: Final = 30.0  # longer than those who write wait before they try again

log = structlog.get_logger(__name__)


class ShardAvailability:
    """What is known of one shard, and the translation of what is met there into our errors.

    After a refused write only a commit makes it healthy, or a look that saw it writable: reads go on working on a
    server that takes no writes, and whether there is room on its disk only a write can tell.

    When the way to the shard turns out not to work, those who wait for a connection of *lender* are told, and those
    who have got no answer on one for long lose it.
    """

    def __init__(self, address: ShardAddress, lender: ConnectionLender) -> None:
        self._address = address
        self._lender = lender
        self._breaker = Breaker()
        self._has_reported = False
        self._refused_at: float | None = None  # when it last answered that it could not do what was asked
        self._is_refused_as_read_only = False
        self.is_healthy = True
        self.last_error: str | None = None

    def __repr__(self) -> str:
        return f"Condition(is_healthy={self.is_healthy}, {self._breaker!r})"

    def begin_anew(self, address: ShardAddress) -> None:
        """Forget what was known of the way to the shard: another address is another way."""
        self._address = address
        self._breaker = Breaker()
        self._refused_at = None

    def admit(self) -> Admission:
        """Tell whether the shard may be asked now."""
        return self._breaker.admit(loop_time())

    def turned_away(self) -> ShardUnavailableError:
        """Return the error for one who is not to ask."""
        return ShardUnavailableError(self._message(self.last_error), shard_id=self._address.shard_id)

    def busy(self) -> ShardUnavailableError:
        """Return the error for one who waited for a connection for too long.

        All are in use, here or, where the budget is used up, elsewhere; which says nothing of the server.
        """
        self._count("busy")
        message = self._message("all connections are in use: TimeoutError")
        return ShardUnavailableError(message, shard_id=self._address.shard_id)

    def committed(self) -> None:
        """Note that a transaction was committed."""
        self._refused_at = None
        self._report(healthy=True)

    def seen_writable(self) -> None:
        """Note that the server says it takes writes; where it was another trouble, that tells little for a while."""
        refused_at = self._refused_at
        if refused_at is None or self._is_refused_as_read_only or loop_time() - refused_at > REFUSAL_COUNTS_S:
            self.committed()

    @contextlib.contextmanager
    def translated(self, *, asked_at: float) -> Iterator[None]:
        """Translate what comes of using a connection since *asked_at*, and note it."""
        try:
            yield
        except asyncpg.PostgresError as exc:
            self._raise(exc, asked_at)
        except asyncpg.OutdatedSchemaCacheError as exc:
            raise self._lost_race(type(exc).__name__) from exc
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as exc:
            raise self._unavailable("connection", exc, asked_at=asked_at) from exc
        else:
            self._breaker.answered(loop_time())
            if self._refused_at is None:
                self._report(healthy=True)

    @contextlib.contextmanager
    def translated_connect(self) -> Iterator[None]:
        """Translate what comes of connecting, which is never said of a statement or of data, and note it."""
        asked_at = loop_time()
        try:
            yield
        except WrongShardError as exc:
            self._note("broken", type(exc).__name__)
            raise
        except asyncpg.TargetServerAttributeNotMatched as exc:
            self._refused(is_read_only=True)
            raise self._unavailable("unavailable", exc) from exc
        except asyncpg.TooManyConnectionsError as exc:
            if not self._lender.has_connections:
                raise self._unavailable(
                    Meaning.UNAVAILABLE, exc, asked_at=self._unless_it_answered(exc, asked_at)
                ) from exc
            # It has no room for another, and works on those that there are.
            self._breaker.answered(loop_time())
            raise self._full(exc) from exc
        except asyncpg.PostgresError as exc:
            kind = Meaning.BROKEN if meaning_of(exc.sqlstate or "") is Meaning.BROKEN else Meaning.UNAVAILABLE
            raise self._unavailable(kind, exc, asked_at=self._unless_it_answered(exc, asked_at)) from exc
        except (ValueError, ArithmeticError, LookupError) as exc:
            # What the address does to the libraries: a port beyond 65535, a host that is no name, an unknown sslmode.
            # Not chained: such an error may quote the connection string.
            raise self._unavailable("connection", exc, asked_at=asked_at) from None
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
            raise self._unavailable("connection", exc, asked_at=asked_at) from exc

    def _raise(self, exc: asyncpg.PostgresError, asked_at: float) -> NoReturn:
        meaning = meaning_of(exc.sqlstate or "")
        if meaning in {Meaning.DATA, Meaning.STATEMENT} and _ended_the_connection(exc):
            meaning = Meaning.UNAVAILABLE
        since = self._unless_it_answered(exc, asked_at)
        error = f"{type(exc).__name__} ({exc.sqlstate})"
        match meaning:
            case Meaning.DATA:
                raise InvalidDataError(error) from exc
            case Meaning.TRY_AGAIN:
                raise self._lost_race(error) from exc
            case Meaning.STATEMENT:
                self._count(meaning)
                is_timeout = isinstance(exc, asyncpg.QueryCanceledError)
                raise StatementFailedError(self._message(error), error=error, is_timeout=is_timeout) from exc
            case Meaning.UNAVAILABLE | Meaning.BROKEN:
                if since is None:
                    self._refused(is_read_only=exc.sqlstate == READ_ONLY_STATE)
                raise self._unavailable(meaning, exc, asked_at=since) from exc
            case _:
                assert_never(meaning)

    def _unless_it_answered(self, exc: asyncpg.PostgresError, asked_at: float) -> float | None:
        """Return *asked_at* for an error that is as good as no answer; note the answer where it is one."""
        if tells_of_the_way(exc.sqlstate or ""):
            return asked_at
        self._breaker.answered(loop_time())
        return None

    def _refused(self, *, is_read_only: bool) -> None:
        self._refused_at = loop_time()
        self._is_refused_as_read_only = is_read_only

    def _full(self, exc: asyncpg.TooManyConnectionsError) -> ShardUnavailableError:
        self._count(Meaning.UNAVAILABLE)
        message = self._message(f"{type(exc).__name__} ({exc.sqlstate})")
        return ShardUnavailableError(message, shard_id=self._address.shard_id)

    def _lost_race(self, error: str) -> LostRaceError:
        self._count("lost_race")
        return LostRaceError(f"shard {self._address.shard_id}: {error}")

    def _unavailable(self, kind: str, exc: Exception, *, asked_at: float | None = None) -> ShardUnavailableError:
        """Note an error and return it as ours; with *asked_at* there was no answer since then."""
        # Server messages may quote rows; the class and its code say enough.
        code = getattr(exc, "sqlstate", None)
        self._note(kind, f"{type(exc).__name__} ({code})" if code else type(exc).__name__)
        if asked_at is not None:
            self._failed(asked_at)
        return self.turned_away()

    def _failed(self, asked_at: float) -> None:
        now, lent_since = loop_time(), self._lender.lent_since
        if self._breaker.failed(now, asked_at=asked_at if lent_since is None else min(asked_at, lent_since)):
            log.warning("shard.cut_off", shard_id=self._address.shard_id, error=self.last_error)
            self._lender.turn_away(self.turned_away)
            # Whoever got no answer for that long gets none, and other shards need the place.
            self._lender.end_lent(before=now - SILENCE_MAX_S)

    def _note(self, kind: str, error: str) -> None:
        self._count(kind)
        self.last_error = error
        self._report(healthy=False)

    def _count(self, kind: str) -> None:
        instruments.SHARD_ERRORS.labels(self._address.shard_id, kind).inc()

    def _message(self, error: str | None) -> str:
        return f"shard {self._address.shard_id} at {self._address.place}: {error}"

    def _report(self, *, healthy: bool) -> None:
        if self._has_reported and healthy is self.is_healthy:
            return
        if healthy and not self.is_healthy:
            log.info("shard.recovered", shard_id=self._address.shard_id)
            self.last_error = None
        self._has_reported = True
        self.is_healthy = healthy
        instruments.SHARD_HEALTHY.labels(self._address.shard_id).set(healthy)


def _ended_the_connection(exc: asyncpg.PostgresError) -> bool:
    """Tell whether it was said of the connection, by the server or a pooler in front of it, and not of a statement."""
    return (exc.severity_en or exc.severity) in {"FATAL", "PANIC"}
