"""Quotas of reading and writing one stream shard; callers pass the time, in ms. Pure."""

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
    """A bucket for one second's quota, refilled evenly. Taking more than it holds overdraws it."""

    per_s: int
    level: float = 0.0
    at_ms: int | None = None

    def has(self, amount: float, now_ms: int) -> bool:
        """Refill up to *now_ms*; return whether *amount* is available."""
        if self.at_ms is None:
            self.level = self.per_s
        elif now_ms > self.at_ms:
            self.level = min(self.per_s, self.level + (now_ms - self.at_ms) * self.per_s / 1000)
        self.at_ms = now_ms
        return self.level >= amount

    def take(self, amount: float) -> None:
        """Take *amount*, available or not."""
        self.level -= amount


class ReadQuota:
    """The quota of GetRecords on one stream shard: calls and bytes, shared by all its readers."""

    def __init__(self) -> None:
        self._calls = TokenBucket(READS_PER_S)
        self._bytes = TokenBucket(READ_BYTES_PER_S)
        self._closed_until_ms = 0

    def __repr__(self) -> str:
        return f"ReadQuota(calls={self._calls.level:.1f}, bytes={self._bytes.level:.0f})"

    def acquire(self, now_ms: int) -> bool:
        """Return whether a read may start now, and count it if so; `count_read` counts its bytes afterwards."""
        allowed = now_ms >= self._closed_until_ms and self._bytes.has(1, now_ms) and self._calls.has(1, now_ms)
        if allowed:
            self._calls.take(1)
        return allowed

    def count_read(self, size_bytes: int, now_ms: int, *, was_full: bool) -> None:
        """Count the bytes of a read; *was_full* when MAX_REPLY_BYTES limited it."""
        self._bytes.take(size_bytes)
        if was_full:
            self._closed_until_ms = now_ms + PAUSE_AFTER_FULL_REPLY_MS


class WriteQuota:
    """The quota of writing to one stream shard: records and bytes."""

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
