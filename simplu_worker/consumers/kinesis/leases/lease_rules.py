"""Which leases are missing, wait for their parents, are taken and may go. Pure.

The rules of the tree of stream shards are those of the Kinesis Client Library: HierarchicalShardSyncer (missing
leases), BlockOnParentShardTask (parents), PeriodicShardSyncManager (holes), LeaseCleanupManager.

A replica takes as the KCL's DynamoDBLeaseTaker: first the leases that no replica holds, up to an even share; if there
are none, one lease of an owner that has too much. Where all owners measure, a share is one of the load, else of the
number of leases.

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
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from functools import cache
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import ChildShard, StreamShard
from simplu_worker.vocabulary import Inability

# The tree of stream shards

HASH_KEY_LAST: Final = 2**128 - 1
UNREAD: Final = frozenset(
    {positions.TRIM_HORIZON, positions.AT_TIMESTAMP, positions.LATEST}
)  # checkpoints of a lease before its first record


class InitialPosition(msgspec.Struct, frozen=True):
    """Where a new lease starts; *started_at* pins LATEST and AT_TIMESTAMP to an instant."""

    checkpoint: positions.Position
    started_at: datetime | None = None


def first_leases(stream_shards: Iterable[StreamShard], initial: InitialPosition) -> list[Lease]:
    """Return the leases of an empty table: one for each listed stream shard."""
    return [_lease(shard, initial) for shard in _in_order(stream_shards)]


def missing_leases(
    stream_shards: Collection[StreamShard], leases: Collection[str], initial: InitialPosition
) -> list[Lease]:
    """Return the leases to be created in addition to *leases* (keys), so that every open stream shard is read.

    A descendant of a leased one starts at its beginning, and so do the ancestors between them. Others start at the
    initial position: with LATEST the open stream shards alone, else their oldest listed ancestors, too.
    """
    by_id = {shard.stream_shard_id: shard for shard in stream_shards}
    missing: dict[str, Lease] = {}

    def add(key: str, *, is_descendant: bool) -> None:
        starts_at_its_beginning = is_descendant and initial.checkpoint != positions.AT_TIMESTAMP
        position = InitialPosition(positions.TRIM_HORIZON) if starts_at_its_beginning else initial
        missing.setdefault(key, _lease(by_id[key], position))

    @cache
    def add_ancestors(key: str) -> bool:  # whether it continues one of them
        if key in leases:
            return True
        parents = [parent for parent in sorted(by_id[key].parents) if parent in by_id]
        continued = [parent for parent in parents if add_ancestors(parent)]
        if not continued:
            return initial.checkpoint != positions.LATEST
        for parent in parents:
            if parent not in leases:
                add(parent, is_descendant=parent in continued)
        return True

    for key, shard in by_id.items():
        if shard.is_open and key not in leases:
            add(key, is_descendant=add_ancestors(key))
    return [missing[key] for shard in _in_order(stream_shards) if (key := shard.stream_shard_id) in missing]


def child_leases(children: Iterable[ChildShard]) -> list[Lease]:
    """Return the leases of the children of an ended stream shard."""
    return [
        Lease(child.stream_shard_id, positions.TRIM_HORIZON, parents=child.parents, hash_range=child.hash_range)
        for child in children
    ]


def unfinished_parents(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> list[str]:
    """Return the parents that must finish, or list their pending tenants, before *lease* is read.

    A parent past its retention (*gone*) has no records left.
    """
    return [parent.lease_key for parent in _unfinished(lease, leases, gone) if parent.pending_tenants is None]


def pending_at_parents(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> frozenset[str]:
    """Return the tenants that *lease* must hold: those listed by its parents."""
    return frozenset[str]().union(*(parent.pending_tenants or () for parent in _unfinished(lease, leases, gone)))


def is_torn(stream_shards: Collection[StreamShard]) -> bool:
    """Return whether a reshard came between the pages of a listing."""
    opened = {shard.stream_shard_id for shard in stream_shards if shard.is_open}
    return any(shard.parents & opened for shard in stream_shards)


def first_hole(ranges: Iterable[positions.HashRange]) -> positions.HashRange | None:
    """Return the first hash keys that no range covers, if any."""
    next_key = 0
    for covered in sorted(ranges, key=lambda one: one.first):
        if covered.first > next_key:
            return positions.HashRange(next_key, covered.first - 1)
        next_key = max(next_key, covered.last + 1)
    return None if next_key > HASH_KEY_LAST else positions.HashRange(next_key, HASH_KEY_LAST)


def first_hole_in_leases(leases: Iterable[Lease]) -> positions.HashRange | None:
    """Return the first hash keys that no unfinished lease covers; None while a range is unknown."""
    ranges = [lease.hash_range for lease in leases if lease.checkpoint != positions.SHARD_END]
    return None if None in ranges else first_hole([one for one in ranges if one is not None])


def removable_leases(leases: Mapping[str, Lease], gone: Collection[str]) -> list[Lease]:
    """Return the finished leases past their retention, without a leased parent or an unread child."""
    awaited = {key for child in leases.values() if child.checkpoint in UNREAD for key in child.parents}
    return [
        lease
        for key, lease in sorted(leases.items())
        if lease.checkpoint == positions.SHARD_END
        and key in gone
        and not lease.parents & leases.keys()
        and key not in awaited
    ]


def _unfinished(lease: Lease, leases: Mapping[str, Lease], gone: Collection[str]) -> list[Lease]:
    return [
        leases[parent]
        for parent in sorted(lease.parents)
        if parent in leases and parent not in gone and leases[parent].checkpoint != positions.SHARD_END
    ]


def _lease(shard: StreamShard, position: InitialPosition) -> Lease:
    return Lease(
        shard.stream_shard_id,
        position.checkpoint,
        parents=shard.parents,
        hash_range=shard.hash_range,
        started_at=position.started_at,
    )


def _in_order(stream_shards: Iterable[StreamShard]) -> Sequence[StreamShard]:
    return sorted(stream_shards, key=lambda shard: (int(shard.starting_sequence_number), shard.stream_shard_id))


# The shares of replicas

# An idle stream shard takes 0.11 % of a core, as 20 records/s of 400 bytes do (docs/performance.md).
FIXED_KBPS: Final = 8.0
HEAVY: Final = 1.1  # of the mean: above it an owner gives leases
LIGHT: Final = 0.9  # of the mean: below it a replica takes leases, also from owners that are not heavy
GAIN: Final = 0.05  # of the mean, by which a move lowers the greater of the two loads at least
ROUNDING: Final = 1e-6  # of sums of loads
UNTAKEN_DURATIONS: Final = 2  # without a reader, so that no replica that can work takes it
VERY_OLD_DURATIONS: Final = 3  # lease durations without renewal: then taken beyond the even share, too (KCL)
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

    def note(self, trouble: Inability | None, *, is_reading: bool = True, now: float) -> None:
        """Note the trouble of *now*, or that there is none; who reads nothing does not see a stream that answers."""
        if not is_reading and self.trouble is Inability.STREAM_UNAVAILABLE and now - self._since < STREAM_RETRY_S:
            trouble = trouble or self.trouble
        if (trouble is None) is not (self.trouble is None):
            self._since = now
        self.trouble = trouble

    def is_unable(self, now: float) -> bool:
        """Return whether the trouble has lasted: leases are to be given away."""
        return self.trouble is not None and now - self._since >= PATIENCE_S

    def reach(self, now: float) -> Reach:
        """Return which leases this replica takes."""
        if self.trouble is not None:
            return Reach.LEFT
        return Reach.ALL if now - self._since >= PATIENCE_S else Reach.FREE


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
    unfinished = {key: one for key, one in observations.items() if one.lease.checkpoint != positions.SHARD_END}
    free = takeable_leases(unfinished, held=held, now=now, lease_duration_s=lease_duration_s, me=me)
    unchanged_s = {key: now - one.unchanged_since for key, one in unfinished.items()}
    if reach is Reach.LEFT:
        return [lease for lease in free if unchanged_s[lease.lease_key] > UNTAKEN_DURATIONS * lease_duration_s]
    if reach is Reach.FREE:
        free = [one for one in free if not one.is_given_away or unchanged_s[one.lease_key] > lease_duration_s]
    loads = loads_of(unfinished)
    if not free:
        move = None if reach is Reach.FREE else plan_move(loads, unfinished, held=held, me=me, draw=draw)
        return [] if move is None else [move]
    free_keys = {lease.lease_key for lease in free}
    others = {one.lease.actual_owner for key, one in unfinished.items() if key not in free_keys and key not in held}
    room = sum(loads.values()) / (len(others - {None}) + 1) - sum(loads[key] for key in held if key in loads)
    start, wanted = int(draw * len(free)), []
    for lease in free[start:] + free[:start]:
        is_very_old = unchanged_s[lease.lease_key] > VERY_OLD_DURATIONS * lease_duration_s
        if room > ROUNDING or lease.is_given_away or (lease.actual_owner is not None and is_very_old):
            wanted.append(lease)
        room -= loads[lease.lease_key]
    return wanted


def takeable_leases(
    unfinished: Mapping[str, Observation], *, held: Collection[str], now: float, lease_duration_s: float, me: str
) -> list[Lease]:
    """Return the leases that may be taken now: free ones first, then those unchanged for longest.

    Free are those without an owner, those given away, and those of *me* that this process does not hold: the answer to
    a take was lost.
    """
    free: list[Lease] = []
    expired: list[Observation] = []
    for key, one in unfinished.items():
        if key in held:
            continue
        if one.lease.actual_owner in (None, me) or one.lease.is_given_away:
            free.append(one.lease)
        elif now - one.unchanged_since > lease_duration_s:
            expired.append(one)
    return free + [one.lease for one in sorted(expired, key=lambda one: one.unchanged_since)]


def assigned_leases(leases: Iterable[Lease], *, me: str) -> list[Lease]:
    """Return the unfinished *leases* that a KCL 3.x leader has assigned to *me*, and nobody reads."""
    return [
        lease
        for lease in leases
        if lease.owner == me and lease.checkpoint_owner is None and lease.checkpoint != positions.SHARD_END
    ]


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
        if key not in held:  # and no other lease is free
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
