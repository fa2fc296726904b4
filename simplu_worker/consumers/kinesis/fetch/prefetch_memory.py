"""How much a replica may have read and not yet applied: one bound for all its stream shards.

Half of it is there for whoever comes first. The other half is set aside for all readers evenly, so that one whose
operations wait leaves each of the others a part: with nothing in hand a reader may always read, unless a record was
larger than what was expected.
"""

from __future__ import annotations

from typing import Final

OPERATION_OVERHEAD_BYTES: Final = 640  # what an operation costs in memory beside its record
READ_ROOM_MAX_BYTES: Final = 4 * 1024 * 1024


class PrefetchMemory:
    """The memory of a replica for what is read and not yet applied, shared by the readers that have a quota."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._quotas: set[MemoryQuota] = set()
        self._set_aside_bytes = 0  # for one reader
        self._unclaimed_bytes = 0  # of all that is set aside

    def __repr__(self) -> str:
        return f"<PrefetchMemory {self.used_bytes} of {self.max_bytes} bytes, {len(self._quotas)} quotas>"

    def open_quota(self) -> MemoryQuota:
        """Return a new quota, which holds nothing."""
        quota = MemoryQuota(self)
        self._quotas.add(quota)
        self._divide()
        return quota

    @property
    def read_room_bytes(self) -> int:
        """How much room to wait for before a read: most of a fair share, where that is not more than it is worth."""
        return min(READ_ROOM_MAX_BYTES, 3 * self.max_bytes // (4 * max(1, len(self._quotas))))

    def room_bytes_of(self, quota: MemoryQuota) -> int:
        """Return how much more *memory* may take now; 0 = nothing.

        All that no one else has a right to; from half of the total on no more than a fair share.
        """
        of_others = self._unclaimed_bytes - self._unclaimed_by(quota)
        room_bytes = self.max_bytes - self.used_bytes - of_others
        if 2 * self.used_bytes >= self.max_bytes:
            fair_bytes = self.max_bytes // len(self._quotas)
            room_bytes = min(room_bytes, fair_bytes - quota.held_bytes)
        return max(0, room_bytes)

    def change(self, quota: MemoryQuota, by_bytes: int) -> None:
        """Let *memory* hold *by_bytes* more, or less."""
        self._unclaimed_bytes -= self._unclaimed_by(quota)
        quota.held_bytes += by_bytes
        self.used_bytes += by_bytes
        self._unclaimed_bytes += self._unclaimed_by(quota)

    def close_quota(self, quota: MemoryQuota) -> None:
        """Take back all that *memory* holds, and what was set aside for it."""
        self.change(quota, -quota.held_bytes)
        self._quotas.discard(quota)
        self._divide()

    def _divide(self) -> None:
        self._set_aside_bytes = self.max_bytes // (2 * max(1, len(self._quotas)))
        self._unclaimed_bytes = sum(map(self._unclaimed_by, self._quotas))

    def _unclaimed_by(self, quota: MemoryQuota) -> int:
        return max(0, self._set_aside_bytes - quota.held_bytes)


class MemoryQuota:
    """What one reader holds; made by `PrefetchMemory.open`. To be used no more once closed.

    Before a read its expected reply is taken, so that readers who read at the same time do not overshoot together.
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
        """Whether a read has to wait for room: a small one costs as much as a large one.

        Not where nothing is held: there is no room to wait for.
        """
        room_bytes = self.room_bytes
        return not room_bytes or (bool(self.held_bytes) and room_bytes < self._prefetch.read_room_bytes)

    @property
    def room_bytes(self) -> int:
        """How much may be taken now. Where it is not 0 one read is fine, however large its only record may be."""
        return self._prefetch.room_bytes_of(self) if self._is_open else 0

    def reserve(self, size_bytes: int) -> None:
        """Hold *size_bytes* more, whether there is room or not."""
        if self._is_open:
            self._prefetch.change(self, size_bytes)

    def release(self, size_bytes: int) -> None:
        """Hold *size_bytes* less. Raises ValueError when that is more than is held."""
        if not self._is_open:
            return  # all was given back
        if size_bytes > self.held_bytes:
            raise ValueError(f"expected to give back at most {self.held_bytes} bytes, got {size_bytes}")
        self._prefetch.change(self, -size_bytes)

    def correct(self, expected_bytes: int, actual_bytes: int) -> None:
        """Hold the *actual_bytes* of a reply in place of what was taken for it."""
        self.reserve(actual_bytes)
        self.release(expected_bytes)

    def close(self) -> None:
        """Give everything back; idempotent."""
        if self._is_open:
            self._prefetch.close_quota(self)
            self._is_open = False
