"""Whether a shard may be asked at all: when the way to it does not work, only probes may, until one gets through.

Only the way counts: a connection that is refused, cut, or gives no answer. A shard that answers, if slowly or with an
error, has a way to it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

FAILURES_MAX: Final = 3  # in a row
SILENCE_MAX_S: Final = 5.0  # without an answer, while somebody waits for one
PROBE_INTERVAL_S: Final = 1.0  # so that a shard that is back is used within two seconds


class BreakerState(StrEnum):
    """Of the way to a shard."""

    CLOSED = "closed"  # as a switch: everything passes
    OPEN = "open"
    HALF_OPEN = "half_open"  # one is on the way, to find out


class BreakerDecision(StrEnum):
    """What somebody who wants to ask the shard may do."""

    ADMIT = "admit"
    PROBE = "probe"  # find out for all whether it answers; only then ask
    REFUSE = "refuse"


class CircuitBreaker:
    """The state of the way to one shard; *now* is the event loop's time throughout."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self._failure_count = 0
        self._answered_at = float("-inf")
        self._probe_at = 0.0

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.state}, failures={self._failure_count})"

    def decide(self, now: float) -> BreakerDecision:
        """Tell what somebody may do. One who is told to probe is the only one for a while, whatever becomes of it."""
        if self.state is BreakerState.CLOSED:
            return BreakerDecision.ADMIT
        if now < self._probe_at:
            return BreakerDecision.REFUSE
        self.state = BreakerState.HALF_OPEN
        self._probe_at = now + PROBE_INTERVAL_S
        return BreakerDecision.PROBE

    def record_answer(self, now: float) -> None:
        """Note that the shard gave an answer, whatever it said."""
        self.state = BreakerState.CLOSED
        self._failure_count = 0
        self._answered_at = now

    def record_failure(self, now: float, *, asked_at: float) -> bool:
        """Note that nothing came back; return whether this opened it.

        *asked_at* is when the longest still waiting for an answer, this one included, began to.
        """
        self._failure_count += 1
        was_closed = self.state is BreakerState.CLOSED
        silent_s = now - max(asked_at, self._answered_at)
        if was_closed and self._failure_count < FAILURES_MAX and silent_s < SILENCE_MAX_S:
            return False
        self.state = BreakerState.OPEN
        self._probe_at = now + PROBE_INTERVAL_S
        return was_closed
