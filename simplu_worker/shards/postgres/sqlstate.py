"""What an error of PostgreSQL means for the batch that met it, decided by SQLSTATE alone.

Source: PostgreSQL manual, appendix A (error codes).
"""

from __future__ import annotations

from enum import StrEnum


class ErrorMeaning(StrEnum):
    """What to do about an error."""

    DATA = "data"  # an operation of the batch cannot be stored: find it
    STATEMENT = (
        "statement"  # a statement failed by itself, while the server works: find the operation that makes it fail
    )
    TRY_AGAIN = "try_again"  # the transaction lost a race: run it again at once
    UNAVAILABLE = "unavailable"  # the shard cannot take the batch now
    BROKEN = "broken"  # the shard refuses what should work: rights, schema, configuration


_MEANING_BY_CODE = {
    "40001": ErrorMeaning.TRY_AGAIN,  # serialization_failure
    "40P01": ErrorMeaning.TRY_AGAIN,  # deadlock_detected
    "55P03": ErrorMeaning.TRY_AGAIN,  # lock_not_available
    "25006": ErrorMeaning.UNAVAILABLE,  # read_only_sql_transaction: a former primary
    "54000": ErrorMeaning.DATA,  # program_limit_exceeded: a jsonb over its bounds
    "54001": ErrorMeaning.DATA,  # statement_too_complex: nested deeper than the server's stack
    "57014": ErrorMeaning.STATEMENT,  # query_canceled: by its deadline, or by a person
    "XX000": ErrorMeaning.STATEMENT,  # internal_error; XX001 and XX002 are corruption: the shard's trouble
    "26000": ErrorMeaning.TRY_AGAIN,  # invalid_sql_statement_name: a pooler lost the prepared statement
    "42P05": ErrorMeaning.TRY_AGAIN,  # duplicate_prepared_statement: behind a pooler, somebody else's
    "0A000": ErrorMeaning.TRY_AGAIN,  # feature_not_supported: "cached plan must not change result type", after upgrades
}

_MEANING_BY_CLASS = {
    "22": ErrorMeaning.DATA,  # data exception
    # What our own statements cannot meet, but a trigger, a constraint or a function of the shard's owner can raise for
    # one row and not for another.
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
}


def meaning_of(sqlstate: str) -> ErrorMeaning:
    """Return what an error with this five-character code means."""
    return _MEANING_BY_CODE.get(sqlstate) or _MEANING_BY_CLASS.get(sqlstate[:2], ErrorMeaning.BROKEN)


def is_no_answer(sqlstate: str) -> bool:
    """Tell whether an error is about the way to the server, or says that nobody is there to work: as good as no answer.

    One that is starting or shutting down is not there. One that is full, or refuses a password, is.
    """
    return sqlstate.startswith(("08", "57P"))
