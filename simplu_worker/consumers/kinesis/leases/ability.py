"""Whether this replica can do anything for a stream shard, and which leases it therefore takes. Pure.

A replica that finds no homes, reaches no Postgres shard or cannot read the stream gives its leases away: it renews
them, with a mark in their rows, until a replica that can work takes them. So a stream shard always has its reader.

Why a trouble of all replicas moves no lease: each of them notices it within PATIENCE_S, and only then the first one
marks its rows. Whoever has the trouble, or has had it within PATIENCE_S, takes nothing from others. When a replica ends
meanwhile, its leases are taken all the same, as soon as it is clear that nobody without a trouble takes them.

Why leases do not go back and forth: each time takes a replica that has been able, and an owner that has not, for
PATIENCE_S each. Without a lease only a read could show that the stream answers again: a replica tries that every
STREAM_RETRY_S.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from simplu_worker.vocabulary import Inability

PATIENCE_S: Final = 30.0  # longer than Citrus, the shards and the stream need to be noticed as silent
STREAM_RETRY_S: Final = 300.0


class Reach(Enum):
    """Which leases a replica takes."""

    ALL = auto()
    FREE = auto()  # none of other owners, neither for an even share nor what they give away
    LEFT = auto()  # only those without a reader that no other replica has taken in time


class Ability:
    """The trouble of a replica, and since when it has that or none."""

    def __init__(self) -> None:
        self.trouble: Inability | None = None
        self._since = float("-inf")  # at its start a replica finds out before it takes a lease

    def __repr__(self) -> str:
        return f"Ability({self.trouble}, since={self._since:.1f})"

    def note(self, trouble: Inability | None, *, now: float) -> None:
        """Note the trouble of *now*, or that there is none."""
        if (trouble is None) is not (self.trouble is None):
            self._since = now
        self.trouble = trouble

    def note_without_lease(self, trouble: Inability | None, *, now: float) -> None:
        """Note the trouble of *now* of a replica that reads nothing: it does not see whether the stream answers."""
        is_unread = self.trouble is Inability.STREAM_UNAVAILABLE and now - self._since < STREAM_RETRY_S
        self.note(self.trouble if trouble is None and is_unread else trouble, now=now)

    def is_unable(self, now: float) -> bool:
        """Return whether the trouble has lasted: leases are to be given away."""
        return self.trouble is not None and now - self._since >= PATIENCE_S

    def reach(self, now: float) -> Reach:
        """Return which leases this replica takes."""
        if self.trouble is not None:
            return Reach.LEFT
        return Reach.ALL if now - self._since >= PATIENCE_S else Reach.FREE
