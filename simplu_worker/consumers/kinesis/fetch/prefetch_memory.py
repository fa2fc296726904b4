"""How much a replica may have read and not yet applied: one bound for all its stream shards.

Half of it is there for whoever comes first. The other half is set aside for all readers evenly, so that one whose
operations wait leaves each of the others a part: with nothing in hand a reader may always read, unless a record was
larger than what was expected.
"""

from __future__ import annotations

from typing import Final

ENTRY_OVERHEAD_BYTES: Final = 640  # what an operation costs in memory beside its record
READ_ROOM_MOST_BYTES: Final = 4 * 1024 * 1024


class Prefetch:
    """The memory of a replica for what is read and not yet applied, shared by the readers that have an account."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._accounts: set[MemoryQuota] = set()
        self._set_aside_bytes = 0  # for one reader
        self._unclaimed_bytes = 0  # of all that is set aside

    def __repr__(self) -> str:
        return f"<Prefetch {self.used_bytes} of {self.max_bytes} bytes, {len(self._accounts)} accounts>"

    def open(self) -> MemoryQuota:
        """Return a new account, which holds nothing."""
        account = MemoryQuota(self)
        self._accounts.add(account)
        self._divide()
        return account

    @property
    def read_room_bytes(self) -> int:
        """How much room to wait for before a read: most of a fair share, where that is not more than it is worth."""
        return min(READ_ROOM_MOST_BYTES, 3 * self.max_bytes // (4 * max(1, len(self._accounts))))

    def room_bytes_of(self, account: MemoryQuota) -> int:
        """Return how much more *account* may take now; 0 = nothing.

        All that no one else has a right to; from half of the total on no more than a fair share.
        """
        of_others = self._unclaimed_bytes - self._unclaimed_by(account)
        room_bytes = self.max_bytes - self.used_bytes - of_others
        if 2 * self.used_bytes >= self.max_bytes:
            fair_bytes = self.max_bytes // len(self._accounts)
            room_bytes = min(room_bytes, fair_bytes - account.held_bytes)
        return max(0, room_bytes)

    def change(self, account: MemoryQuota, by_bytes: int) -> None:
        """Let *account* hold *by_bytes* more, or less."""
        self._unclaimed_bytes -= self._unclaimed_by(account)
        account.held_bytes += by_bytes
        self.used_bytes += by_bytes
        self._unclaimed_bytes += self._unclaimed_by(account)

    def close(self, account: MemoryQuota) -> None:
        """Take back all that *account* holds, and what was set aside for it."""
        self.change(account, -account.held_bytes)
        self._accounts.discard(account)
        self._divide()

    def _divide(self) -> None:
        self._set_aside_bytes = self.max_bytes // (2 * max(1, len(self._accounts)))
        self._unclaimed_bytes = sum(map(self._unclaimed_by, self._accounts))

    def _unclaimed_by(self, account: MemoryQuota) -> int:
        return max(0, self._set_aside_bytes - account.held_bytes)


class MemoryQuota:
    """What one reader holds; made by `Prefetch.open`. To be used no more once closed.

    Before a read its expected reply is taken, so that readers who read at the same time do not overshoot together.
    """

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch
        self._is_open = True
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Account {self.held_bytes} bytes, room for {self.room_bytes}>" if self._is_open else "<Account closed>"

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

    def take(self, size_bytes: int) -> None:
        """Hold *size_bytes* more, whether there is room or not."""
        if self._is_open:
            self._prefetch.change(self, size_bytes)

    def give(self, size_bytes: int) -> None:
        """Hold *size_bytes* less. Raises ValueError when that is more than is held."""
        if not self._is_open:
            return  # all was given back
        if size_bytes > self.held_bytes:
            raise ValueError(f"expected to give back at most {self.held_bytes} bytes, got {size_bytes}")
        self._prefetch.change(self, -size_bytes)

    def correct(self, expected_bytes: int, actual_bytes: int) -> None:
        """Hold the *actual_bytes* of a reply in place of what was taken for it."""
        self.take(actual_bytes)
        self.give(expected_bytes)

    def close(self) -> None:
        """Give everything back; idempotent."""
        if self._is_open:
            self._prefetch.close(self)
            self._is_open = False
