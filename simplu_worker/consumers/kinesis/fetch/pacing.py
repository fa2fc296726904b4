"""When to read a stream shard next, and how much: early enough, within Kinesis' quota and this replica's memory. Pure.

The main reader and up to a few catch-ups of a stream shard share the quota of Kinesis; a main reader that reads by push
has one of its own. Why no reader starves, as long as reads do not overlap:

- starts: the catch-ups together have every fifth start while the main reader is busy, nearly all while it is idle. They
  take turns (`Cursor.read`);
- bytes: while both want to read, the catch-ups together get half, and the main reader the other half, which is as much
  as can be written (1 MiB/s). Within its half the main reader may start AHEAD_S early.

A reader waits for `delay_s` before it takes the lock, and reads only if `delay_s` is 0 then.

Readers at the tip read in groups at the same times: their batches for a Postgres shard then share a transaction.

Half of the memory goes to the first readers that ask, the other half in equal parts to all readers. The total passes
the bound, at worst to about twice, by the parts of readers that begin while others hold all of it, and large records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, isinf
from typing import Final

from simplu_worker.timing.waits import Pacer, backoff_s, shared_pause_s

# Kinesis quotas: 5 GetRecords a second and stream shard. A little more than a second and a fifth of a second, so that
# no second, wherever it begins, contains six starts, even if they arrive with some delay.
READS_IN_WINDOW: Final = 5
WINDOW_S: Final = 1.025
READ_INTERVAL_S: Final = 0.205  # of a reader that is behind
BUSY_FOR_S: Final = 60.0  # a stream shard that had a record in this time is in use
# While catch-ups run: four starts of a busy main reader, and one of theirs WINDOW_S after the last one, are the quota.
SHARED_INTERVAL_S: Final = 0.26
FIRST_CATCH_UP_S: Final = 0.41  # until a busy main reader, which had five starts, leaves one

READ_BYTES_PER_S: Final = 2 * 1024 * 1024  # Kinesis quotas: GetRecords, 2 MiB/s a stream shard
HALF_BYTES_PER_S: Final = READ_BYTES_PER_S // 2
# Kinesis allows a read while any of a second's bytes are left. A reader may start half of that second early; less than
# the other half allows for the time from a start until Kinesis counts its bytes.
AHEAD_S: Final = 0.5
LATENCY_MAX_S: Final = 0.4
CATCH_UP_AHEAD_S: Final = 0.1  # so that a catch-up's reply does not keep the main reader waiting
FULL_REPLY_BYTES: Final = 9 * 1024 * 1024  # cut off at 10 MiB, before a record of up to 1 MiB that did not fit
FULL_REPLY_PAUSE_S: Final = 5.0  # after 10 MiB Kinesis refuses the next 5 s: API reference, GetRecords

LIMIT_MAX: Final = 10_000  # API reference, GetRecords
LIMIT_UNKNOWN: Final = 500  # while the size of records is unknown
UNKNOWN_RECORD_BYTES: Final = 2048
REPLY_MAX_BYTES: Final = 10 * 1024 * 1024  # API reference, GetRecords
CATCH_UP_REPLY_BYTES: Final = 1024 * 1024
SHARED_REPLY_BYTES: Final = 512 * 1024  # of the main reader while catch-ups run: READ_BYTES_PER_S * SHARED_INTERVAL_S

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 5.0

NEVER: Final = float("-inf")


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
        self._first_shift = first_shift
        self._slots: list[ReadSlot] = []

    def open_slot(self) -> ReadSlot:
        """Return the slot of a new reader."""
        slot = ReadSlot()
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

    shift = 0.0
    idle_shift = 0.0

    def next_start(self, since: float) -> float:
        """Return when a reader that started at *since* should start again."""
        count = ceil((since + TIP_INTERVAL_S - EARLY_S) / TIP_INTERVAL_S - self.shift)
        return min((count + self.shift) * TIP_INTERVAL_S, since + TIP_INTERVAL_S + STEP_S)

    def next_idle_start(self, since: float) -> float:
        """Return the same of an idle stream shard."""
        return since + shared_pause_s(since - self.idle_shift * IDLE_INTERVAL_S, IDLE_INTERVAL_S)


class Pacing:
    """The reads of one stream shard: of its main reader, which goes first, and of its catch-ups."""

    def __init__(self, schedule: ReadSchedule | None = None) -> None:
        """*schedule* is that of the replica; without one the main reader has its own."""
        self._schedule = schedule or ReadSchedule()
        self._slot = self._schedule.open_slot()
        self._bytes = Pacer(READ_BYTES_PER_S)
        self._starts: deque[float] = deque(maxlen=READS_IN_WINDOW)
        self._closed_until = NEVER
        self._failure_count = 0
        self._record_bytes: float | None = None
        # The main reader
        self._main_started_at = NEVER
        self._main_bytes = Pacer(HALF_BYTES_PER_S)
        self._record_seen_at = NEVER
        self._is_behind = False
        self._has_ended = False
        self.is_pushed = False  # it reads by push, and leaves the whole budget to the catch-ups
        # The catch-ups
        self._catch_up_count = 0
        self._catch_up_started_at = NEVER
        self._catch_up_bytes = Pacer(READ_BYTES_PER_S)

    @contextmanager
    def open_catch_up(self, now: float) -> Iterator[None]:
        """Count a catch-up as running inside the block."""
        self._catch_up_started_at = max(self._catch_up_started_at, now + FIRST_CATCH_UP_S - WINDOW_S)
        self._catch_up_count += 1
        try:
            yield
        finally:
            self._catch_up_count -= 1

    def is_busy(self, now: float) -> bool:
        """Return whether the main reader polls a stream shard in use, or is behind the tip."""
        if self._has_ended or self.is_pushed:
            return False
        return self._is_behind or now - self._record_seen_at <= BUSY_FOR_S

    @property
    def opens_at(self) -> float:
        """The earliest time at which any read may start, bytes aside."""
        window = self._starts[0] + WINDOW_S if len(self._starts) == READS_IN_WINDOW else NEVER
        return max(window, self._closed_until)

    def delay_s(self, now: float, *, is_main: bool) -> float:
        """Return the seconds until the main reader, or the next catch-up, may read; 0 at the beginning."""
        paid_at, since, is_busy = self._bytes.free_at, self._main_started_at, self.is_busy(now)
        if not is_main:
            paid_at = max(paid_at - CATCH_UP_AHEAD_S, self._catch_up_bytes.free_at)
            wanted = self._catch_up_started_at + (WINDOW_S if is_busy else SHARED_INTERVAL_S)
        else:
            paid_at = min(paid_at, max(self._main_bytes.free_at, paid_at - AHEAD_S))
            if isinf(since):
                wanted = since
            elif not is_busy:
                wanted = self._slot.next_idle_start(since)
            elif self._catch_up_count:
                wanted = since + SHARED_INTERVAL_S
            else:
                wanted = since + READ_INTERVAL_S if self._is_behind else self._slot.next_start(since)
        return max(0.0, max(wanted, self.opens_at, paid_at) - now)

    def limit(self, room_bytes: float = REPLY_MAX_BYTES, *, is_main: bool) -> int:
        """Return how many records to request: as many as fit, fewer where other readers want to read."""
        most_bytes = REPLY_MAX_BYTES
        if not is_main or self._catch_up_count:
            most_bytes = SHARED_REPLY_BYTES if is_main else CATCH_UP_REPLY_BYTES
        target_bytes = min(room_bytes, most_bytes)
        if target_bytes >= REPLY_MAX_BYTES:
            return LIMIT_MAX
        if self._record_bytes is None:
            return LIMIT_UNKNOWN
        return max(1, min(LIMIT_MAX, int(target_bytes / self._record_bytes)))

    def expected_bytes(self, limit: int) -> int:
        """Return the expected size of a reply of *limit* records, at most."""
        one = UNKNOWN_RECORD_BYTES if self._record_bytes is None else self._record_bytes
        return min(REPLY_MAX_BYTES, int(limit * one))

    def note_start(self, now: float, *, is_main: bool) -> None:
        """Note that a read starts."""
        self._starts.append(now)
        if not is_main:
            self._catch_up_started_at = now
            return
        self._main_started_at = now
        if self._bytes.free_at <= now:
            self._main_bytes.free_at = now  # no other reader wanted the bytes that it had beyond its half

    def note_reply(
        self, now: float, *, is_main: bool, record_count: int, size_bytes: int, millis_behind: int | None
    ) -> None:
        """Note the reply to the read last started, from which on its bytes are paid for."""
        started_at = self._main_started_at if is_main else self._catch_up_started_at
        begun_at = max(started_at, now - LATENCY_MAX_S)
        self._failure_count = 0
        self._bytes.pause_s(size_bytes, now=begun_at)
        if size_bytes >= FULL_REPLY_BYTES and record_count < LIMIT_MAX:
            self._closed_until = max(self._closed_until, now + FULL_REPLY_PAUSE_S)
        if record_count and size_bytes:  # up at once, down by half: too small a reply does no harm
            mean = size_bytes / record_count
            self._record_bytes = max(mean, ((self._record_bytes or mean) + mean) / 2)
        if is_main:
            self._main_bytes.pause_s(size_bytes, now=begun_at)
            self.note_seen(now, record_count=record_count, millis_behind=millis_behind)
        else:
            self._catch_up_bytes.pause_s((2 if self.is_busy(now) else 1) * size_bytes, now=begun_at)

    def note_seen(self, now: float, *, record_count: int, millis_behind: int | None) -> None:
        """Note what the main reader has read, by whatever way. Nothing behind the tip is normal."""
        self._is_behind = bool(millis_behind)
        if record_count:
            self._record_seen_at = now

    def note_failure(self, now: float, draw: float) -> None:
        """Note a throttled or unanswered read; wait longer each time (*draw* in 0..1)."""
        self._failure_count += 1
        pause_s = backoff_s(self._failure_count, draw=draw, base_s=BACKOFF_FIRST_S, max_s=BACKOFF_MAX_S)
        self._closed_until = max(self._closed_until, now + pause_s)

    def note_end(self) -> None:
        """Leave the whole budget to the catch-ups: the main reader reads no more."""
        self._has_ended = True
        self._schedule.close_slot(self._slot)


OPERATION_OVERHEAD_BYTES: Final = 640  # the memory of an operation beyond its record
RECORD_OVERHEAD_BYTES: Final = 320  # the memory of a record that is not decoded yet, beyond its data and its key
READ_ROOM_MAX_BYTES: Final = 4 * 1024 * 1024


class PrefetchMemory:
    """The memory of a replica for records read and not yet applied."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._quotas: set[MemoryQuota] = set()
        self._set_aside_bytes = 0  # for one reader
        self._unclaimed_bytes = 0  # of the parts set aside, for all readers

    def open_quota(self) -> MemoryQuota:
        """Return a new quota that holds no memory."""
        quota = MemoryQuota(self)
        self._quotas.add(quota)
        self._divide()
        return quota

    @property
    def read_room_bytes(self) -> int:
        """The room to wait for before a read: three quarters of a fair share, at most READ_ROOM_MAX_BYTES."""
        return min(READ_ROOM_MAX_BYTES, 3 * self.max_bytes // (4 * max(1, len(self._quotas))))

    def room_bytes_of(self, quota: MemoryQuota) -> int:
        """Return how many more bytes *quota* may reserve now.

        From half of the total on at most a fair share; what is left of its own part at least.
        """
        own = self._unclaimed_by(quota)
        of_others = self._unclaimed_bytes - own
        room_bytes = self.max_bytes - self.used_bytes - of_others
        if 2 * self.used_bytes >= self.max_bytes:
            fair_bytes = self.max_bytes // len(self._quotas)
            room_bytes = min(room_bytes, fair_bytes - quota.held_bytes)
        return max(own, room_bytes)

    def change(self, quota: MemoryQuota, by_bytes: int) -> None:
        """Let *quota* hold *by_bytes* more, or less."""
        self._unclaimed_bytes -= self._unclaimed_by(quota)
        quota.held_bytes += by_bytes
        self.used_bytes += by_bytes
        self._unclaimed_bytes += self._unclaimed_by(quota)

    def close_quota(self, quota: MemoryQuota) -> None:
        """Take back all memory of *quota*, and its part."""
        self.change(quota, -quota.held_bytes)
        self._quotas.discard(quota)
        self._divide()

    def _divide(self) -> None:
        self._set_aside_bytes = self.max_bytes // (2 * max(1, len(self._quotas)))
        self._unclaimed_bytes = sum(map(self._unclaimed_by, self._quotas))

    def _unclaimed_by(self, quota: MemoryQuota) -> int:
        return max(0, self._set_aside_bytes - quota.held_bytes)


class MemoryQuota:
    """The memory that one reader holds; after `close` it reserves nothing."""

    def __init__(self, prefetch: PrefetchMemory) -> None:
        self._prefetch = prefetch
        self._is_open = True
        self.held_bytes = 0

    @property
    def is_short(self) -> bool:
        """Whether a read has to wait for more room.

        False while the reader holds no memory: its own operations could not free more.
        """
        room_bytes = self.room_bytes
        return not room_bytes or (bool(self.held_bytes) and room_bytes < self._prefetch.read_room_bytes)

    @property
    def room_bytes(self) -> int:
        """The bytes that may be reserved now. If not 0, one read may start."""
        return self._prefetch.room_bytes_of(self) if self._is_open else 0

    def reserve(self, size_bytes: int) -> None:
        """Hold *size_bytes* more, even without room."""
        if self._is_open:
            self._prefetch.change(self, size_bytes)

    def release(self, size_bytes: int) -> None:
        """Hold *size_bytes* less. Raises ValueError when fewer are held."""
        if not self._is_open:
            return  # `close` released everything
        if size_bytes > self.held_bytes:
            raise ValueError(f"expected to release at most {self.held_bytes} bytes, got {size_bytes}")
        self._prefetch.change(self, -size_bytes)

    def close(self) -> None:
        """Release everything; idempotent."""
        if self._is_open:
            self._prefetch.close_quota(self)
            self._is_open = False


RENEW_AFTER_S: Final = 270.0  # Kinesis ends a subscription after 300 s
SILENT_AFTER_S: Final = 30.0  # Kinesis sends an event every few seconds, also without records
# Kinesis refuses a call within five seconds of a successful one; a little more, for its clock.
CALL_INTERVAL_S: Final = 5.2
RETRY_BASE_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
REFUSED_PAUSE_S: Final = 60.0  # a person has to grant a permission, or to remove a consumer
STABLE_S: Final = 60.0  # a subscription that lasts so long ends the row of failures


class SubscriptionSchedule:
    """The subscriptions to one stream shard, which is polled while there is none."""

    def __init__(self) -> None:
        self._accepted_at = NEVER
        self._next_call_at = NEVER
        self._failure_count = 0  # in a row: refused calls, and subscriptions that were soon over

    def call_at(self, *, is_subscribed: bool) -> float:
        """Return the time from which to subscribe, or to replace the subscription."""
        return max(self._accepted_at + RENEW_AFTER_S, self._next_call_at) if is_subscribed else self._next_call_at

    def note_accepted(self, now: float) -> None:
        """Note a successful call."""
        self._accepted_at = now
        self._next_call_at = now + CALL_INTERVAL_S

    def note_failed(self, now: float, draw: float, *, is_refused: bool = False) -> None:
        """Note a call without success; *is_refused* where only a person can change that."""
        pause_s = RETRY_BASE_S + backoff_s(self._failure_count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)
        self._failure_count += 1
        self._next_call_at = max(self._next_call_at, now + max(pause_s, REFUSED_PAUSE_S if is_refused else 0.0))

    def note_lost(self, now: float, draw: float) -> None:
        """Note the end of the subscription."""
        if now - self._accepted_at >= STABLE_S:
            self._failure_count = 0
        else:
            self.note_failed(now, draw)
