"""Errors of a shard: their meaning, by SQLSTATE and by what raised them, and their words. Pure.

An error of a trigger, constraint or index of the shard's owner is about the row, whatever its code, so no operation is
refused for good by what only this shard does not take. A server's own message is never shown: it may quote a row.
Source: PostgreSQL manual, appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import asyncpg

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.network_errors import network_cause
from simplu_worker.shards.types import ShardUnavailableError

SHRINKING: Final = 10  # of a statement, after one that ran into its timeout


class RolledBackError(WorkerError):
    """The transaction was rolled back before its end, to be tried in another way."""


class LostRaceError(RetryableError):
    """The transaction lost a race; an immediate retry may win."""


class LockTimeoutError(LostRaceError):
    """Another transaction has kept a lock for too long."""


class WrongDatabaseError(ShardUnavailableError):
    """A connection string leads to a database that is not the shard's."""


def wrong_shard_message(shard_id: str, found: str | None) -> str:
    """Return the message for an address that leads to the database of *found*; None: of no shard."""
    database = "no identity" if found is None else f"the database of shard {found}"
    return f"shard {shard_id}: its connection string leads to {database}; correct it in the map"


def foreign_numbers_error(shard_id: str) -> ShardUnavailableError:
    """Return the error for a shard with a log that is ahead of its server: it came from another server."""
    return ShardUnavailableError(
        f"shard {shard_id}: expected new numbers of transactions, got such as its log has: its database was restored "
        f"into another server; run: simplu-worker shards raise-numbers {shard_id} --apply"
    )


class StatementFailedError(ShardUnavailableError):
    """A statement failed on a healthy server by *error*; the writer looks for the operation at fault."""

    def __init__(self, message: str, *, error: str, is_timeout: bool = False) -> None:
        super().__init__(message)
        self.error = error
        self.is_timeout = is_timeout


