"""What the records of one stream shard hold: operations, or what can never be one. Pure, the same for every reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import dropwhile
from sys import intern
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.aggregation import deaggregate, lies_within, outside_error
from simplu_worker.consumers.kinesis.leases import HashRange
from simplu_worker.consumers.kinesis.positions import Mark, Position
from simplu_worker.consumers.kinesis.stream import Record
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import DeadLetterReason, Operation, Origin, Rejected, Source

KINESIS: Final = Source.KINESIS  # looked up once: an enum answers slowly


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
        self._decode = partial(decode_operation, max_bytes=operation_max_bytes, list_limit=list_result_limit)
        self._hash_range = hash_range
        self._arrived_at = datetime.min.replace(tzinfo=UTC)  # one object for all that arrive at one instant

    def arrivals(self, records: Sequence[Record], *, after: Position | None = None) -> Iterator[Arrival]:
        """Yield what *records* hold, in their order; of the first of them only what is behind *after*.

        An aggregate of which a part belongs to another stream shard is refused as a whole.
        """
        arrivals = self._all_arrivals(records)
        return arrivals if after is None else dropwhile(lambda arrival: arrival.mark.position <= after, arrivals)

    def _all_arrivals(self, records: Sequence[Record]) -> Iterator[Arrival]:
        for record in records:
            if record.arrived_at != self._arrived_at:
                self._arrived_at = record.arrived_at
            parts = deaggregate(record.data)
            if parts is None:
                yield self._arrival(record.sequence_number, 0, record.partition_key, record.data)
            elif self._hash_range is None or lies_within(parts, self._hash_range):
                for part in parts:
                    yield self._arrival(record.sequence_number, part.sub_sequence_number, part.partition_key, part.data)
            else:
                # At the place of its last part, so that it is not passed over where only some were done with.
                mark = Mark(record.sequence_number, len(parts) - 1, self._arrived_at)
                origin = self._arrival(record.sequence_number, 0, record.partition_key, record.data).decoded.origin
                error = outside_error(parts, self._hash_range)
                yield Arrival(mark, record.data, Rejected(DeadLetterReason.INVALID_MESSAGE, error, origin))

    def _arrival(self, sequence_number: str, sub_sequence_number: int, partition_key: str, data: bytes) -> Arrival:
        origin = Origin(
            KINESIS,
            self._stream_name,
            self._arrived_at,
            self._stream_shard_id,
            sequence_number,
            sub_sequence_number,
            intern(partition_key),
        )
        return Arrival(Mark(sequence_number, sub_sequence_number, self._arrived_at), data, self._decode(data, origin))
