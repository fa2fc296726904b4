"""The errors of a shard that its callers within `shards` handle differently. Pure."""

from __future__ import annotations

from typing import Final

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.shards.types import ShardUnavailableError

SHRINKING: Final = 10  # of a statement, after one that ran into its timeout
ENCODING: Final = "UTF8"  # others lack characters, and with SQL_ASCII jsonb refuses escapes of those beyond ASCII


class RolledBackError(WorkerError):
    """The transaction was given up before its end, to be tried in another way; it was rolled back."""


class LostRaceError(RetryableError):
    """The transaction lost a race against another one; an immediate retry may win."""


class LockTimeoutError(LostRaceError):
    """Another transaction has kept a lock for longer than this one waits for it."""


class WrongDatabaseError(ShardUnavailableError):
    """A connection string leads to the database of another shard, or to one that no shard can have."""


def wrong_shard_message(shard_id: str, found: str | None) -> str:
    """Return the message for an address of *shard_id* that leads to the database of *found*; None: of no shard."""
    database = "no identity" if found is None else f"the database of shard {found}"
    return f"shard {shard_id}: its connection string leads to {database}; correct it in the map"


def wrong_encoding_message(shard_id: str, found: str) -> str:
    """Return the message for a database of *shard_id* with the encoding *found*."""
    return (
        f"shard {shard_id}: expected a database with encoding {ENCODING}, got {found}; create one with "
        f"ENCODING '{ENCODING}', restore a dump of this one there, and name it in the connection string"
    )


class ForeignNumbersError(ShardUnavailableError):
    """The log has the numbers of this server's transactions already: the database comes from another server."""


def foreign_numbers_message(shard_id: str) -> str:
    """Return the message for the shard *shard_id* with a log that is ahead of its server."""
    return (
        f"shard {shard_id}: expected new numbers of transactions, got such as its log has: its database was restored "
        f"into another server; run: simplu-worker shards raise-numbers {shard_id} --apply"
    )


class StatementFailedError(ShardUnavailableError):
    """A statement failed on a healthy server. The writer bisects the batch to find the operation at fault.

    To other callers the shard is unavailable. *error* is the server's error, in words with its code.
    """

    def __init__(self, message: str, *, error: str, is_timeout: bool = False) -> None:
        super().__init__(message)
        self.error = error
        self.is_timeout = is_timeout


def fewer_after(error: StatementFailedError, limit: int) -> int:
    """Return the rows for the next statement after one of *limit* rows took too long: they may be of some MB each.

    Raises *error* unless it is a timeout that fewer rows may avoid.
    """
    if not error.is_timeout or limit == 1:
        raise error
    return max(1, limit // SHRINKING)


class ValueRefusedError(StatementFailedError):
    """A statement failed at a value: one that no table can store, or one that an index of the owner's does not take."""


class DuplicateKeyError(StatementFailedError):
    """A statement failed at a row with a key that exists (unique_violation), in *table*."""

    def __init__(self, message: str, *, error: str, table: str | None) -> None:
        super().__init__(message, error=error)
        self.table = table
