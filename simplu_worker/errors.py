"""The errors that the doors to vendors raise.

Each door (one module a vendor) translates its vendor's errors into these, by code and never by text, so that its
callers decide by class alone. Pure.
"""

from __future__ import annotations

import traceback


class WorkerError(Exception):
    """The base class of all errors that this package raises."""


class RetryableError(WorkerError):
    """A dependency failed; the record is not at fault, and the same call may succeed later.

    *retry_after_s* is the delay that the dependency asks for, if any.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InternalError(RetryableError):
    """Something was raised that nobody foresaw: a defect of the worker. `bulkheads` has counted and logged it."""


class PermanentError(WorkerError):
    """The dependency refused the request; the same request is refused again."""


class ConfigurationError(WorkerError):
    """The configuration cannot work; a person has to correct it. Each of *problems* is one line, without secrets."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UsageError(Exception):
    """The command line is wrong; the text is for people."""


def place_of(exc: Exception) -> str:
    """Return the type of an exception and the last line of this package that it went through; never its message."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if "simplu_worker" in frame.filename]
    return (
        f"{type(exc).__name__} at {short_path(frames[-1].filename)}:{frames[-1].lineno}"
        if frames
        else type(exc).__name__
    )


def places_of(exc: Exception) -> list[str]:
    """Return the type of an exception and where it came from, its causes before it; never a message."""
    cause = exc.__cause__ or exc.__context__
    before = places_of(cause) if isinstance(cause, Exception) and cause is not exc else []
    frames = traceback.extract_tb(exc.__traceback__)
    return [*before, type(exc).__name__, *(f"{short_path(one.filename)}:{one.lineno} {one.name}" for one in frames)]


def short_path(filename: str) -> str:
    """Return the last folders and the name of a file."""
    return "/".join(filename.split("/")[-3:])
