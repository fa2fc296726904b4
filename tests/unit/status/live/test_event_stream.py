from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus

import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.operation_taps import EVENTS_MAX, OperationTaps, TapFilter
from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.status.event_stream import ALIVE, changes, encode_event, tapped

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Answers:
    def __init__(self) -> None:
        self.status = HTTPStatus.OK
        self.body = b"1"

    async def read(self) -> tuple[int, bytes]:
        return self.status, self.body


async def test_an_answer_is_sent_when_it_has_changed() -> None:
    answers, closing = Answers(), asyncio.Event()
    async with aclosing(changes({"a": answers.read}, closing, every_s=0.001, alive_s=60)) as events:
        assert await anext(events) == b"event: a\ndata: 1\n\n"
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.01)
        answers.status, answers.body = HTTPStatus.SERVICE_UNAVAILABLE, b"2"
        await asyncio.sleep(0.01)
        assert not waiting.done()
        answers.status = HTTPStatus.OK
        assert await waiting == encode_event("a", b"2")
        closing.set()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_silence_is_broken_by_a_comment() -> None:
    answers = Answers()
    async with aclosing(changes({"a": answers.read}, asyncio.Event(), every_s=0.001, alive_s=0.01)) as events:
        assert [await anext(events) for _ in range(3)] == [encode_event("a", b"1"), ALIVE, ALIVE]


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
