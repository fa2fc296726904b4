"""Records of a stream shard as operations or rejected records, and the dead letters of these. Pure.

Up to LETTERS_MAX bad parts of an array or of lines have a dead letter each. More of them, and several of an aggregate,
share one, which has these parts alone: a letter for each would hold up the stream shard for minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from itertools import dropwhile, repeat
from typing import Final, TypeAlias

from msgspec.structs import replace

from simplu_worker.consumers.kinesis.stream import aggregation
from simplu_worker.consumers.kinesis.stream.client import Record
from simplu_worker.consumers.kinesis.stream.positions import HashRange, Position, RecordPosition
from simplu_worker.operations import dead_letter
from simplu_worker.operations.decode import SOUND_RECORD, decode_operation, decode_operations
from simplu_worker.operations.operation import KEY_MAX, Operation, Origin, PartNumber, RejectedRecord, partition_key_by
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

KINESIS: Final = Source.KINESIS  # looked up once: access to an enum member is slow
RUN_COUNT: Final = 128  # records that are decoded together: they stay in the processor's caches between two steps
OBJECT_START: Final = b"{"  # of nearly all records; any other may be an array or an aggregate
NEWLINE: Final = b"\n"  # within a record that may be lines

DecodedRecord: TypeAlias = tuple[Origin, bytes, Operation | RejectedRecord]
"""The place of a record or a part of one, its bytes, and the operation or rejection that they decode to."""


class RecordDecoder:
    """Decodes the records of one stream shard, also those of several operations."""

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
        self.stream_shard_id = stream_shard_id
        self._operation_max_bytes = operation_max_bytes
        self._list_result_limit = list_result_limit
        self.hash_range = hash_range
        self._arrived_at: datetime | None = None  # of the last record: one object for all of an instant

    def of_parent(self, stream_shard_id: str, hash_range: HashRange | None) -> RecordDecoder:
        """Return the decoder of a parent of the stream shard."""
        decoder = copy(self)
        decoder.stream_shard_id, decoder.hash_range = stream_shard_id, hash_range
        return decoder

    def decode(self, records: list[Record], *, after: Position | None = None) -> Iterator[DecodedRecord]:
        """Yield the decoded *records* and their parts in order, from the first one after *after*.

        Empties *records* on the way, so that their memory is reused.
        """
        decoded = self._decode_all(records)
        if after is None:
            return decoded
        return dropwhile(lambda one: RecordPosition.from_origin(one[0]).position <= after, decoded)

    def _decode_all(self, records: list[Record]) -> Iterator[DecodedRecord]:
        records.reverse()
        count = 1  # the first one alone: a reader looks whether there is one, and may wait then
        while records:
            run = records[: -count - 1 : -1]
            del records[-count:]
            yield from self._decode_run(run)
            count = RUN_COUNT

    def _decode_run(self, run: Sequence[Record]) -> Iterator[DecodedRecord]:
        unusual = [
            index for index, record in enumerate(run) if NEWLINE in (data := record.data) or data[:1] != OBJECT_START
        ]
        start = 0
        for index in unusual:
            parts = self._decode_several(run[index])
            if parts is not None:
                yield from self._decode_ordinary(run[start:index])
                yield from parts
                start = index + 1
        yield from self._decode_ordinary(run[start:])

    def _decode_ordinary(self, run: Sequence[Record]) -> Iterable[DecodedRecord]:
        arrived_at = self._arrived_at
        arrivals: list[datetime] = []
        for record in run:
            if arrived_at is None or record.arrived_at != arrived_at:
                arrived_at = record.arrived_at
            arrivals.append(arrived_at)
        self._arrived_at = arrived_at
        numbers = [record.sequence_number for record in run]
        keys = [record.partition_key for record in run]
        origins = self._origins(arrivals, numbers, repeat(0), keys)
        data = [record.data for record in run]
        return zip(origins, data, self._decode_operations(data, origins), strict=True)

    def _decode_several(self, record: Record) -> Iterable[DecodedRecord] | None:
        try:
            subs = aggregation.deaggregate(record.data)
            if subs is None:
                parts = aggregation.parts_of_record(record.data, record.partition_key)
                return None if parts is None else self._decode_parts(record, parts)
            if not aggregation.lies_within(subs, self.hash_range):
                return self._reject_aggregate(record, DeadLetterReason.INVALID_MESSAGE, aggregation.OUTSIDE)
            parts = aggregation.parts_of_aggregate(subs)
        except MemoryError:  # says nothing of a record
            raise
        except Exception as exc:  # noqa: BLE001  # whatever a defect raises
            return self._reject_aggregate(record, DeadLetterReason.INTERNAL_ERROR, dead_letter.defect_text(exc))
        if len(parts) > aggregation.PARTS_MAX:
            return self._reject_aggregate(record, DeadLetterReason.INVALID_MESSAGE, aggregation.TOO_MANY)
        return self._decode_parts(record, parts, part_count=len(parts))

    def _decode_parts(
        self, record: Record, parts: Sequence[aggregation.Part], *, part_count: int | None = None
    ) -> Iterator[DecodedRecord]:
        for start in range(0, len(parts), RUN_COUNT):
            run = parts[start : start + RUN_COUNT]
            data = [part.data for part in run]
            origins = self._origins(
                repeat(record.arrived_at),
                repeat(record.sequence_number),
                [part.sub_sequence_number for part in run],
                [part.partition_key for part in run],
                [part.index for part in run],
                [part.parts_behind for part in run],
            )
            for part, origin, decoded in zip(run, origins, self._decode_operations(data, origins), strict=True):
                result = decoded
                if part.refusal is not None:
                    result = RejectedRecord(DeadLetterReason.TOO_LARGE, part.refusal, origin)
                if part_count is not None and isinstance(result, RejectedRecord):
                    result = replace(result, part_count=part_count)
                yield origin, part.data, result

    def _reject_aggregate(self, record: Record, reason: DeadLetterReason, error: str) -> list[DecodedRecord]:
        # Its parts have at least a byte each: no reader that starts within the aggregate skips the rejection.
        (origin,) = self._origins([record.arrived_at], [record.sequence_number], [0], [record.partition_key])
        last = replace(origin, sub_sequence_number=len(record.data))
        return [(last, record.data, RejectedRecord(reason, error, origin))]

    def _decode_operations(self, data: Sequence[bytes], origins: Sequence[Origin]) -> list[Operation | RejectedRecord]:
        try:
            return decode_operations(data, origins, self._operation_max_bytes, self._list_result_limit)
        except Exception:  # noqa: BLE001  # a defect: each record is decoded alone, which shows whose it is
            return list(map(self._decode_alone, data, origins))

    def _decode_alone(self, data: bytes, origin: Origin) -> Operation | RejectedRecord:
        limits = self._operation_max_bytes, self._list_result_limit
        sound = partial(decode_operation, SOUND_RECORD, origin, *limits)
        return dead_letter.decode_or_reject(partial(decode_operation, data, origin, *limits), origin, sound=sound)

    def _origins(
        self,
        arrivals: Iterable[datetime],
        sequence_numbers: Iterable[str],
        sub_sequence_numbers: Iterable[int],
        partition_keys: Iterable[str],
        *parts: Iterable[int | None],
    ) -> list[Origin]:
        same = repeat(KINESIS), repeat(self._stream_name), arrivals, repeat(self.stream_shard_id)
        return list(map(Origin, *same, sequence_numbers, sub_sequence_numbers, partition_keys, *parts))


def with_wrong_keys(operations: Sequence[Operation], rule: PartitionKeyRule) -> list[Operation]:
    """Return those of *operations* whose partition key is not that of the rule, unless that would be too long."""
    if rule is PartitionKeyRule.ANY:
        return []
    keys = [(one.origin.partition_key, one.tenant_id, one.resource_type) for one in operations]
    wrong = {key for key in set(keys) if _is_wrong(*key, rule)}
    return [one for key, one in zip(keys, operations, strict=True) if key in wrong] if wrong else []


def _is_wrong(key: str | None, tenant_id: str, resource_type: str, rule: PartitionKeyRule) -> bool:
    expected = partition_key_by(rule, tenant_id, resource_type)
    return key not in (None, expected) and len(expected) <= KEY_MAX


LETTERS_MAX: Final = 10  # of one record: as many as one request stores
FIRST_PARTS_MAX: Final = 100  # that have a status of their own by their request ids (docs/outcomes.md)


class RejectionCollector:
    """The rejections of one reply, in the order of their positions."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        """Return the number of records with rejections."""
        return len(self._groups)

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        """Add the rejection of *record*, perhaps another part of the record before."""
        if not (self._groups and self._groups[-1].has_room_for(rejected)):
            self._groups.append(_Group(rejected))
        self._groups[-1].add(rejected, record)

    def dead_letters(self, failed_at: datetime) -> list[dead_letter.DeadLetter]:
        """Return the letters."""
        return [letter for group in self._groups for letter in group.dead_letters(failed_at)]


class _Group:
    """The rejections of one record: itself, or its bad parts."""

    def __init__(self, first: RejectedRecord) -> None:
        self._first = first
        self._letters_max = 1 if first.part_count is not None else LETTERS_MAX
        self._alone: list[tuple[RejectedRecord, bytes]] = []  # as long as each has a letter of its own
        self._packer = aggregation.AggregatePacker()
        self._numbers: list[PartNumber] = []
        self._request_ids: list[str | None] = []
        self._reasons: Counter[str] = Counter()
        self._first_parts: list[RejectedRecord] = []
        self._tenant: tuple[str | None, str | None] = (first.business_id, first.location_id)

    def has_room_for(self, rejected: RejectedRecord) -> bool:
        own, other = self._first.origin, rejected.origin
        return own.sequence_number == other.sequence_number and _is_part(self._first) and _is_part(rejected)

    def add(self, rejected: RejectedRecord, record: bytes) -> None:
        self._alone.append((rejected, record))
        if self._numbers or len(self._alone) > self._letters_max:
            for one in self._alone:
                self._pack(*one)
            self._alone.clear()

    def _pack(self, rejected: RejectedRecord, record: bytes) -> None:
        self._packer.add(rejected.origin.partition_key or "", record)
        self._numbers.append(rejected.origin.part_number)
        self._request_ids.append(rejected.request_id)
        self._reasons[rejected.reason.value] += 1
        if len(self._first_parts) < FIRST_PARTS_MAX:
            self._first_parts.append(rejected)
        if self._tenant != (rejected.business_id, rejected.location_id):
            self._tenant = (None, None)

    def dead_letters(self, failed_at: datetime) -> list[dead_letter.DeadLetter]:
        if self._alone:
            return [
                dead_letter.dead_letter_of(rejected, record, failed_at=failed_at) for rejected, record in self._alone
            ]
        first, origin = self._first, self._first.origin
        in_all = "operations of a record" if first.part_count is None else "sub-records of an aggregate"
        total = first.part_count or (origin.part_index or 0) + 1 + origin.parts_behind
        return [
            dead_letter.DeadLetter(
                reason=first.reason,
                error=(
                    f"{len(self._numbers)} of the {total} {in_all} are no operations; the first one, "
                    f"number {dead_letter.format_ranges([origin.part_number])}: {first.error}"
                ),
                origin=origin,
                failed_at=failed_at,
                attempts=1,
                record=self._packer.seal(),
                business_id=self._tenant[0],
                location_id=self._tenant[1],
                parts=dead_letter.BadParts(
                    total,
                    len(self._numbers),
                    self._reasons,
                    tuple(self._numbers),
                    tuple(self._request_ids),
                    tuple(self._first_parts),
                ),
            )
        ]


def _is_part(rejected: RejectedRecord) -> bool:
    return rejected.part_count is not None or rejected.origin.part_index is not None
