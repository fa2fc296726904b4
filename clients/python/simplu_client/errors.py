"""What can go wrong, as a closed set of exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Failure: TypeAlias = Literal[
    "already_exists",
    "not_found",
    "invalid_data",
    "invalid_query",
    "query_too_large",
    "result_too_large",
    "tenant_destroyed",
    "retries_exhausted",
]


class SimpluError(Exception):
    """The base of all errors of this package."""


class InvalidOperationError(SimpluError, ValueError):
    """An operation, order event or control message that the worker would refuse; nothing was queued or sent."""


class ClosedError(SimpluError):
    """The client is closed; nothing was queued."""


class QueueFullError(SimpluError, TimeoutError):
    """The queue had no room for an operation in the time that `send` was given; nothing was queued."""


class NotSentError(SimpluError):
    """An operation or message that was given up, or left when the client was closed.

    With *may_be_sent* it may be applied nevertheless. In either case send *original*, which has its `requestId`, again.
    """

    def __init__(self, original: Any, reason: str, *, may_be_sent: bool) -> None:
        super().__init__(f"not sent: {reason}{'; it may be applied nevertheless' if may_be_sent else ''}")
        self.original = original
        self.may_be_sent = may_be_sent


class OperationFailedError(SimpluError):
    """The worker decided that the operation fails; it has changed nothing.

    *result* has the place in a schema of the shard's that refused the document, and what was expected there.
    """

    def __init__(self, error: Failure, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"the operation failed: {error}{f' {dict(result)}' if result else ''}")
        self.error: Failure = error
        self.result = result


class OperationRejectedError(SimpluError):
    """The record or message was no operation, and is a dead letter with this *reason*."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"rejected as {reason}: {detail}")
        self.reason = reason


class OperationLostError(SimpluError):
    """The worker has read past the time of sending and knows no such operation: a dead letter, or not sent."""


class WaitTimeoutError(SimpluError, TimeoutError):
    """The operation was not decided in that time; *status* is the last answer, none without one. Ask again."""

    def __init__(self, status: str | None, detail: str) -> None:
        super().__init__(f"not decided yet: {status or 'no answer'}{detail and f' ({detail})'}")
        self.status = status


class UnexpectedAnswerError(SimpluError):
    """The worker refuses the request, by its token or otherwise, or answered what this version does not know."""
