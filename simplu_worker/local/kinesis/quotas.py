"""How often and how much one stream shard may be read and written. Does no I/O: the time is handed in, in ms."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
READS_PER_S = 5  # API_GetRecords: five transactions per second per shard, all readers together
ITERATORS_PER_S = 5  # API_GetShardIterator
READ_BYTES_PER_S = 2 * MIB  # API_GetRecords
MAX_REPLY_BYTES = 10 * MIB  # API_GetRecords
PAUSE_AFTER_FULL_REPLY_MS = 5000  # API_GetRecords: "subsequent calls made within the next 5 seconds throw"
WRITE_RECORDS_PER_S = 1000  # API_PutRecords
WRITE_BYTES_PER_S = MIB  # API_PutRecords


@dataclass
class TokenBucket:
    """A second's worth of something, filled evenly. It may be overdrawn: then nothing is given until it is made up."""

    per_s: int
    level: float = 0.0
    at_ms: int | None = None

    def has(self, amount: float, now_ms: int) -> bool:
        """Fill up to *now_ms*; return whether *amount* is there."""
        if self.at_ms is None:
            self.level = self.per_s
        elif now_ms > self.at_ms:
            self.level = min(self.per_s, self.level + (now_ms - self.at_ms) * self.per_s / 1000)
        self.at_ms = now_ms
        return self.level >= amount

    def take(self, amount: float) -> None:
        """Take *amount*, there or not."""
        self.level -= amount


class ReadQuota:
    """What GetRecords may do to one stream shard: calls and bytes, shared by all who read it."""

    def __init__(self) -> None:
        self._calls = TokenBucket(READS_PER_S)
        self._bytes = TokenBucket(READ_BYTES_PER_S)
        self._closed_until_ms = 0

    def __repr__(self) -> str:
        return f"ReadQuota(calls={self._calls.level:.1f}, bytes={self._bytes.level:.0f})"

    def acquire(self, now_ms: int) -> bool:
        """Return whether a read may be made now, and count it if so; its size is known only afterwards."""
        allowed = now_ms >= self._closed_until_ms and self._bytes.has(1, now_ms) and self._calls.has(1, now_ms)
        if allowed:
            self._calls.take(1)
        return allowed

    def count_read(self, size_bytes: int, now_ms: int, *, was_full: bool) -> None:
        """Count what a read brought; *was_full* when MAX_REPLY_BYTES cut it off."""
        self._bytes.take(size_bytes)
        if was_full:
            self._closed_until_ms = now_ms + PAUSE_AFTER_FULL_REPLY_MS


class WriteQuota:
    """What may be put into one stream shard: records and bytes."""

    def __init__(self) -> None:
        self._records = TokenBucket(WRITE_RECORDS_PER_S)
        self._bytes = TokenBucket(WRITE_BYTES_PER_S)

    def __repr__(self) -> str:
        return f"WriteQuota(records={self._records.level:.1f}, bytes={self._bytes.level:.0f})"

    def acquire(self, size_bytes: int, now_ms: int) -> bool:
        """Return whether a record of *size_bytes* may be put now, and count it if so."""
        # A record beyond a second's bytes (large-records page) passes when the bucket is full, and overdraws it.
        needed = min(size_bytes, WRITE_BYTES_PER_S)
        allowed = self._records.has(1, now_ms) and self._bytes.has(needed, now_ms)
        if allowed:
            self._records.take(1)
            self._bytes.take(size_bytes)
        return allowed
