"""Decode the records of one stream shard into operations, or into rejections; the same for every reader. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import dropwhile
from sys import intern
from typing import Final, TypeAlias

from msgspec.structs import replace

from simplu_worker.consumers.kinesis.stream.aggregation import (
    MAGIC,
    PARTS_MAX,
    TOO_MANY,
    SubRecord,
    TooManyPartsError,
    deaggregate,
    lies_within,
    outside_error,
)
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import HashRange, HasPosition, Position, RecordPosition
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import DeadLetterReason, Operation, Origin, RejectedRecord, Source

KINESIS: Final = Source.KINESIS  # looked up once: access to an enum member is slow

DecodedRecord: TypeAlias = tuple[HasPosition, bytes, Operation | RejectedRecord]
"""The position of a record or sub-record, its bytes, and the operation or rejection that they decode to."""


class RecordDecoder:
    """Decodes the records of one stream shard, aggregates too."""

    def __init__(
        self,
        stream_name: str,
        stream_shard_id: str,
        *,
        operation_max_bytes: int,
        list_result_limit: int,
        hash_range: HashRange | None = None,
    ) -> None:
        """*hash_range* is the stream shard's; None when it is unknown."""
        self._stream_name = stream_name
        self._stream_shard_id = stream_shard_id
        self._operation_max_bytes = operation_max_bytes
        self._list_result_limit = list_result_limit
        self._hash_range = hash_range

    def decode(self, records: list[Record], *, after: Position | None = None) -> Iterator[DecodedRecord]:
        """Yield the decoded *records* and sub-records in their order, from the first one after the position *after*.

        Empties *records* on the way, so that the memory of a decoded record is reused for the next. An aggregate with
        a part that belongs to another stream shard, or with too many parts, is rejected as a whole.
        """
        decoded = self._decode_all(records)
        if after is None:
            return decoded
        return dropwhile(lambda one: RecordPosition.from_record(one[0]).position <= after, decoded)

    def _decode_all(self, records: list[Record]) -> Iterator[DecodedRecord]:
        # Runs for every record: values that all records share are looked up once.
        stream_name, stream_shard_id = self._stream_name, self._stream_shard_id
        max_bytes, list_limit = self._operation_max_bytes, self._list_result_limit
        arrived_at: datetime | None = None  # one object for all records of one instant
        records.reverse()
        while records:
            record = records.pop()
            if record.arrived_at != arrived_at:
                arrived_at = record.arrived_at
            data = record.data
            if data.startswith(MAGIC) and (parts := self._decode_aggregate(record)) is not None:
                yield from parts
                continue
            number, key = record.sequence_number, intern(record.partition_key)
            origin = Origin(KINESIS, stream_name, arrived_at, stream_shard_id, number, 0, key)
            yield origin, data, decode_operation(data, origin, max_bytes, list_limit)

    def _decode_aggregate(self, record: Record) -> Iterator[DecodedRecord] | None:
        """Return the decoded parts of an aggregate, or its one rejection; None for an ordinary record."""
        try:
            subs = deaggregate(record.data, parts_max=PARTS_MAX)
        except TooManyPartsError:
            # Its parts have at least a byte each: no reader that starts within the aggregate skips the rejection.
            return iter([self._reject_aggregate(record, TOO_MANY, last_number=len(record.data))])
        return None if subs is None else self._decode_sub_records(record, subs)

    def _decode_sub_records(self, record: Record, subs: Sequence[SubRecord]) -> Iterator[DecodedRecord]:
        if self._hash_range is not None and not lies_within(subs, self._hash_range):
            error = outside_error(subs, self._hash_range)
            yield self._reject_aggregate(record, error, last_number=subs[-1].sub_sequence_number)
            return
        part_count = len(subs)
        for sub in subs:
            origin = self._origin(record, sub.sub_sequence_number, sub.partition_key)
            decoded = decode_operation(sub.data, origin, self._operation_max_bytes, self._list_result_limit)
            if isinstance(decoded, RejectedRecord):
                decoded = replace(decoded, part_count=part_count)
            yield origin, sub.data, decoded

    def _reject_aggregate(self, record: Record, error: str, *, last_number: int) -> DecodedRecord:
        """Return the rejection of a whole aggregate.

        Its position is that of the last sub-record: a reader that starts within the aggregate must not skip it.
        """
        origin = self._origin(record, 0, record.partition_key)
        last = RecordPosition(record.sequence_number, last_number, record.arrived_at)
        return last, record.data, RejectedRecord(DeadLetterReason.INVALID_MESSAGE, error, origin)

    def _origin(self, record: Record, sub_sequence_number: int, partition_key: str) -> Origin:
        return Origin(
            source=KINESIS,
            name=self._stream_name,
            arrived_at=record.arrived_at,
            stream_shard_id=self._stream_shard_id,
            sequence_number=record.sequence_number,
            sub_sequence_number=sub_sequence_number,
            partition_key=intern(partition_key),
        )
