"""Errors of Postgres and of the way to it, in words: what a server answered, by SQLSTATE, or why it did not.

A server's own message is never shown: it may quote a row. Pure.

Source: PostgreSQL manual, appendix A (error codes).
"""

from __future__ import annotations

from typing import Final

import asyncpg

from simplu_worker.network_errors import network_cause
from simplu_worker.shards.postgres.files.bounded_reading import FileRefusedError

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

_BY_CODE: Final = {
    "08003": "the connection was closed; see the server's log, and whether it wants TLS",
    "08006": "the connection was closed; see the server's log, and whether it wants TLS",
    "08P01": "the server or a pooler in front of it refuses the connection; see its log",
    "22001": "a text is too long for its column",
    "22003": "a number is out of the range of its type",
    "22012": "a division by zero",
    "22021": "a character that the encoding of the database lacks",
    "22023": "a setting or an argument has a value that is not allowed",
    "22P02": "a text has not the form of its type",
    "22P05": "a character that the encoding of the database lacks",
    "23502": "a column that must have a value has none",
    "23503": "a foreign key refers to no row",
    "23505": "a row with that key exists",
    "23514": "a CHECK constraint refuses the row",
    "23P01": "an exclusion constraint refuses the row",
    "25006": "the server takes no writes, as a standby or read-only; let its address name the primary",
    "26000": "a prepared statement is gone; let the pooler keep sessions or transactions apart",
    "28000": "the server does not admit this user from here; correct the user, or the server's pg_hba.conf",
    "28P01": "the server refuses the user's password; correct it",
    "3D000": "the server has no database of that name; correct it",
    "3F000": "the database has no schema of that name",
    "40001": "another transaction was first",
    "40P01": "two transactions wait for each other",
    "42501": "the role lacks a right; GRANT it",
    "42601": "a statement that the server does not understand",
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
    "55006": "the object is in use",
    "55P03": "another transaction has kept a lock for too long",
    "57014": "the statement took too long, or another session cancelled it",
    "57P01": "the server shuts down, or a person has ended the connection",
    "57P02": "the server restarts after a crash; see its log",
    "57P03": "the server is starting or shutting down",
    "57P04": "the database was dropped",
    "57P05": "the server ended an idle connection",
    "58030": "the server cannot read or write its files; see its log",
    "P0001": "a function or trigger of the database raised it",
    "XX000": "an internal error of the server; see its log",
    "XX001": "data of the server is damaged; see its log",
    "XX002": "an index of the server is damaged; REINDEX it",
}
_BY_CLASS: Final = {
    "08": "the connection broke",
    "0A": "the server lacks a feature, or its tables have changed since the statement was prepared",
    "21": "a row where several are not allowed",
    "22": "a value that the server does not take",
    "23": "a constraint refuses the row",
    "25": "the transaction is in a state that does not allow this",
    "28": "the server does not admit this user",
    "38": "a function of the database failed",
    "39": "a function of the database failed",
    "40": "the transaction was rolled back by the server",
    "42": f"a statement does not fit the tables or the rights of the role; {SEE_UPGRADE}",
    "44": "a view refuses the row",
    "53": "the server is out of resources",
    "54": "a limit of Postgres is passed",
    "55": "the object is not in the state for this",
    "57": "a person or the system has ended it",
    "58": "an error of the server's system; see its log",
    "P0": "a function or trigger of the database failed",
    "XX": "an internal error of the server; see its log",
}


def state_words(sqlstate: str | None) -> str:
    """Return the meaning of an error with this five-character code, the code, and what to do if there is a remedy."""
    code = sqlstate or "no SQLSTATE"
    meaning, *remedy = (_BY_CODE.get(code) or _BY_CLASS.get(code[:2], "an error of Postgres")).split("; ")
    return "; ".join([f"{meaning} ({code})", *remedy])


def error_words(exc: BaseException) -> str:
    """Return what the server answered, or why it did not, for any error of connecting to it or using it.

    The notes of *exc* are appended: they are our own.
    """
    return "; ".join([_words_of(exc), *getattr(exc, "__notes__", ())])


def _words_of(exc: BaseException) -> str:  # noqa: PLR0911  # one for each kind
    match exc:
        case asyncpg.PostgresError() | asyncpg.PostgresWarning():
            return state_words(exc.sqlstate)
        case asyncpg.OutdatedSchemaCacheError():
            return OUTDATED
        case FileRefusedError() | asyncpg.TargetServerAttributeNotMatched():  # with a text of our own
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
