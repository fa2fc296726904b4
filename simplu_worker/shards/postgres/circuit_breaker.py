"""The circuit breaker of a shard: while the shard cannot be reached, only probes may try, until one succeeds. Pure.

Only reachability counts: a connection that is refused, cut, or silent is a failure. A shard that answers, even slowly
or with an error, is reachable.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

FAILURES_MAX: Final = 3  # in a row
SILENCE_MAX_S: Final = 5.0  # without an answer, while a caller waits for one
PROBE_INTERVAL_S: Final = 1.0  # so that a recovered shard is used within two seconds


class BreakerState(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"  # as of a switch: all requests pass
    OPEN = "open"
    HALF_OPEN = "half_open"  # one probe is under way


class BreakerDecision(StrEnum):
    """The permission of a caller of the shard."""

    ADMIT = "admit"
    PROBE = "probe"  # first probe the shard on behalf of all callers
    REFUSE = "refuse"


class CircuitBreaker:
    """The circuit breaker of one shard; *now* is the event loop's time throughout."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self._failure_count = 0
        self._answered_at = float("-inf")
        self._probe_at = 0.0

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.state}, failures={self._failure_count})"

    def decide(self, now: float) -> BreakerDecision:
        """Return what a caller may do; PROBE at most once in `PROBE_INTERVAL_S`, whatever the probe's result."""
        if self.state is BreakerState.CLOSED:
            return BreakerDecision.ADMIT
        if now < self._probe_at:
            return BreakerDecision.REFUSE
        self.state = BreakerState.HALF_OPEN
        self._probe_at = now + PROBE_INTERVAL_S
        return BreakerDecision.PROBE

    def record_answer(self, now: float) -> None:
        """Record an answer of the shard, of any kind."""
        self.state = BreakerState.CLOSED
        self._failure_count = 0
        self._answered_at = now

    def record_failure(self, now: float, *, asked_at: float) -> bool:
        """Record a request without an answer; return whether it opened the breaker.

        *asked_at* is the start of the oldest request that has no answer yet, this one included.
        """
        self._failure_count += 1
        was_closed = self.state is BreakerState.CLOSED
        silent_s = now - max(asked_at, self._answered_at)
        if was_closed and self._failure_count < FAILURES_MAX and silent_s < SILENCE_MAX_S:
            return False
        self.state = BreakerState.OPEN
        self._probe_at = now + PROBE_INTERVAL_S
        return was_closed
