"""Absolute limits of tenants and businesses: buckets that fill with time, kept on their shard. Pure.

A bucket counts in seconds, so that a limit can change at any time: an operation takes a part of a second, by the limits
on operations and on bytes. It is applied while nothing is owed, whatever its size; so every operation is applied in
the end. Little is saved up: in no ten seconds is much more applied than the limit allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

SAVED_MAX_S: Final = 1.25  # of a target that takes less than its limit; what is held is read again soon
WAIT_S, WAIT_MAX_S = 0.25, 30.0  # beyond what is owed, to apply more than one; at most, as a limit may be raised


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
    """The buckets of some targets, as locked for a transaction; those without a row have nothing saved up."""

    def __init__(self, saved_s: Mapping[str, tuple[float, float]]) -> None:
        self._left_s = {target: [min(SAVED_MAX_S, one) for one in saved] for target, saved in saved_s.items()}
        self.spent_s: dict[str, tuple[float, float]] = {}

    def take(self, limits: Collection[tuple[str, Limit]], size_bytes: int) -> float | None:
        """Take an operation out of the buckets of *limits*; or return for how many seconds it is to wait."""
        left = [(target, limit, self._left_s.setdefault(target, [0.0, 0.0])) for target, limit in limits]
        owed_s = max(
            [
                -left_s
                for _, limit, both in left
                for left_s, rate in zip(both, (limit.operations_per_s, limit.bytes_per_s), strict=True)
                if rate is not None
            ],
            default=0.0,
        )
        if owed_s > 0:
            return min(owed_s + WAIT_S, WAIT_MAX_S)
        for target, limit, both in left:
            before, spent = self.spent_s.get(target, (0.0, 0.0)), limit.spent_s(size_bytes)
            self.spent_s[target] = before[0] + spent[0], before[1] + spent[1]
            both[:] = both[0] - spent[0], both[1] - spent[1]
        return None
