"""The owners whose leases others took because nobody renewed them any more. Pure.

An owner that ends in order, or gives leases away, releases them within a third of the lease duration after a renewal;
leases of a killed one change hands after a whole lease duration without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from simplu_worker.consumers.kinesis.leases.lease import Observation
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END

EXPIRED_SHARE: Final = 0.75  # of the lease duration: replicas see a renewal up to a scan apart
TOLD_FOR_S: Final = 86400.0


class LostOwners:
    """The owners that are gone, until another one has come in their place: each newcomer takes the place of one."""

    def __init__(self, lease_duration_s: float) -> None:
        self._expired_after_s = EXPIRED_SHARE * lease_duration_s
        self._before: Mapping[str, Observation] = {}
        self._noted_at = float("-inf")
        self._came_at: dict[str, float] = {}  # by owner; those that were there before take nobody's place
        self._gone_since: dict[str, float] = {}  # by owner, the last renewal

    def __repr__(self) -> str:
        return f"LostOwners({self._gone_since})"

    def note(self, observations: Mapping[str, Observation], *, now: float) -> None:
        """Take over a scan; *now* is monotonic. Scans that are far apart tell nothing."""
        owners = {owner for one in observations.values() if (owner := one.lease.actual_owner) is not None}
        is_first = not self._before
        if now - self._noted_at < self._expired_after_s:
            self._note_lost(observations, owners, now=now)
        for owner in owners:
            self._gone_since.pop(owner, None)
        known = self._came_at
        self._came_at = {owner: known.get(owner, float("-inf") if is_first else now) for owner in owners}
        for owner, came_at in sorted(self._came_at.items(), key=lambda pair: pair[1]):
            replaced = min(self._gone_since, key=self._gone_since.__getitem__, default=None)
            if replaced is not None and self._gone_since[replaced] < came_at:
                del self._gone_since[replaced]
                self._came_at[owner] = float("-inf")
        self._before, self._noted_at = observations, now

    def _note_lost(self, observations: Mapping[str, Observation], owners: set[str], *, now: float) -> None:
        for key, one in self._before.items():
            owner = one.lease.actual_owner
            if owner is None or owner in owners or key not in observations or one.lease.checkpoint == SHARD_END:
                continue
            if now - one.unchanged_since > self._expired_after_s and not one.lease.is_to_be_released:
                self._gone_since.setdefault(owner, one.unchanged_since)

    def gone(self, *, now: float) -> list[tuple[str, float]]:
        """Return those of the last day, the first one first, each with the seconds since its last renewal."""
        ages = sorted(((owner, now - since) for owner, since in self._gone_since.items()), key=lambda pair: -pair[1])
        return [(owner, age_s) for owner, age_s in ages if age_s <= TOLD_FOR_S]
