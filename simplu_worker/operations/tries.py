"""What becomes of an operation that was not applied, whatever its source: one table. Pure.

| error | next |
|---|---|
| `Failed`: by itself, on a shard that applies others | again after each delay of its source, then given up |
| `Absent`: what it names is not there | held until its time is over, then given up |
| `Locked`, or a `RetryableError`: an outage | held for as long as that lasts |
| a `PermanentError`: it can never be applied | given up |

A hold backs off by its number in a row. Only failures of its own count as attempts: no receive, no outage, no wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, TypeAlias, assert_never

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import DeadLetterReason, HoldReason

WAIT_BASE_S: Final = 1.0
WAIT_MAX_S: Final = 60.0


class Failed(msgspec.Struct, frozen=True):
    """The operation itself failed; *error* is a type or a code, as a text may quote its record."""

    error: str


class Locked(msgspec.Struct, frozen=True):
    """Another transaction, a move or a person keeps the operation waiting for a moment."""

    reason: HoldReason = HoldReason.LOCKED


class Absent(msgspec.Struct, frozen=True):
    """What the operation names is not there; after *left_s* it is given up."""

    reason: DeadLetterReason
    error: str
    left_s: float


NotApplied: TypeAlias = Failed | Locked | Absent | RetryableError | PermanentError


class RetryRules(msgspec.Struct, frozen=True):
    """What a source sets.

    *delays_s* are the delays after failures of an operation itself, one for each retry. *tenant_wait* is how long an
    operation waits, from when it was sent, for a tenant or a resource that does not exist yet. *locked_s* are the
    shortest and the longest wait for a lock.
    """

    delays_s: Sequence[float]
    tenant_wait: timedelta
    locked_s: tuple[float, float] = (0.25, 10.0)


class RetryAt(msgspec.Struct, frozen=True):
    """The operation is tried again *at* a time: an attempt of its own."""

    at: float


class HoldUntil(msgspec.Struct, frozen=True):
    """The operation waits *at* least until a time, for something that is not its own fault."""

    at: float
    reason: HoldReason


class GiveUp(msgspec.Struct, frozen=True):
    """The operation becomes a dead letter."""

    reason: DeadLetterReason
    error: str
    attempts: int = 1


def next_try(
    error: NotApplied, attempts: int, now: float, *, rules: RetryRules, draw: float = 0.0
) -> RetryAt | HoldUntil | GiveUp:
    """Return what becomes of an operation after *error*, its *attempts*-th failure or hold in a row."""
    match error:
        case Failed():
            if attempts <= len(rules.delays_s):
                return RetryAt(now + rules.delays_s[max(attempts, 1) - 1])
            text = f"it failed {attempts} times: {error.error}"
            return GiveUp(DeadLetterReason.RETRIES_EXHAUSTED, text, attempts)
        case Locked():
            base_s, max_s = rules.locked_s
            return HoldUntil(now + backoff_s(attempts, draw=draw, base_s=base_s, max_s=max_s), error.reason)
        case Absent():
            if error.left_s <= 0:
                return GiveUp(error.reason, error.error)
            wait_s = backoff_s(attempts, draw=draw, base_s=WAIT_BASE_S, max_s=WAIT_MAX_S)
            return HoldUntil(now + min(wait_s, max(error.left_s, WAIT_BASE_S)), HoldReason.UNREGISTERED)
        case RetryableError():
            wait_s = backoff_s(attempts, draw=draw, base_s=WAIT_BASE_S, max_s=WAIT_MAX_S)
            asked_s = min(error.retry_after_s or 0.0, WAIT_MAX_S)
            return HoldUntil(now + max(wait_s, asked_s), HoldReason.SHARD_UNAVAILABLE)
        case PermanentError():
            return GiveUp(DeadLetterReason.INVALID_MESSAGE, str(error))
        case _:
            assert_never(error)
