"""A circuit breaker: while a target gives no answer, only one call in a while may try. Pure.

Only reachability counts: a target that answers, even slowly or with an error, is reachable.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Final

from simplu_worker.timing.waits import backoff_s

FAILURES_MAX: Final = 3  # in a row


class BreakerState(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"  # as of a switch: all calls pass
    OPEN = "open"
    HALF_OPEN = "half_open"  # one call tries


class BreakerDecision(StrEnum):
    """The permission of a caller."""

    ADMIT = "admit"
    PROBE = "probe"  # try on behalf of all callers
    REFUSE = "refuse"


class CircuitBreaker:
    """The circuit breaker of one target; *now* is the event loop's time throughout.

    It opens after FAILURES_MAX failures in a row, or *silence_max_s* without an answer. Then the target rests for
    *rest_s*, longer after each probe that fails, up to *rest_max_s*.
    """

    def __init__(self, *, rest_s: float, rest_max_s: float, silence_max_s: float = inf) -> None:
        self._rest_s = rest_s
        self._rest_max_s = rest_max_s
        self._silence_max_s = silence_max_s
        self._state = BreakerState.CLOSED
        self._failure_count = 0
        self._opening_count = 0  # since the last answer
        self._answered_at = -inf
        self._probe_at = 0.0

    def decide(self, now: float) -> BreakerDecision:
        """Return what a caller may do; PROBE at most once in *rest_max_s* unless the probe before it has failed."""
        if self._state is BreakerState.CLOSED:
            return BreakerDecision.ADMIT
        if now < self._probe_at:
            return BreakerDecision.REFUSE
        self._state = BreakerState.HALF_OPEN
        self._probe_at = now + self._rest_max_s
        return BreakerDecision.PROBE

    def refuses_for_s(self, now: float) -> float:
        """Return for how long no call may be made."""
        return 0.0 if self._state is BreakerState.CLOSED else max(0.0, self._probe_at - now)

    def record_answer(self, now: float) -> None:
        """Record an answer of the target, of any kind."""
        self._state = BreakerState.CLOSED
        self._failure_count = self._opening_count = 0
        self._answered_at = now

    def record_failure(
        self, now: float, *, asked_at: float | None = None, draw: float = 1.0, at_least_s: float = 0.0
    ) -> bool:
        """Record a call without an answer; return whether it opened the closed breaker.

        *asked_at* is the start of the oldest call that has no answer yet, this one included. *draw* (0 to 1) spreads
        the replicas that meet the same outage. *at_least_s*, for which the target wants to be left alone, opens the
        breaker at once. While the breaker is open, calls that began before count no more.
        """
        self._failure_count += 1
        was_closed = self._state is BreakerState.CLOSED
        silent_s = 0.0 if asked_at is None else now - max(asked_at, self._answered_at)
        if was_closed and self._failure_count < FAILURES_MAX and silent_s < self._silence_max_s and not at_least_s:
            return False
        if self._state is not BreakerState.OPEN:
            self._state = BreakerState.OPEN
            self._opening_count += 1
            rest_s = backoff_s(self._opening_count, draw=draw, base_s=self._rest_s, max_s=self._rest_max_s)
            self._probe_at = now + rest_s
        self._probe_at = max(self._probe_at, now + at_least_s)
        return was_closed
