"""The tree of stream shards: which leases are missing, which parents a lease waits for, which leases may go. Pure.

Source of the rules: the Kinesis Client Library's HierarchicalShardSyncer (missing leases), BlockOnParentShardTask
(parents), PeriodicShardSyncManager (holes) and LeaseCleanupManager.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.stream import positions
from simplu_worker.consumers.kinesis.stream.client import ChildShard, StreamShard

HASH_KEY_LAST = 2**128 - 1
UNREAD = frozenset(
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
    walk = _Walk(stream_shards, leases, initial)
    for shard in stream_shards:
        if shard.is_open and shard.stream_shard_id not in leases:
            walk.add(shard, is_descendant=walk.add_ancestors(shard))
    return [walk.missing[key] for shard in _in_order(stream_shards) if (key := shard.stream_shard_id) in walk.missing]


class _Walk:
    """A walk from the open stream shards up to leased ancestors, or to the oldest."""

    def __init__(self, stream_shards: Iterable[StreamShard], leases: Collection[str], initial: InitialPosition) -> None:
        self._by_id = {shard.stream_shard_id: shard for shard in stream_shards}
        self._leases = leases
        self._initial = initial
        self._is_continuation: dict[str, bool] = {}  # by stream shard, once walked
        self.missing: dict[str, Lease] = {}

    def add(self, shard: StreamShard, *, is_descendant: bool) -> None:
        starts_at_its_beginning = is_descendant and self._initial.checkpoint != positions.AT_TIMESTAMP
        position = InitialPosition(positions.TRIM_HORIZON) if starts_at_its_beginning else self._initial
        self.missing.setdefault(shard.stream_shard_id, _lease(shard, position))

    def add_ancestors(self, shard: StreamShard) -> bool:
        known = self._is_continuation.get(shard.stream_shard_id)
        if known is None:
            known = self._is_continuation[shard.stream_shard_id] = self._walk_up(shard)
        return known

    def _walk_up(self, shard: StreamShard) -> bool:
        if shard.stream_shard_id in self._leases:
            return True
        parents = [self._by_id[parent] for parent in sorted(shard.parents) if parent in self._by_id]
        continued = [parent for parent in parents if self.add_ancestors(parent)]
        if not continued:
            return self._initial.checkpoint != positions.LATEST
        for parent in parents:
            if parent.stream_shard_id not in self._leases:
                self.add(parent, is_descendant=parent in continued)
        return True


def child_leases(children: Iterable[ChildShard]) -> list[Lease]:
    """Return the leases of the children of an ended stream shard."""
    return [
        Lease(
            lease_key=child.stream_shard_id,
            checkpoint=positions.TRIM_HORIZON,
            parents=child.parents,
            hash_range=child.hash_range,
        )
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
        lease_key=shard.stream_shard_id,
        checkpoint=position.checkpoint,
        parents=shard.parents,
        hash_range=shard.hash_range,
        started_at=position.started_at,
    )


def _in_order(stream_shards: Iterable[StreamShard]) -> Sequence[StreamShard]:
    return sorted(stream_shards, key=lambda shard: (int(shard.starting_sequence_number), shard.stream_shard_id))
