"""What becomes of a message once its handler is through with it. Pure: the random draw is handed in."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import DeadLetterReason
from simplu_worker.timing.backoff import backoff_s

TROUBLE_BASE_S = 1.0
TROUBLE_MAX_S = 60.0


class Done(msgspec.Struct, frozen=True):
    """Handled for good: the message is deleted."""


class ToDeadLetter(msgspec.Struct, frozen=True):
    """It can never be handled: stored as a dead letter, then deleted. *error* does not quote the message.

    *mark*, when given, is awaited between the two: it writes down that the operation is given up. A RetryableError
    from it makes the message come again.
    """

    reason: DeadLetterReason
    error: str
    business_id: str | None = None
    location_id: str | None = None
    request_id: str | None = None
    resource_id: str | None = None
    mark: Callable[[], Awaitable[object]] | None = None


class ReturnToQueue(msgspec.Struct, frozen=True):
    """It goes back to the queue and comes again after *delay_s*."""

    delay_s: int


class RetryHeld(msgspec.Struct, frozen=True):
    """It stays in hand, hidden, and is handled again after *delay_s*: a dependency is in trouble for a moment.

    When it has waited long in hand, or much of the hand waits, it goes back to the queue as with Later.
    """

    delay_s: float


Verdict: TypeAlias = Done | ToDeadLetter | ReturnToQueue | RetryHeld


def after_trouble(trouble: RetryableError, *, try_count: int, draw: float) -> RetryHeld:
    """Put a message off because a dependency is in trouble: for as long as that lasts, at most a minute at a time.

    *try_count* is the message's own; it is never given up for this.
    """
    own_s = backoff_s(try_count, draw=draw, base_s=TROUBLE_BASE_S, max_s=TROUBLE_MAX_S)
    wished_s = min(trouble.retry_after_s or 0.0, TROUBLE_MAX_S)
    return RetryHeld(delay_s=max(own_s, wished_s))


def after_unexpected(
    error: Exception, *, receive_count: int, delays_s: Sequence[float]
) -> ReturnToQueue | ToDeadLetter:
    """Put a message off after an error nobody foresaw, by the configured delays; give it up after the last.

    Only the kind of *error* goes into the letter: its text may hold anything.
    """
    if receive_count <= len(delays_s):
        return ReturnToQueue(delay_s=math.ceil(delays_s[max(receive_count, 1) - 1]))
    text = f"{type(error).__name__} at the last of {receive_count} tries; the log has the traceback"
    return ToDeadLetter(reason=DeadLetterReason.RETRIES_EXHAUSTED, error=text)
