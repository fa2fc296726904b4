"""Decode the records of one stream shard into operations, or into rejections; the same for every reader. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import dropwhile, repeat
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
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation, decode_operations
from simplu_worker.operations.defects import decode_or_reject, defect_text, try_twice
from simplu_worker.operations.operation import Operation, Origin, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason, Source

KINESIS: Final = Source.KINESIS  # looked up once: access to an enum member is slow
RUN_COUNT: Final = 128  # records that are decoded together: they stay in the processor's caches between two steps

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
        self._arrived_at: datetime | None = None  # of the last record: one object for all of one instant

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
        records.reverse()
        count = 1  # the first one alone: a reader looks whether there is one, and may wait then
        while records:
            run = records[: -count - 1 : -1]
            del records[-count:]
            yield from self._decode_run(run)
            count = RUN_COUNT

    def _decode_run(self, run: Sequence[Record]) -> Iterator[DecodedRecord]:
        start = 0
        for index in [index for index, record in enumerate(run) if record.data.startswith(MAGIC)]:
            parts = self._decode_aggregate(run[index])
            if parts is not None:
                yield from self._decode_ordinary(run[start:index])
                yield from parts
                start = index + 1
        yield from self._decode_ordinary(run[start:])

    def _decode_ordinary(self, run: Sequence[Record]) -> Iterable[DecodedRecord]:
        arrived_at = self._arrived_at
        arrivals: list[datetime] = []
        for record in run:
            if record.arrived_at != arrived_at:
                arrived_at = record.arrived_at
            arrivals.append(arrived_at)
        self._arrived_at = arrived_at
        numbers = [record.sequence_number for record in run]
        keys = [intern(record.partition_key) for record in run]
        origins = self._origins(arrivals, numbers, repeat(0), keys)
        data = [record.data for record in run]
        return zip(origins, data, self._decode_operations(data, origins), strict=True)

    def _decode_aggregate(self, record: Record) -> Iterator[DecodedRecord] | None:
        """Return the decoded parts of an aggregate, or its one rejection; None for an ordinary record."""
        subs = try_twice(partial(_parts_of, record))
        if isinstance(subs, Exception):
            reason, error = DeadLetterReason.INVALID_MESSAGE, TOO_MANY
            if not isinstance(subs, TooManyPartsError):
                reason, error = DeadLetterReason.INTERNAL_ERROR, defect_text(subs)
            # Its parts have at least a byte each: no reader that starts within the aggregate skips the rejection.
            return iter([self._reject_aggregate(record, error, last_number=len(record.data), reason=reason)])
        return None if subs is None else self._decode_sub_records(record, subs)

    def _decode_sub_records(self, record: Record, subs: Sequence[SubRecord]) -> Iterator[DecodedRecord]:
        if self._hash_range is not None and not lies_within(subs, self._hash_range):
            error = outside_error(subs, self._hash_range)
            yield self._reject_aggregate(record, error, last_number=subs[-1].sub_sequence_number)
            return
        part_count = len(subs)
        for start in range(0, part_count, RUN_COUNT):
            run = subs[start : start + RUN_COUNT]
            data = [sub.data for sub in run]
            keys = [intern(sub.partition_key) for sub in run]
            sub_numbers = [sub.sub_sequence_number for sub in run]
            origins = self._origins(repeat(record.arrived_at), repeat(record.sequence_number), sub_numbers, keys)
            for origin, part, decoded in zip(origins, data, self._decode_operations(data, origins), strict=True):
                if isinstance(decoded, RejectedRecord):
                    yield origin, part, replace(decoded, part_count=part_count)
                else:
                    yield origin, part, decoded

    def _reject_aggregate(
        self,
        record: Record,
        error: str,
        *,
        last_number: int,
        reason: DeadLetterReason = DeadLetterReason.INVALID_MESSAGE,
    ) -> DecodedRecord:
        """Return the rejection of a whole aggregate.

        Its position is that of the last sub-record: a reader that starts within the aggregate must not skip it.
        """
        (origin,) = self._origins([record.arrived_at], [record.sequence_number], [0], [record.partition_key])
        last = RecordPosition(record.sequence_number, last_number, record.arrived_at)
        return last, record.data, RejectedRecord(reason, error, origin)

    def _decode_operations(self, data: Sequence[bytes], origins: Sequence[Origin]) -> list[Operation | RejectedRecord]:
        try:
            return decode_operations(data, origins, self._operation_max_bytes, self._list_result_limit)
        except Exception:  # noqa: BLE001  # a defect: each record is decoded alone, which shows whose it is
            return list(map(self._decode_alone, data, origins))

    def _decode_alone(self, data: bytes, origin: Origin) -> Operation | RejectedRecord:
        limits = self._operation_max_bytes, self._list_result_limit
        sound = partial(decode_operation, SOUND_RECORD, origin, *limits)
        return decode_or_reject(partial(decode_operation, data, origin, *limits), origin, sound=sound)

    def _origins(
        self,
        arrivals: Iterable[datetime],
        sequence_numbers: Iterable[str],
        sub_sequence_numbers: Iterable[int],
        partition_keys: Iterable[str],
    ) -> list[Origin]:
        same = repeat(KINESIS), repeat(self._stream_name), arrivals, repeat(self._stream_shard_id)
        return list(map(Origin, *same, sequence_numbers, sub_sequence_numbers, partition_keys))


def _parts_of(record: Record) -> Sequence[SubRecord] | TooManyPartsError | None:
    """Return the parts of an aggregate, or why it is refused; None for an ordinary record."""
    try:
        return deaggregate(record.data, parts_max=PARTS_MAX)
    except TooManyPartsError as exc:
        return exc
