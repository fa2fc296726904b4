"""When to read a stream shard next: soon enough to see a record early, never more than Kinesis allows."""

from __future__ import annotations

# Kinesis quotas: 5 GetRecords a second and stream shard. A little more than a fifth of a second, so that no second,
# counted from anywhere, holds six starts.
READ_INTERVAL_S = 0.205
IDLE_INTERVAL_S = 1.0  # a record on an idle stream shard is seen within 1.1 s
BUSY_FOR_S = 60.0  # a stream shard that had a record in this time is read at READ_INTERVAL_S
READ_BYTES_PER_S = 2 * 1024 * 1024  # Kinesis quotas: GetRecords, 2 MiB/s a stream shard
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 5.0  # a full reply of 10 MiB has Kinesis refuse the next 5 s: API reference, GetRecords


class ReadBudget:
    """What Kinesis allows for one stream shard, shared by everything in this process that reads it.

    With one read in flight at a time, starts are at least READ_INTERVAL_S apart and replies average to no more than
    READ_BYTES_PER_S.
    """

    def __init__(self) -> None:
        self._next_start = float("-inf")
        self._bytes_paid_at = float("-inf")
        self._failure_count = 0

    def __repr__(self) -> str:
        return f"<ReadBudget next start {self.next_start:.3f}, {self._failure_count} failures>"

    @property
    def next_start(self) -> float:
        """The earliest time at which a read may start."""
        return max(self._next_start, self._bytes_paid_at)

    def started(self, now: float) -> None:
        """Note that a read starts."""
        self._next_start = max(self._next_start, now + READ_INTERVAL_S)

    def replied(self, started_at: float, size_bytes: int) -> None:
        """Note that the read of *started_at* brought *size_bytes*."""
        self._failure_count = 0
        self._bytes_paid_at = max(self._bytes_paid_at, started_at) + size_bytes / READ_BYTES_PER_S

    def failed(self, now: float, draw: float) -> None:
        """Note that a read was throttled or not answered; wait longer each time, with full jitter (*draw* in 0..1)."""
        longest = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(self._failure_count, 16))
        self._failure_count += 1
        self._next_start = max(self._next_start, now + draw * longest)


class Pacing:
    """How often one reader asks; a second reader of the same stream shard has its own and shares the budget."""

    def __init__(self, budget: ReadBudget) -> None:
        self._budget = budget
        self._started_at = float("-inf")
        self._record_seen_at = float("-inf")
        self._behind = False

    def __repr__(self) -> str:
        return f"<Pacing started {self._started_at:.3f}, behind {self._behind}, {self._budget!r}>"

    def delay_s(self, now: float) -> float:
        """Return how long to wait before the next read may start; 0 = at once, as at the beginning."""
        busy = self._behind or now - self._record_seen_at <= BUSY_FOR_S
        wanted = self._started_at + (READ_INTERVAL_S if busy else IDLE_INTERVAL_S)
        return max(0.0, max(wanted, self._budget.next_start) - now)

    def started(self, now: float) -> None:
        """Note that a read starts."""
        self._started_at = now
        self._budget.started(now)

    def replied(self, now: float, *, record_count: int, size_bytes: int, millis_behind: int | None) -> None:
        """Note the reply to the read last started.

        An empty reply that is behind the tip is normal (Kinesis walks over gaps), so it does not end the hurry.
        """
        self._budget.replied(self._started_at, size_bytes)
        self._behind = bool(millis_behind)
        if record_count:
            self._record_seen_at = now

    def failed(self, now: float, draw: float) -> None:
        """Note that the read last started was throttled or not answered."""
        self._budget.failed(now, draw)