def fewer_after(error: StatementFailedError, limit: int) -> int:
    """Return the rows for the next statement after one of *limit* rows; raise *error* if fewer do not help."""
    if not error.is_timeout or limit == 1:
        raise error
    return max(1, limit // SHRINKING)


class ValueRefusedError(StatementFailedError):
    """A statement failed at a value that no table, or an index of the owner's, can take."""


class DuplicateKeyError(StatementFailedError):
    """A statement failed at a row with a key that exists (unique_violation), in *table*."""

    def __init__(self, message: str, *, error: str, table: str | None) -> None:
        super().__init__(message, error=error)
        self.table = table


ALL_IN_USE: Final = (
    "expected a free connection, all are in use; wait, or raise DATABASE_POOL_SIZE and DATABASE_MAX_CONNECTIONS"
)
WRONG_ADDRESS: Final = "expected an address that the driver of Postgres can use, got another; correct it"
NO_TLS: Final = (
    "expected TLS, the server refuses it or closes the connection; have it offer TLS, or correct sslmode or the address"
)
NOT_POSTGRES: Final = "expected an answer of Postgres, got something else or the end of the connection; see its log"
SEE_UPGRADE: Final = "see simplu-worker shards upgrade"  # of a shard alone
OUTDATED: Final = "the tables have changed since the statement was prepared"

READ_ONLY: Final = "25006"  # read_only_sql_transaction: the server is a former primary
UNIQUE_VIOLATION: Final = "23505"  # of a plain insert that expects new rows, or of a constraint of the shard's owner
LOCK_TIMEOUT: Final = "55P03"  # lock_not_available
QUERY_CANCELED: Final = "57014"  # by its timeout; earlier, by another session: that says nothing about an operation
RAISING_FUNCTION: Final = "exec_stmt_raise"  # the server's function that runs RAISE of PL/pgSQL
# A prepared statement is gone, or another client's: a pooler shares the server.
POOLER_STATES: Final = frozenset({"26000", "42P05"})
# The other connections lead to the same former primary, or have outdated prepared statements.
EXPIRING_STATES: Final = frozenset({READ_ONLY, *POOLER_STATES, "0A000"})


class ErrorMeaning(StrEnum):
    """How to react to an error."""

    DATA = "data"  # a statement failed, perhaps at a value that no table can store: find the operation at fault
    STATEMENT = "statement"  # a statement failed on a healthy server: find the operation at fault
    TRY_AGAIN = "try_again"  # the transaction lost a race: run it again at once
    UNAVAILABLE = "unavailable"  # the shard cannot apply the batch now
    BROKEN = "broken"  # the shard is not set up as expected: rights, schema, configuration


class Raiser(StrEnum):
    """What raised an error."""

    SERVER = "server"  # the statement itself, or the server around it
    ROUTINE = "routine"  # a function, such as a trigger, that the statement ran: all of these are the owner's
    RAISE = "raise"  # the same, on purpose: its code is any that the owner has chosen


UNKNOWN: Final = ErrorMeaning.BROKEN  # of a code that is not below: the shard is held, and a person looks at it

_BY_CODE: Final = {
    "08P01": "the server or a pooler in front of it refuses the connection; see its log",
    "23505": "a row with that key exists",
    "25006": "the server takes no writes, as a standby or read-only; let its address name the primary",
    "26000": "a prepared statement is gone; let the pooler keep sessions or transactions apart",
    "28000": "the server does not admit this user from here; correct the user, or the server's pg_hba.conf",
    "28P01": "the server refuses the user's password; correct it",
    "3D000": "the server has no database of that name; correct it",
    "40P01": "two transactions wait for each other",
    "42501": "the role lacks a right; GRANT it",
    "42703": f"a column is missing; {SEE_UPGRADE}",
    "42883": f"a function is missing; {SEE_UPGRADE}",
    "42P01": f"a table is missing; {SEE_UPGRADE}",
    "42P10": "a unique index of the worker's tables is missing or not valid; simplu-worker check names it",
    "42P05": "a prepared statement exists; let the pooler keep sessions or transactions apart",
    "53100": "the server's disk is full; make room",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left; raise max_connections, or lower DATABASE_POOL_SIZE",
    "54000": "a value is over a limit of Postgres",
    "54001": "a statement is nested too deep for the server",
    "55P03": "another transaction has kept a lock for too long",
    "57014": "the statement took too long, or another session cancelled it",
    "57P01": "the server shuts down, or a person has ended the connection",
    "57P03": "the server is starting or shutting down",
    "57P04": "the database was dropped",
    "XX001": "data of the server is damaged; see its log",
    "XX002": "an index of the server is damaged; REINDEX it",
}
_RAISED: Final = "a function or trigger of the database raised it"
_BY_CLASS: Final[Mapping[str, tuple[str, ErrorMeaning]]] = {
    # Of 00 to 2F, and 38 to P0, our own statements can cause few, but a trigger, a constraint or a function of the
    # shard's owner can raise them for one row and not for another.
    **dict.fromkeys(("00", "01", "02", "09", "20", "27", "2F", "38", "39", "P0"), (_RAISED, ErrorMeaning.STATEMENT)),
    "08": ("the connection was closed; see the server's log, and whether it wants TLS", ErrorMeaning.UNAVAILABLE),
    "0A": ("the server lacks a feature, or its tables have changed since the statement was prepared", UNKNOWN),
    "21": ("a row where several are not allowed", ErrorMeaning.STATEMENT),
    "22": ("a value that the server does not take", ErrorMeaning.DATA),
    "23": ("a constraint refuses the row", ErrorMeaning.STATEMENT),
    "25": ("the transaction is in a state that does not allow this", UNKNOWN),
    "28": ("the server does not admit this user", UNKNOWN),
    "40": ("the transaction was rolled back by the server", UNKNOWN),
    "42": ("a statement does not fit the tables or the rights of the role; see simplu-worker shards upgrade", UNKNOWN),
    "44": ("a view refuses the row", ErrorMeaning.STATEMENT),
    "53": ("the server is out of resources", ErrorMeaning.UNAVAILABLE),
    "54": ("a limit of Postgres is passed", ErrorMeaning.STATEMENT),
    "55": ("the object is not in the state for this", UNKNOWN),
    "57": ("a person or the system has ended it", ErrorMeaning.UNAVAILABLE),
    "58": ("the server cannot read or write its files; see its log", ErrorMeaning.UNAVAILABLE),
    "XX": ("an internal error of the server; see its log", ErrorMeaning.BROKEN),
}
_MEANING_BY_CODE: Final = {  # where it is another one than that of the class
    # A serialization failure, a deadlock, a lock; a prepared statement that a pooler lost, or another client has; and
    # "cached plan must not change result type", after upgrades.
    **dict.fromkeys(("40001", "40P01", LOCK_TIMEOUT, *sorted(POOLER_STATES), "0A000"), ErrorMeaning.TRY_AGAIN),
    READ_ONLY: ErrorMeaning.UNAVAILABLE,
    "54000": ErrorMeaning.DATA,  # a jsonb over its limits. Also no transaction ids are left
    "54001": ErrorMeaning.DATA,  # nested deeper than the server's stack
    QUERY_CANCELED: ErrorMeaning.STATEMENT,  # by its timeout
    "XX000": ErrorMeaning.STATEMENT,  # XX001 and XX002 are corruption, a problem of the shard
}


def _of_class(code: str) -> tuple[str, ErrorMeaning]:
    return _BY_CLASS.get(code[:2], ("an error of Postgres", UNKNOWN))


def state_words(sqlstate: str | None) -> str:
    """Return the meaning of an error code, the code, and the remedy if there is one."""
    code = sqlstate or "no SQLSTATE"
    meaning, *remedy = (_BY_CODE.get(code) or _of_class(code)[0]).split("; ")
    return "; ".join([f"{meaning} ({code})", *remedy])


def error_words(exc: BaseException) -> str:
    """Return what the server answered, or why it did not, with the notes of *exc*."""
    return "; ".join([_words_of(exc), *getattr(exc, "__notes__", ())])


def _words_of(exc: BaseException) -> str:  # noqa: PLR0911  # one for each kind
    match exc:
        case asyncpg.PostgresError():
            return state_words(exc.sqlstate)
        case asyncpg.OutdatedSchemaCacheError():
            return OUTDATED
        case asyncpg.TargetServerAttributeNotMatched():  # with a text of our own
            return str(exc)
        case OSError(filename=str()):
            return f"expected to use the file {exc.filename}, got {exc.strerror}; give it to the user of this process"
        case ConnectionError() if type(exc) is ConnectionError:  # asyncpg's, over the answer to its request for TLS
            return NO_TLS
        case OSError():  # before ValueError, which an error of a certificate is too
            return network_cause(exc, ca_setting="sslrootcert")
        case asyncpg.ClientConfigurationError() | ArithmeticError() | LookupError():
            return WRONG_ADDRESS
        case asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return NOT_POSTGRES
        case ValueError():
            return WRONG_ADDRESS
        case _:
            return network_cause(exc, ca_setting="sslrootcert")


# Classes with a meaning that does not depend on the function in which the server met them. Not connection exceptions:
# those within a function are of a connection that the function has opened.
_OF_SERVER = frozenset({"25", "40", "53", "57", "58", "XX"})


def meaning_of(sqlstate: str, raiser: Raiser = Raiser.SERVER, *, is_early: bool = False) -> ErrorMeaning:
    """Return the meaning of an error code; *is_early*: before the statement's timeout."""
    if sqlstate == QUERY_CANCELED and is_early and raiser is not Raiser.RAISE:
        return ErrorMeaning.TRY_AGAIN
    meaning = _MEANING_BY_CODE.get(sqlstate) or _of_class(sqlstate)[1]
    if raiser is Raiser.SERVER or meaning is ErrorMeaning.DATA:
        return meaning
    is_of_server = sqlstate[:2] in _OF_SERVER or sqlstate == LOCK_TIMEOUT
    return meaning if raiser is Raiser.ROUTINE and is_of_server else ErrorMeaning.STATEMENT


def raiser_of(context: str | None, server_function: str | None) -> Raiser:
    """Return what raised an error, by its context and the server's function that reported it."""
    if server_function == RAISING_FUNCTION:
        return Raiser.RAISE
    return Raiser.ROUTINE if context else Raiser.SERVER


def is_no_answer(sqlstate: str) -> bool:
    """Return whether an error is of a broken connection, or of a server that is not running."""
    return sqlstate.startswith(("08", "57P"))
