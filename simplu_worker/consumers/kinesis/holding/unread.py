"""The records that are still to be read: of the parents of a stream shard, each to its end, and then its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.stream.positions import (
    AtTimestamp,
    HashRange,
    Position,
    RecordPosition,
    Start,
    is_after,
    lowest_position,
)

HORIZON: Final = datetime(1970, 1, 1, tzinfo=UTC)  # before every record (Kinesis API reference, AT_TIMESTAMP)


class ParentRecords(msgspec.Struct, frozen=True):
    """The records of an ancestor to be read again: from *start* to its end, only those after *after*."""

    stream_shard_id: str
    start: Start
    after: Position | None
    hash_range: HashRange | None


class Unread(msgspec.Struct, frozen=True):
    """All records of *parents*, in their order, and then all own ones after *after*; None is the beginning."""

    after: RecordPosition | None
    parents: tuple[ParentRecords, ...] = ()

    def includes(self, other: Unread) -> bool:
        """Return whether it includes all records of *other*."""
        if self.after is not None and is_after(self.after, other.after):
            return False
        return self.includes_parents_of(other)

    def includes_parents_of(self, other: Unread) -> bool:
        """Return whether it includes all records of parents that *other* includes."""
        return set(merge(self.parents, other.parents)) == set(self.parents)


def union(parts: Iterable[Unread]) -> Unread:
    """Return the records of all *parts*, at least one."""
    found = list(parts)
    parents: tuple[ParentRecords, ...] = ()
    for part in found:
        if part.parents != parents:
            parents = merge(parents, part.parents)
    return Unread(lowest_position([part.after for part in found]), parents)


def merge(one: tuple[ParentRecords, ...], other: tuple[ParentRecords, ...]) -> tuple[ParentRecords, ...]:
    """Return the records of both, in order: a stream shard has a higher id than its parents."""
    found = {records.stream_shard_id: records for records in one}
    for records in other:
        known = found.get(records.stream_shard_id)
        if known is None or (known.after is not None and records.after is not None and records.after < known.after):
            found[records.stream_shard_id] = records
        elif known != records and (known.after is None or records.after is None):
            start = AtTimestamp(HORIZON)  # the lower of the two is unknown
            found[records.stream_shard_id] = msgspec.structs.replace(known, start=start, after=None)
    return tuple(found[key] for key in sorted(found))
