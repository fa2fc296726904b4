"""Which leases a replica takes, and whether it can do anything for them. Pure.

As the KCL's DynamoDBLeaseTaker: first the leases that no replica holds, up to an even share; if there are none, one
lease of an owner that has too much. Where all owners measure, a share is one of the load, else of the number of leases.

The load of a lease is its throughput, and a fixed part. Replicas that see the same scan take from different owners: the
lightest from the heaviest, the next lightest from the next. The leases come to rest: a move must lower the greater of
the two loads by GAIN, so it lowers the sum of the squares of all loads, and nothing is moved while all are within HEAVY
and LIGHT of the mean.

A replica that can do nothing renews its leases with a mark in their rows, until a replica that can work takes them. A
trouble of all replicas moves no lease: each notices it within PATIENCE_S, before the first one marks its rows, and
takes nothing from others then. Leases do not go back and forth: the taker has been able, and the owner has not, for
PATIENCE_S each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Final

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, takeable_leases
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.vocabulary import Inability

# An idle stream shard takes 0.11 % of a core, as 20 records/s of 400 bytes do (docs/performance.md).
FIXED_KBPS: Final = 8.0
HEAVY: Final = 1.1  # of the mean: above it an owner gives leases
LIGHT: Final = 0.9  # of the mean: below it a replica takes leases, also from owners that are not heavy
GAIN: Final = 0.05  # of the mean, by which a move lowers the greater of the two loads at least


def loads_of(unfinished: Mapping[str, Observation]) -> Mapping[str, float]:
    """Return the load of each lease in KB/s; 1 for each where an owner does not measure, as a KCL does not."""
    leases = [one.lease for one in unfinished.values()]
    if any(not lease.is_metered for lease in leases if lease.actual_owner is not None):
        return dict.fromkeys(unfinished, 1.0)
    known = [lease.throughput_kbps for lease in leases if lease.throughput_kbps is not None]
    mean = sum(known) / len(known) if known else 0.0
    return {
        lease.lease_key: FIXED_KBPS + (mean if lease.throughput_kbps is None else lease.throughput_kbps)
        for lease in leases
    }


def plan_move(
    loads: Mapping[str, float],
    unfinished: Mapping[str, Observation],
    *,
    held: Collection[str],
    me: str,
    draw: float,
) -> Lease | None:
    """Return the lease to take now from another owner; None when none should move to this replica."""
    owned: defaultdict[str, list[str]] = defaultdict(list)
    for key, one in unfinished.items():
        if one.lease.actual_owner not in (None, me) and key not in held:
            owned[one.lease.actual_owner or me].append(key)
    by_owner = {owner: sum(map(loads.__getitem__, keys)) for owner, keys in owned.items()}
    mine = sum(loads[key] for key in held if key in loads)
    mean = (sum(by_owner.values()) + mine) / (len(by_owner) + 1)
    if mine >= mean:
        return None
    giver = _giver(by_owner, mine, mean=mean, is_new=not held, me=me, draw=draw)
    if giver is None:
        return None
    gap = by_owner[giver] - mine
    movable = [(load * (gap - load), key) for key in owned[giver] if (load := loads[key]) <= gap - GAIN * mean]
    return unfinished[max(movable)[1]].lease if movable else None


def _giver(
    by_owner: Mapping[str, float], mine: float, *, mean: float, is_new: bool, me: str, draw: float
) -> str | None:
    # A replica without a lease is not seen by the others, which rank without it: it draws.
    givers = sorted(
        (owner for owner, load in by_owner.items() if load > mean * (1.0 if mine < LIGHT * mean else HEAVY)),
        key=lambda owner: (-by_owner[owner], owner),
    )
    lighter = sum(1 for owner, load in by_owner.items() if (load, owner) < (mine, me))
    place = int(draw * len(givers)) if is_new else lighter
    return givers[place] if place < len(givers) else None


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

    def note(self, trouble: Inability | None, *, now: float) -> None:
        """Note the trouble of *now*, or that there is none."""
        if (trouble is None) is not (self.trouble is None):
            self._since = now
        self.trouble = trouble

    def note_without_lease(self, trouble: Inability | None, *, now: float) -> None:
        """Note the trouble of a replica that reads nothing, and does not see whether the stream answers."""
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


ROUNDING: Final = 1e-6  # of sums of loads
UNTAKEN_DURATIONS: Final = 2  # without a reader, so that no replica that can work takes it
VERY_OLD_DURATIONS: Final = 3  # lease durations without renewal: then taken beyond the even share, too (KCL)


def plan_takes(
    observations: Mapping[str, Observation],
    *,
    held: Collection[str],
    now: float,
    lease_duration_s: float,
    me: str,
    draw: float,
    reach: Reach = Reach.ALL,
) -> list[Lease]:
    """Return the leases to try to take now; 0 ≤ *draw* < 1.

    Different draws make replicas that start together try different leases first.
    """
    unfinished = {key: one for key, one in observations.items() if one.lease.checkpoint != SHARD_END}
    free = takeable_leases(unfinished, held=held, now=now, lease_duration_s=lease_duration_s, me=me)
    unchanged_s = {key: now - one.unchanged_since for key, one in unfinished.items()}
    if reach is Reach.LEFT:
        return [lease for lease in free if unchanged_s[lease.lease_key] > UNTAKEN_DURATIONS * lease_duration_s]
    if reach is Reach.FREE:
        free = [one for one in free if not one.is_given_away or unchanged_s[one.lease_key] > lease_duration_s]
    loads = loads_of(unfinished)
    if free:
        urgent = {
            lease.lease_key
            for lease in free
            if lease.is_given_away
            or (lease.actual_owner is not None and unchanged_s[lease.lease_key] > VERY_OLD_DURATIONS * lease_duration_s)
        }
        free_keys = {lease.lease_key for lease in free}
        others = {one.lease.actual_owner for key, one in unfinished.items() if key not in free_keys and key not in held}
        room = sum(loads.values()) / (len(others - {None}) + 1) - sum(loads[key] for key in held if key in loads)
        start, wanted = int(draw * len(free)), []
        for lease in free[start:] + free[:start]:
            if room > ROUNDING or lease.lease_key in urgent:
                wanted.append(lease)
            room -= loads[lease.lease_key]
        return wanted
    move = None if reach is Reach.FREE else plan_move(loads, unfinished, held=held, me=me, draw=draw)
    return [] if move is None else [move]
