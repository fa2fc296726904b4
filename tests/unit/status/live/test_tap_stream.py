from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.operation_taps import EVENTS_MAX, OperationTaps, TapFilter
from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.status.event_stream import ALIVE, tapped

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


async def test_operations_come_as_events_until_the_end() -> None:
    taps, closing = OperationTaps(), asyncio.Event()
    entry = queued_operation()
    async with aclosing(tapped(TapFilter(), closing, taps=taps)) as events:
        assert await anext(events) == ALIVE
        taps.publish([entry.operation], [Outcome(Disposition.APPLIED)], NOW)
        head, _, data = (await anext(events)).partition(b"\ndata: ")
        assert (head, json.loads(data)["requestId"]) == (b"event: operation", entry.operation.request_id)
        for _ in range(EVENTS_MAX + 3):
            taps.publish([entry.operation], [Outcome(Disposition.APPLIED)], NOW)
        assert (await anext(events)).endswith(b'event: dropped\ndata: {"dropped":3}\n\n')
        closing.set()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert taps.open == ()
