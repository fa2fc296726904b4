"""When a dispatcher is idle: it is not checked periodically then, so each arrival must set an event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from simplu_worker.consumers.kinesis.dispatch.dispatcher import Dispatcher
from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation
from simplu_worker.consumers.kinesis.fetch.prefetch_memory import PrefetchMemory
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.stream.positions import RecordPosition
from simplu_worker.operations.operation import Operation, OperationKind, Origin, Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Lost:
    """A gateway that knows no tenant."""

    def cached_shard_id(self, _tenant_id: str) -> None:
        """Know nothing."""


def entry() -> QueuedOperation:
    """Return an operation as the main reader sends it."""
    operation = Operation(
        kind=OperationKind.CREATE,
        business_id="b",
        location_id="l",
        tenant_id="b-l",
        resource_type="order",
        resource_id="o",
        request_id="r",
        data="{}",
        query=None,
        requested_at=NOW.isoformat(),
        digest=b"",
        origin=Origin(Source.KINESIS, "stream", NOW),
        size_bytes=2,
    )
    tracker = CheckpointTracker[RecordPosition]()
    return QueuedOperation(tracker.start(RecordPosition.before_record("1", NOW)), operation, b"", tracker)


async def test_dispatcher_says_so_when_an_operation_arrives_at_rest() -> None:
    """From then until it is settled the dispatcher needs checks: the operation may wait, be stuck, or be held."""
    dispatcher = Dispatcher(
        "shard-1",
        cast("Any", Lost()),
        PrefetchMemory(2**20).open_quota(),
        tenant_wait=timedelta(seconds=900),
        store_dead_letters=cast("Any", None),
        reader=None,
    )
    assert (dispatcher.is_idle, dispatcher.has_arrivals.is_set()) == (True, False)

    dispatcher.send([entry()])
    assert (dispatcher.is_idle, dispatcher.has_arrivals.is_set()) == (False, True)

    held = dispatcher.lookup.take_entries("b-l")
    dispatcher._hold_tenant(held, "not_here")
    assert dispatcher.is_empty
    assert not dispatcher.is_idle
