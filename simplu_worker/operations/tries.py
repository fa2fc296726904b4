"""What becomes of an operation that was not applied, whatever its source: one table, and one count. Pure.

| error | next |
|---|---|
| `Failed`: by itself, on a shard that applies others | again after each delay of `RetryRules`, then given up |
| the same on a shard that refuses a trial write too | for an hour more after the longest of these |
| `Absent`: what it names is not there | held until its time is over, then given up |
| `Locked`, or a `RetryableError`: an outage | held for as long as that lasts |
| a `PermanentError`: it can never be applied | given up |

A hold backs off by its number in a row. Only failures of its own count as attempts: no receive, no outage, no wait.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Final, TypeAlias, assert_never, overload

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import DeadLetterReason, HoldReason

WAIT_BASE_S: Final = 1.0
WAIT_MAX_S: Final = 60.0
# For so long operations are not given up on a shard that refuses all. The alert for what is held comes after half of
# it. Then each is given up, as the shard may have refused no more than these and the trial.
REFUSING_S: Final = 3600.0
COUNTS_MAX: Final = 1000


class Failed(msgspec.Struct, frozen=True):
    """The operation itself failed; *error* is a type or a code, as a text may quote its record.

    *reason* is that of its dead letter. *refuses_all*: its shard refuses a trial write too.
    """

    error: str
    reason: DeadLetterReason = DeadLetterReason.RETRIES_EXHAUSTED
    refuses_all: bool = False


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
    """What a worker sets.

    *delays_s* are the delays after failures of an operation itself, one for each retry. *tenant_wait* is how long an
    operation waits, from when it was sent, for a tenant or a resource that does not exist yet. *locked_s* are the
    shortest and the longest wait for a lock: each try of a tenant with locked rows costs others a tenth.
    """

    delays_s: Sequence[float]
    tenant_wait: timedelta
    locked_s: tuple[float, float] = (0.5, 5.0)


class RetryAfter(msgspec.Struct, frozen=True):
    """The operation is tried again after a time: an attempt of its own."""

    delay_s: float


class HoldFor(msgspec.Struct, frozen=True):
    """The operation waits at least for a time, for something that is not its own fault."""

    delay_s: float
    reason: HoldReason


class GiveUp(msgspec.Struct, frozen=True):
    """The operation becomes a dead letter."""

    reason: DeadLetterReason
    error: str
    attempts: int = 1


NextTry: TypeAlias = RetryAfter | HoldFor | GiveUp


@overload
def next_try(error: Failed, attempts: int, *, rules: RetryRules, draw: float = 0.0) -> RetryAfter | GiveUp: ...


@overload
def next_try(error: Locked, attempts: int, *, rules: RetryRules, draw: float = 0.0) -> HoldFor: ...


@overload
def next_try(error: NotApplied, attempts: int, *, rules: RetryRules, draw: float = 0.0) -> NextTry: ...


def next_try(error: NotApplied, attempts: int, *, rules: RetryRules, draw: float = 0.0) -> NextTry:
    """Return what becomes of an operation after *error*, its *attempts*-th failure or hold in a row."""
    match error:
        case Failed():
            return _next_try_of_failed(error, attempts, rules.delays_s)
        case Locked():
            base_s, max_s = rules.locked_s
            return HoldFor(backoff_s(attempts, draw=draw, base_s=base_s, max_s=max_s), error.reason)
        case Absent():
            if error.left_s <= 0:
                return GiveUp(error.reason, error.error)
            wait_s = backoff_s(attempts, draw=draw, base_s=WAIT_BASE_S, max_s=WAIT_MAX_S)
            return HoldFor(min(wait_s, max(error.left_s, WAIT_BASE_S)), HoldReason.UNREGISTERED)
        case RetryableError():
            wait_s = backoff_s(attempts, draw=draw, base_s=WAIT_BASE_S, max_s=WAIT_MAX_S)
            asked_s = min(error.retry_after_s or 0.0, WAIT_MAX_S)
            return HoldFor(max(wait_s, asked_s), HoldReason.SHARD_UNAVAILABLE)
        case PermanentError():
            return GiveUp(DeadLetterReason.INVALID_MESSAGE, str(error))
        case _:
            assert_never(error)


def _next_try_of_failed(error: Failed, attempts: int, delays_s: Sequence[float]) -> RetryAfter | GiveUp:
    if attempts <= len(delays_s):
        return RetryAfter(delays_s[max(attempts, 1) - 1])
    last_s = max([1.0, *delays_s[-1:]])
    if error.refuses_all and (attempts - len(delays_s)) * last_s <= REFUSING_S:
        return RetryAfter(last_s)
    return GiveUp(error.reason, f"it failed {attempts} times: {error.error}", attempts)


class Attempts:
    """How often each operation has failed, or has met a lock, in this process: never too often.

    Beyond COUNTS_MAX the one that was counted longest ago is forgotten.
    """

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}  # the one counted longest ago first

    def count(self, key: Hashable) -> int:
        """Count one more; return their number."""
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > COUNTS_MAX:
            del self._counts[next(iter(self._counts))]
        return count

    def __contains__(self, key: Hashable) -> bool:
        """Return whether it was counted, and not forgotten."""
        return key in self._counts

    def forget(self, key: Hashable) -> None:
        """Begin anew for what was decided: it may be sent again."""
        self._counts.pop(key, None)
