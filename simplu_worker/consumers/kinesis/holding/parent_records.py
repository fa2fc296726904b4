"""Records of the parents of a stream shard that have to be read again. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.stream.client import AtTimestamp, Start
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position

HORIZON: Final = datetime(1970, 1, 1, tzinfo=UTC)  # before every record (Kinesis API reference, AT_TIMESTAMP)


class ParentRecords(msgspec.Struct, frozen=True):
    """The records of an ancestor to be read again: from *start* to its end, only those after *after*."""

    stream_shard_id: str
    start: Start
    after: Position | None
    hash_range: HashRange | None


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


def includes(one: tuple[ParentRecords, ...], other: tuple[ParentRecords, ...]) -> bool:
    """Return whether *one* contains all records of *other*."""
    return set(merge(one, other)) == set(one)
