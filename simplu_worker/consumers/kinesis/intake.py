"""What the records of one stream shard hold: operations, or what can never be one. Pure, the same for every reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from simplu_worker.consumers.kinesis.aggregation import deaggregate, lies_within, outside_error
from simplu_worker.consumers.kinesis.leases import HashRange
from simplu_worker.consumers.kinesis.positions import Mark, Position
from simplu_worker.consumers.kinesis.stream import Record
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import DeadLetterReason, Operation, Origin, Rejected, Source


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One record, or one of those in an aggregate: its place, its bytes, and what they are."""

    mark: Mark
    record: bytes
    decoded: Operation | Rejected


class Intake:
    """Takes apart and decodes the records of one stream shard."""

    def __init__(
        self,
        stream_name: str,
        stream_shard_id: str,
        *,
        operation_max_bytes: int,
        list_result_limit: int,
        hash_range: HashRange | None = None,
    ) -> None:
        """*hash_range* is the stream shard's; None when it is not known."""
        self._stream_name = stream_name
        self._stream_shard_id = stream_shard_id
        self._operation_max_bytes = operation_max_bytes
        self._list_result_limit = list_result_limit
        self._hash_range = hash_range

    def arrivals(self, records: Sequence[Record], *, after: Position | None = None) -> Iterator[Arrival]:
        """Yield what *records* hold, in their order; of the first of them only what is behind *after*.

        An aggregate of which a part belongs to another stream shard is refused as a whole.
        """
        for record in records:
            for number, partition_key, content in self._parts(record):
                mark = Mark(record.sequence_number, number, record.arrived_at)
                if after is not None:
                    if mark.position <= after:
                        continue
                    after = None
                if isinstance(content, bytes):
                    origin = self._origin(mark, number, partition_key)
                    yield Arrival(mark, content, self._decoded(content, origin))
                else:
                    origin = self._origin(mark, 0, partition_key)
                    yield Arrival(mark, record.data, Rejected(DeadLetterReason.INVALID_MESSAGE, content, origin))

    def _parts(self, record: Record) -> list[tuple[int, str, bytes | str]]:
        """Return what a record carries: sub-sequence number, partition key, and data, or why the whole is refused.

        What is refused has the place of its last part, so that it is not passed over where only some were done with.
        """
        parts = deaggregate(record.data)
        if parts is None:
            return [(0, record.partition_key, record.data)]
        if self._hash_range is not None and not lies_within(parts, self._hash_range):
            return [(len(parts) - 1, record.partition_key, outside_error(parts, self._hash_range))]
        return [(part.sub_sequence_number, part.partition_key, part.data) for part in parts]

    def _decoded(self, data: bytes, origin: Origin) -> Operation | Rejected:
        return decode_operation(data, origin, max_bytes=self._operation_max_bytes, list_limit=self._list_result_limit)

    def _origin(self, mark: Mark, sub_sequence_number: int, partition_key: str) -> Origin:
        return Origin(
            source=Source.KINESIS,
            name=self._stream_name,
            arrived_at=mark.arrived_at,
            stream_shard_id=self._stream_shard_id,
            sequence_number=mark.sequence_number,
            sub_sequence_number=sub_sequence_number,
            partition_key=partition_key,
        )
