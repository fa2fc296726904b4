"""Operations as a reader queues them, for unit tests of what passes them on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
from typing_extensions import override

from simplu_worker.consumers.kinesis.holding.ownership import CheckpointTracker, Ownership
from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation
from simplu_worker.consumers.kinesis.recovery.shard_positions import ShardPositions
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.operations.operation import Operation, Origin, Outcome
from simplu_worker.timing.clock import UtcClock, utc_now
from simplu_worker.vocabulary import OperationKind, Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queued_operation(
    tenant_id: str = "b-l",
    *,
    business_id: str = "b",
    arrived_at: datetime = NOW,
    tracker: CheckpointTracker[RecordPosition] | None = None,
    number: int = 1,
) -> QueuedOperation:
    operation = Operation(
        kind=OperationKind.CREATE,
        business_id=business_id,
        location_id="l",
        tenant_id=tenant_id,
        resource_type="order",
        resource_id="o",
        request_id="r",
        data=msgspec.Raw("{}"),
        query=None,
        requested_at=arrived_at.isoformat(),
        digest=b"",
        origin=Origin(Source.KINESIS, "stream", arrived_at),
        size_bytes=2,
    )
    tracker = CheckpointTracker[RecordPosition]() if tracker is None else tracker  # an empty one is false
    return QueuedOperation(tracker.start(RecordPosition.before_record(str(number), NOW)), operation, b"", tracker)


def progress_of(
    main: CheckpointTracker[RecordPosition], *, retention: timedelta | None = None, utc: UtcClock = utc_now
) -> SimpleNamespace:
    """Return the progress of a reader as its dispatcher uses it."""
    return SimpleNamespace(
        stream_shard_id="shard-1",
        retention=retention,
        checkpoint_at_start=None,
        ownership=Ownership(main),
        unstored={},
        is_half_over=lambda arrived_at: retention is not None and arrived_at < utc() - retention / 2,
    )


class UnclaimedPositions(ShardPositions):
    """Rows that are neither read nor written."""

    @override
    async def send(self, shard_id: str, entries: Sequence[QueuedOperation]) -> list[Outcome]:
        return await self._gateway.apply(shard_id, [entry.operation for entry in entries]) if entries else []

    @override
    async def write_failure(self, shard_id: str, operation: Operation) -> Outcome:
        return await self._gateway.give_up(shard_id, operation)
