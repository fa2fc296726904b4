"""The meaning of a PostgreSQL error for the work that met it, decided by SQLSTATE and by what raised it. Pure.

What becomes of the work follows from the meaning and from what the statement has in it:

| meaning | operations of tenants | nothing of a tenant: a probe, BEGIN, positions | a value alone |
|---|---|---|---|
| DATA | failing, unless the value alone is refused too | the shard is held | `invalid_data` |
| STATEMENT | failing | the shard is held | the shard is held |
| TRY_AGAIN | again; behind a lock the tenant is held | again, then the shard is held | again |
| UNAVAILABLE, BROKEN | the shard is held | the shard is held | the shard is held |

The owner of a shard may add triggers, constraints and indexes, which raise what they like: an error of theirs is about
the row, whatever its code. So no operation is refused for good by what only this shard does not take.

Source: PostgreSQL manual, appendix A (error codes).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

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

_MEANING_BY_CODE = {
    "40001": ErrorMeaning.TRY_AGAIN,  # serialization_failure
    "40P01": ErrorMeaning.TRY_AGAIN,  # deadlock_detected
    LOCK_TIMEOUT: ErrorMeaning.TRY_AGAIN,
    READ_ONLY: ErrorMeaning.UNAVAILABLE,
    "54000": ErrorMeaning.DATA,  # program_limit_exceeded: a jsonb over its limits. Also no transaction ids are left
    "54001": ErrorMeaning.DATA,  # statement_too_complex: nested deeper than the server's stack
    QUERY_CANCELED: ErrorMeaning.STATEMENT,  # by its timeout
    "XX000": ErrorMeaning.STATEMENT,  # internal_error; XX001 and XX002 are corruption, a problem of the shard
    "26000": ErrorMeaning.TRY_AGAIN,  # invalid_sql_statement_name: a pooler lost the prepared statement
    "42P05": ErrorMeaning.TRY_AGAIN,  # duplicate_prepared_statement: behind a pooler, another client's
    "0A000": ErrorMeaning.TRY_AGAIN,  # feature_not_supported: "cached plan must not change result type", after upgrades
}

_MEANING_BY_CLASS = {
    "22": ErrorMeaning.DATA,  # data exception
    # Our own statements cannot cause these, but a trigger, a constraint or a function of the shard's owner can raise
    # them for one row and not for another.
    "00": ErrorMeaning.STATEMENT,  # successful completion, raised as an error
    "01": ErrorMeaning.STATEMENT,  # warning, raised as an error
    "02": ErrorMeaning.STATEMENT,  # no data, raised as an error
    "09": ErrorMeaning.STATEMENT,  # triggered action exception
    "20": ErrorMeaning.STATEMENT,  # case not found
    "21": ErrorMeaning.STATEMENT,  # cardinality violation
    "23": ErrorMeaning.STATEMENT,  # integrity constraint violation
    "27": ErrorMeaning.STATEMENT,  # triggered data change violation
    "2F": ErrorMeaning.STATEMENT,  # SQL routine exception
    "38": ErrorMeaning.STATEMENT,  # external routine exception
    "39": ErrorMeaning.STATEMENT,  # external routine invocation exception
    "44": ErrorMeaning.STATEMENT,  # WITH CHECK OPTION violation
    "54": ErrorMeaning.STATEMENT,  # program limit exceeded
    "P0": ErrorMeaning.STATEMENT,  # PL/pgSQL error: RAISE without a code, a failed assertion
    "08": ErrorMeaning.UNAVAILABLE,  # connection exception
    "53": ErrorMeaning.UNAVAILABLE,  # insufficient resources: connections, disk, memory
    "57": ErrorMeaning.UNAVAILABLE,  # operator intervention: shutdown, starting up
    "58": ErrorMeaning.UNAVAILABLE,  # system error
    "XX": ErrorMeaning.BROKEN,  # corruption
}
# Classes with a meaning that does not depend on the function in which the server met them. Not connection exceptions:
# those within a function are of a connection that the function has opened.
_OF_SERVER = frozenset({"25", "40", "53", "57", "58", "XX"})


def meaning_of(sqlstate: str, raiser: Raiser = Raiser.SERVER, *, is_early: bool = False) -> ErrorMeaning:
    """Return the meaning of an error with this five-character code; *is_early*: before the statement's timeout."""
    if sqlstate == QUERY_CANCELED and is_early and raiser is not Raiser.RAISE:
        return ErrorMeaning.TRY_AGAIN
    meaning = _MEANING_BY_CODE.get(sqlstate) or _MEANING_BY_CLASS.get(sqlstate[:2], UNKNOWN)
    if raiser is Raiser.SERVER or meaning is ErrorMeaning.DATA:
        return meaning
    is_of_server = sqlstate[:2] in _OF_SERVER or sqlstate == LOCK_TIMEOUT
    return meaning if raiser is Raiser.ROUTINE and is_of_server else ErrorMeaning.STATEMENT


def raiser_of(context: str | None, server_function: str | None) -> Raiser:
    """Return what raised an error, by its context and by the function in the server's source that reported it."""
    if server_function == RAISING_FUNCTION:
        return Raiser.RAISE
    return Raiser.ROUTINE if context else Raiser.SERVER


def is_no_answer(sqlstate: str) -> bool:
    """Return whether an error counts as no answer: a broken connection, or a server that is not running.

    A server that is starting or shutting down is not running. One that is full, or refuses a password, is.
    """
    return sqlstate.startswith(("08", "57P"))
