"""When readers at the tip of their stream shards read: some of a replica at the same times. Pure.

Their batches for a Postgres shard then arrive within milliseconds of each other and share a transaction
(`shards/apply/group_commit.py`), which costs about as much for one operation as for ten. With more readers at the same
times their operations would wait for each other: so the groups read at different times, spread over the interval.
Readers of idle stream shards have larger groups: a read right after another one takes much less processor time.
"""

from __future__ import annotations

from math import ceil, isinf
from typing import Final

from simplu_worker.consumers.kinesis.fetch.read_stretch import ReadStretch
from simplu_worker.timing.aligned_times import shared_pause_s

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
        """*first_shift*, 0 to 1, is the first group's: by chance, as all replicas of a host have the same clock."""
        self.stretch = ReadStretch()
        self._first_shift = first_shift
        self._slots: list[ReadSlot] = []

    def __repr__(self) -> str:
        return f"ReadSchedule({len(self._slots)} readers, {self.stretch!r})"

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
    """The times at which one reader reads; created by `ReadSchedule.open_slot`.

    They are *shift* intervals after the multiples of the interval, *idle_shift* on an idle stream shard.
    """

    def __init__(self, schedule: ReadSchedule) -> None:
        self.shift = 0.0
        self.idle_shift = 0.0
        self._schedule = schedule

    def __repr__(self) -> str:
        return f"ReadSlot({self.shift:.2f})"

    def next_start(self, since: float) -> float:
        """Return when a reader that started a read at *since* should start the next one.

        At a time of its group; if the next of these is further away than usual, it comes nearer to them step by step.
        """
        if isinf(since):
            return since
        factor = self._schedule.stretch.factor
        interval_s = TIP_INTERVAL_S * factor
        count = ceil((since + interval_s - EARLY_S * factor) / interval_s - self.shift)
        return min((count + self.shift) * interval_s, since + interval_s + STEP_S * factor)

    def next_idle_start(self, since: float) -> float:
        """Return when a reader of an idle stream shard that started a read at *since* should start the next one.

        At the next time of its group.
        """
        if isinf(since):
            return since
        return since + shared_pause_s(since - self.idle_shift * IDLE_INTERVAL_S, IDLE_INTERVAL_S)

    def close(self) -> None:
        """Leave the group; idempotent."""
        self._schedule.close_slot(self)
