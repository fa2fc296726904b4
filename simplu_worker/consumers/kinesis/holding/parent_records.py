"""Which records of the stream shards that another one continues have to be read again. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.stream.client import AtTimestamp, Start
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position

HORIZON: Final = datetime(1970, 1, 1, tzinfo=UTC)  # the oldest record there is (Kinesis API reference, AT_TIMESTAMP)


class ParentRecords(msgspec.Struct, frozen=True):
    """What has to be read again of an ancestor, to its end: from *start* on, and only what is behind *after*."""

    stream_shard_id: str
    start: Start
    after: Position | None
    hash_range: HashRange | None


def merge(one: tuple[ParentRecords, ...], other: tuple[ParentRecords, ...]) -> tuple[ParentRecords, ...]:
    """Return what covers both, in order: a stream shard has a higher id than those that it continues."""
    found = {records.stream_shard_id: records for records in one}
    for records in other:
        known = found.get(records.stream_shard_id)
        if known is None or (known.after is not None and records.after is not None and records.after < known.after):
            found[records.stream_shard_id] = records
        elif known != records and (known.after is None or records.after is None):
            start = AtTimestamp(HORIZON)  # which of the two is lower cannot be told
            found[records.stream_shard_id] = msgspec.structs.replace(known, start=start, after=None)
    return tuple(found[key] for key in sorted(found))


def includes(one: tuple[ParentRecords, ...], other: tuple[ParentRecords, ...]) -> bool:
    """Tell whether *one* has all records that *other* has."""
    return set(merge(one, other)) == set(one)
