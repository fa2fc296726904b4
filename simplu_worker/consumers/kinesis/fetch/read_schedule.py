"""When stream shards are read by polling, and when they are subscribed to. Pure.

Readers at the tip read in groups at the same times: their batches for a Postgres shard then share a transaction. While
the processor is busy all read more rarely: transactions are fewer and larger.
"""

from __future__ import annotations

from math import ceil, isinf
from typing import Final

from simplu_worker.timing.waits import backoff_s, shared_pause_s
from simplu_worker.vocabulary import SubscriptionLoss

SAMPLE_S: Final = 2.0  # between two shares
EASY_SHARE: Final = 0.4  # of a core, or of the quota: up to here nothing is read more rarely
BUSY_SHARE: Final = 0.8  # from here on reads are as rare as they may be
STRETCH_MAX: Final = 3.0  # times as long between two reads
STEP: Final = 0.3  # of the way to the wanted factor: the share follows the factor, and must not swing


def wanted_stretch(share: float) -> float:
    """Return how many times as long as usual readers should wait, by the processor's *share*."""
    over = (share - EASY_SHARE) / (BUSY_SHARE - EASY_SHARE)
    return 1.0 + (STRETCH_MAX - 1.0) * min(max(over, 0.0), 1.0)


class ReadStretch:
    """The factor by which the readers of a replica wait longer."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._has_begun = False

    def note_share(self, share: float) -> None:
        """Note the share of the processor used since the last call, 0 to 1.

        Where it would be small even at the usual rate, the replica reads as usual at once.
        """
        if not self._has_begun:
            self._has_begun = True
        elif share * self.factor <= EASY_SHARE:
            self.factor = 1.0
        else:
            self.factor += STEP * (wanted_stretch(share) - self.factor)


READERS_TOGETHER: Final = 8
IDLE_TOGETHER: Final = 64  # these take about 40 ms
IDLE_INTERVAL_S: Final = 1.0  # a record on an idle stream shard is seen within 1.1 s
# A little more than the fifth of a second that the quota of Kinesis allows: so that a start that comes a little late,
# as they all do, does not delay the fifth one after it.
TIP_INTERVAL_S: Final = 0.207
EARLY_S: Final = 0.012  # by which two starts may be nearer to each other, so that a late reader is in time again
STEP_S: Final = 0.02  # by which they may be further apart, for a reader that starts at other times than its group
GOLDEN_RATIO: Final = 0.6180339887  # its multiples, modulo 1, are spread evenly, however many there are


class ReadSchedule:
    """The times at which the readers of a replica read."""

    def __init__(self, first_shift: float = 0.0) -> None:
        """*first_shift*, 0 to 1, is by chance, as all replicas of a host have the same clock."""
        self.stretch = ReadStretch()
        self._first_shift = first_shift
        self._slots: list[ReadSlot] = []

    def open_slot(self) -> ReadSlot:
        """Return the slot of a new reader."""
        slot = ReadSlot(self)
        self._slots.append(slot)
        self._form_groups()
        return slot

    def close_slot(self, slot: ReadSlot) -> None:
        """Remove the slot of a reader that reads no more; idempotent."""
        if slot in self._slots:
            self._slots.remove(slot)
            self._form_groups()

    def _form_groups(self) -> None:
        for number, slot in enumerate(self._slots):
            slot.shift = (self._first_shift + number // READERS_TOGETHER * GOLDEN_RATIO) % 1
            slot.idle_shift = (self._first_shift + number // IDLE_TOGETHER * GOLDEN_RATIO) % 1


class ReadSlot:
    """The times at which one reader reads: *shift* (idle: *idle_shift*) intervals after the multiples of one."""

    def __init__(self, schedule: ReadSchedule) -> None:
        self.shift = 0.0
        self.idle_shift = 0.0
        self._schedule = schedule

    def next_start(self, since: float) -> float:
        """Return when a reader that started at *since* should start again."""
        if isinf(since):
            return since
        factor = self._schedule.stretch.factor
        interval_s = TIP_INTERVAL_S * factor
        count = ceil((since + interval_s - EARLY_S * factor) / interval_s - self.shift)
        return min((count + self.shift) * interval_s, since + interval_s + STEP_S * factor)

    def next_idle_start(self, since: float) -> float:
        """Return the same of an idle stream shard."""
        if isinf(since):
            return since
        return since + shared_pause_s(since - self.idle_shift * IDLE_INTERVAL_S, IDLE_INTERVAL_S)

    def close(self) -> None:
        """Leave the group; idempotent."""
        self._schedule.close_slot(self)


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
    """The subscriptions to one stream shard, which is polled while there is none."""

    def __init__(self) -> None:
        self._accepted_at = NEVER
        self._next_call_at = NEVER
        self._polled_at = NEVER  # or had a record, which is as good
        self._failure_count = 0  # in a row: refused calls, and subscriptions without an event or taken over

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
        """Note the end of the subscription; *had_event* where an event had come.

        Two holders of a lease take the subscription from each other; each waits longer each time.
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
