"""The errors of a shard that its callers within `shards` tell apart. Pure."""

from __future__ import annotations

from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.shards.types import ShardUnavailableError


class InvalidDataError(WorkerError):
    """Postgres cannot store something in the batch; the transaction is gone."""


class LostRaceError(RetryableError):
    """The transaction lost a race against another one; run again at once, it may win."""


class WrongShardError(ShardUnavailableError):
    """A connection string leads to the database of another shard."""


class StatementFailedError(ShardUnavailableError):
    """A statement failed by itself while the server works: whoever can take its batch apart finds out what makes it.

    To everybody else it is trouble of the shard. *error* is the server's error by class and code.
    """

    def __init__(self, message: str, *, error: str, is_timeout: bool) -> None:
        super().__init__(message)
        self.error = error
        self.is_timeout = is_timeout
