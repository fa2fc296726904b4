"""The few errors that callers of a shard see."""

from __future__ import annotations

from simplu_worker.errors import RetryableError, WorkerError


class InvalidDataError(WorkerError):
    """Postgres cannot store something in the batch; the transaction is gone."""


class LostRaceError(RetryableError):
    """The transaction lost a race against another one; run again at once, it may win."""


class ShardUnavailableError(RetryableError):
    """The shard cannot be used now: unreachable, starting, read-only, full, or not set up as expected.

    *shard_id* is given where it is the shard that does not answer, so that a probe tells when it does again.
    """

    def __init__(self, message: str, *, shard_id: str | None = None) -> None:
        super().__init__(message)
        self.shard_id = shard_id


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
