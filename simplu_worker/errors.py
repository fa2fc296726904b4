"""The few errors that callers of a vendor's door see.

Each door (one module a vendor) translates its vendor's errors into these, by code and never by text, so that
everything above decides by class alone.
"""

from __future__ import annotations


class WorkerError(Exception):
    """Base of every error that this package raises on purpose."""


class RetryableError(WorkerError):
    """A dependency is in trouble; nothing is wrong with the record, and the same call may succeed later.

    *retry_after_s* is the dependency's own wish, where it stated one.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentError(WorkerError):
    """The dependency understood and said no; asking the same again gives the same answer."""


class ConfigurationError(WorkerError):
    """The configuration cannot work; only a person can mend it. Each of *problems* is one line, without secrets."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
