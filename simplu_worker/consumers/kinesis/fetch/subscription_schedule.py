"""When to subscribe to a stream shard, to renew the subscription, and to poll beside it; when it is dead. Pure.

While there is no subscription the stream shard is polled, so a wait until the next call costs latency and quota, and
delays no record for long.
"""

from __future__ import annotations

from typing import Final

from simplu_worker.timing.backoff import backoff_s
from simplu_worker.vocabulary import SubscriptionLoss

RENEW_AFTER_S: Final = 270.0  # Kinesis ends a subscription after 300 s
POLL_AFTER_S: Final = 60.0  # without a record: other servers than AWS's may never push the end of a stream shard
SILENT_AFTER_S: Final = 30.0  # Kinesis sends an event every few seconds, also without records
# Kinesis refuses a call within five seconds of a successful one; a little more, for its clock.
CALL_INTERVAL_S: Final = 5.2
RETRY_BASE_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
REFUSED_PAUSE_S: Final = 60.0  # a person has to grant a permission, or to remove a consumer
STABLE_S: Final = 60.0  # a subscription that lasts so long ends the row of failures
NEVER: Final = float("-inf")


class SubscriptionSchedule:
    """The schedule of the subscriptions to one stream shard; callers pass the time, in seconds, and draws of 0..1."""

    def __init__(self) -> None:
        self._accepted_at = NEVER
        self._next_call_at = NEVER
        self._polled_at = NEVER  # or had a record, which is as good
        self._failure_count = 0  # in a row: refused calls, and subscriptions without an event or taken over

    def __repr__(self) -> str:
        return f"<SubscriptionSchedule accepted {self._accepted_at:.3f}, next {self._next_call_at:.3f}>"

    def is_call_due(self, now: float) -> bool:
        """Return whether to subscribe now, where there is no subscription."""
        return now >= self._next_call_at

    def is_renewal_due(self, now: float) -> bool:
        """Return whether to replace the subscription now."""
        return now >= self.renewal_at

    @property
    def renewal_at(self) -> float:
        """The time from which the subscription is to be replaced."""
        return max(self._accepted_at + RENEW_AFTER_S, self._next_call_at)

    @property
    def poll_at(self) -> float:
        """The time from which to poll once beside the subscription."""
        return self._polled_at + POLL_AFTER_S

    def note_polled(self, now: float) -> None:
        """Note a poll, or a record that came by push."""
        self._polled_at = now

    def note_accepted(self, now: float) -> None:
        """Note a successful call."""
        self._forget_failures(now)
        self._accepted_at = now
        if self._polled_at == NEVER:
            self._polled_at = now
        self._next_call_at = now + CALL_INTERVAL_S

    def note_failed(self, now: float, draw: float, *, is_refused: bool = False) -> None:
        """Note a call without success; *is_refused* where only a person can change that."""
        self._wait(now, draw, least_s=REFUSED_PAUSE_S if is_refused else 0.0)

    def note_lost(self, now: float, loss: SubscriptionLoss, draw: float, *, had_event: bool) -> None:
        """Note the end of the subscription; *had_event* where at least one event had come.

        Two holders of a lease take the subscription from each other. Each waits longer each time: the one that has lost
        the lease stops before it is on again.
        """
        self._forget_failures(now)
        if loss is SubscriptionLoss.TAKEN_OVER or not had_event:
            self._wait(now, draw)
        else:
            self._failure_count = 0

    def _forget_failures(self, now: float) -> None:
        if NEVER < self._accepted_at <= now - STABLE_S:
            self._failure_count = 0

    def _wait(self, now: float, draw: float, *, least_s: float = 0.0) -> None:
        pause_s = RETRY_BASE_S + backoff_s(self._failure_count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        self._failure_count += 1
        self._next_call_at = max(self._next_call_at, now + max(pause_s, least_s))
