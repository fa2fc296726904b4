"""An operation in memory, with what its checkpoint and its dead letter need. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec

from simplu_worker.consumers.kinesis.fetch.prefetch_memory import OPERATION_OVERHEAD_BYTES
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.unread import ParentRecords, Unread
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.dead_letters.letter import DeadLetter
from simplu_worker.operations.operation import Operation
from simplu_worker.vocabulary import DeadLetterReason


class QueuedOperation(msgspec.Struct, frozen=True, gc=False):
    """A decoded operation with its source record and its ticket in the tracker of the cursor that read it.

    *parents* are the records of parents from the operation on; empty for an operation of the stream shard itself.
    """

    ticket: int
    operation: Operation
    record: bytes
    tracker: CheckpointTracker[RecordPosition]
    parents: tuple[ParentRecords, ...] = ()

    @property
    def chain(self) -> str:
        """Its tenant."""
        return self.operation.tenant_id

    @property
    def unread(self) -> Unread:
        """The records from the operation on, which are read again when it is dropped."""
        return Unread(self.tracker.position_before(self.ticket), self.parents)

    def dead_letter(
        self, reason: DeadLetterReason, error: str, *, failed_at: datetime, attempts: int = 1
    ) -> DeadLetter:
        """Return the dead letter of the operation."""
        return DeadLetter(
            reason=reason,
            error=error,
            origin=self.operation.origin,
            failed_at=failed_at,
            attempts=attempts,
            record=self.record,
            request_id=self.operation.request_id,
            resource_id=self.operation.resource_id,
            business_id=self.operation.business_id,
            location_id=self.operation.location_id,
        )


def cost_bytes_of(entries: Collection[QueuedOperation]) -> int:
    """Return the memory that *entries* count for: the records, their copy on the way to the shard, and an overhead."""
    return 2 * sum([entry.operation.size_bytes for entry in entries]) + OPERATION_OVERHEAD_BYTES * len(entries)
