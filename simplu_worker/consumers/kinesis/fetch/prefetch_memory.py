"""How much a replica may have read and not yet applied: one bound for all its stream shards. Pure.

Half of it goes to the first readers that ask. The other half is set aside for all readers in equal parts: a reader may
take its part whatever the others hold, so that none waits for the operations of another one. The total passes the bound
by the parts of readers that begin while others hold all of it, at worst twice the bound with eleven stream shards, and
by records that are larger than expected.
"""

from __future__ import annotations

from typing import Final

OPERATION_OVERHEAD_BYTES: Final = 640  # the memory of an operation beyond its record
RECORD_OVERHEAD_BYTES: Final = 320  # the memory of a record that is not decoded yet, beyond its data and its key
READ_ROOM_MAX_BYTES: Final = 4 * 1024 * 1024


class PrefetchMemory:
    """The memory of a replica for records that are read and not yet applied, shared by readers with a quota each."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._quotas: set[MemoryQuota] = set()
        self._set_aside_bytes = 0  # for one reader
        self._unclaimed_bytes = 0  # of the parts set aside, for all readers

    def __repr__(self) -> str:
        return f"<PrefetchMemory {self.used_bytes} of {self.max_bytes} bytes, {len(self._quotas)} quotas>"

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

        All bytes that are not set aside for other readers; from half of the total on, at most a fair share. What is
        left of its own part at least.
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
        """Take back all memory that *quota* holds, and the part set aside for it."""
        self.change(quota, -quota.held_bytes)
        self._quotas.discard(quota)
        self._divide()

    def _divide(self) -> None:
        self._set_aside_bytes = self.max_bytes // (2 * max(1, len(self._quotas)))
        self._unclaimed_bytes = sum(map(self._unclaimed_by, self._quotas))

    def _unclaimed_by(self, quota: MemoryQuota) -> int:
        return max(0, self._set_aside_bytes - quota.held_bytes)


class MemoryQuota:
    """The memory that one reader holds; created by `PrefetchMemory.open_quota`. After `close` it reserves nothing.

    Memory for the expected reply is reserved before a read, so that concurrent readers do not overshoot together.
    """

    def __init__(self, prefetch: PrefetchMemory) -> None:
        self._prefetch = prefetch
        self._is_open = True
        self.held_bytes = 0

    def __repr__(self) -> str:
        return (
            f"<MemoryQuota {self.held_bytes} bytes, room for {self.room_bytes}>"
            if self._is_open
            else "<MemoryQuota closed>"
        )

    @property
    def is_short(self) -> bool:
        """Whether a read has to wait for more room, because a small read costs as much as a large one.

        False while the reader holds no memory, as its own operations could not free more; true once it is closed.
        """
        room_bytes = self.room_bytes
        return not room_bytes or (bool(self.held_bytes) and room_bytes < self._prefetch.read_room_bytes)

    @property
    def room_bytes(self) -> int:
        """The bytes that may be reserved now. If not 0, one read may start, however large its only record is."""
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

    def correct(self, expected_bytes: int, actual_bytes: int) -> None:
        """Hold the *actual_bytes* of a reply in place of the *expected_bytes* reserved for it."""
        self.reserve(actual_bytes)
        self.release(expected_bytes)

    def close(self) -> None:
        """Release everything; idempotent."""
        if self._is_open:
            self._prefetch.close_quota(self)
            self._is_open = False
