"""What an error of PostgreSQL means for the batch that met it, decided by SQLSTATE alone.

Source: PostgreSQL manual, appendix A (error codes).
"""

from __future__ import annotations

from enum import StrEnum


class Meaning(StrEnum):
    """What to do about an error."""

    DATA = "data"  # an operation of the batch cannot be stored: find it
    TRY_AGAIN = "try_again"  # the transaction lost a race: run it again at once
    UNAVAILABLE = "unavailable"  # the shard cannot take the batch now
    BROKEN = "broken"  # the shard refuses what should work: rights, schema, configuration


_MEANING_BY_CODE = {
    "40001": Meaning.TRY_AGAIN,  # serialization_failure
    "40P01": Meaning.TRY_AGAIN,  # deadlock_detected
    "55P03": Meaning.TRY_AGAIN,  # lock_not_available
    "25006": Meaning.UNAVAILABLE,  # read_only_sql_transaction: a former primary
    "54000": Meaning.DATA,  # program_limit_exceeded: a jsonb over its bounds
    "54001": Meaning.DATA,  # statement_too_complex: nested deeper than the server's stack
    "26000": Meaning.TRY_AGAIN,  # invalid_sql_statement_name: a pooler lost the prepared statement
    "0A000": Meaning.TRY_AGAIN,  # feature_not_supported: "cached plan must not change result type" after an upgrade
}

_MEANING_BY_CLASS = {
    "22": Meaning.DATA,  # data exception
    "08": Meaning.UNAVAILABLE,  # connection exception
    "53": Meaning.UNAVAILABLE,  # insufficient resources: connections, disk, memory
    "57": Meaning.UNAVAILABLE,  # operator intervention: shutdown, starting up, cancelled
    "58": Meaning.UNAVAILABLE,  # system error
}


def meaning_of(sqlstate: str) -> Meaning:
    """Return what an error with this five-character code means."""
    return _MEANING_BY_CODE.get(sqlstate) or _MEANING_BY_CLASS.get(sqlstate[:2], Meaning.BROKEN)
