"""Absolute limits of tenants and businesses: buckets that fill with time, kept on their shard. Pure.

A bucket counts in seconds, so that a limit can change at any time: an operation takes a part of a second, by the limits
on operations and on bytes. It is applied while nothing is owed, whatever its size; so every operation is applied in
the end. Nothing is lost by the time in which what is held comes again; and of a target of which nothing waited of late
so little is saved up that in no ten seconds a twentieth more is applied than the limit allows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

IDLE_MAX_S, HELD_MAX_S = 0.5, 2.5  # saved up by a target, and by one of which operations were held of late
LATE_S: Final = 10.0  # until these are back, where their source is slow
WAIT_S, WAIT_MAX_S = 0.25, 30.0  # beyond what is owed, to apply more than one; at most, as a limit may be raised
NOTHING_S, IDLE_S = (0.0, 0.0), (IDLE_MAX_S, IDLE_MAX_S)


class Limit(msgspec.Struct, frozen=True):
    """What a target may send in a second, beyond which it waits; None is no limit."""

    operations_per_s: float | None = None
    bytes_per_s: float | None = None

    def __bool__(self) -> bool:
        """Return whether anything is limited."""
        return self.operations_per_s is not None or self.bytes_per_s is not None

    def spent_s(self, size_bytes: int) -> tuple[float, float]:
        """Return the seconds that an operation takes of a bucket, by operations and by bytes."""
        return (
            0.0 if self.operations_per_s is None else 1 / self.operations_per_s,
            0.0 if self.bytes_per_s is None else size_bytes / self.bytes_per_s,
        )


NO_LIMIT: Final = Limit()


class Buckets:
    """The buckets of some targets, as locked for a transaction; without a row nothing was sent of late."""

    def __init__(self, rows: Sequence[tuple[str, float, float, float | None]]) -> None:
        """*rows* have what is saved up by operations and by bytes, and since when what was held may come, in s."""
        self._saved_s = {target: (by_operations_s, by_bytes_s) for target, by_operations_s, by_bytes_s, _ in rows}
        self._left_s = {
            target: (min(most_s, by_operations_s), min(most_s, by_bytes_s))
            for target, by_operations_s, by_bytes_s, held_s in rows
            for most_s in [IDLE_MAX_S if held_s is None or held_s > LATE_S else HELD_MAX_S]
        }
        self._waits_s: dict[str, float] = {}

    def take(self, limits: Collection[tuple[str, Limit]], size_bytes: int) -> float | None:
        """Take an operation out of the buckets of *limits*; or return for how many seconds it is to wait."""
        owners = [(target, limit.spent_s(size_bytes), self._left_s.get(target, IDLE_S)) for target, limit in limits]
        owes_s = [-left for _, *one in owners for takes, left in zip(*one, strict=True) if takes and left < 0]
        wait_s = min(max(owes_s) + WAIT_S, WAIT_MAX_S) if owes_s else 0.0
        for target, spent_s, left_s in owners:
            self._waits_s[target] = max(wait_s, self._waits_s.get(target, 0.0))
            if not owes_s:
                self._left_s[target] = left_s[0] - spent_s[0], left_s[1] - spent_s[1]
        return wait_s or None

    def changes(self) -> list[list[str]]:
        """Return targets, what to add to their times of operations and of bytes, and how long what is held waits."""
        rows = [
            (target, saved_s[0] - left_s[0], saved_s[1] - left_s[1], wait_s)
            for target, wait_s in self._waits_s.items()
            for saved_s, left_s in [(self._saved_s.get(target, NOTHING_S), self._left_s.get(target, IDLE_S))]
        ]
        return [[str(one) for one in column] for column in zip(*rows, strict=True)]
