from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from http import HTTPStatus

import pytest
from prometheus_client import REGISTRY
from support.queued_operations import queued_operation

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.leases.lease import TOP_MAX, TopTenant
from simplu_worker.consumers.operation_taps import EVENTS_MAX, OperationTaps, TapFilter
from simplu_worker.fairness import RANK_COUNT, TenantUsage, TenantUse, WindowUse
from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.status.event_stream import ALIVE, changes, encode_event, tapped
from simplu_worker.status.replica import HOUR_MIN_S, MINUTE_MIN_S, TopTenants, tenant_rows
from simplu_worker.timing.clock import loop_time

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


LOUD = TenantUse(12.0, 100, 5000, 3.25)
FIGURES = {"seconds": 12.0, "share": 0.75, "operations": 100, "bytes": 5000, "waitedSeconds": 3.25}


def usage_of(**seconds: float) -> TenantUsage:
    usage = TenantUsage()
    usage.note({tenant_id: TenantUse(took_s, 1, 1) for tenant_id, took_s in seconds.items()}, loop_time())
    return usage


def metric(shard_id: str, rank: int) -> float | None:
    return REGISTRY.get_sample_value("simplu_shard_tenant_seconds", {"shard_id": shard_id, "rank": str(rank)})


def test_tenant_has_the_figures_of_both_windows() -> None:
    minute = WindowUse({"a": LOUD, "small": TenantUse(MINUTE_MIN_S - 0.1)}, 16.0)
    hour = WindowUse({"a": LOUD, "before": TenantUse(HOUR_MIN_S, 2, 3)}, 72.0)

    assert [one.json() for one in tenant_rows("shard-1", minute, hour)] == [
        {"shardId": "shard-1", "tenant": "a", "lastMinute": FIGURES, "lastHour": FIGURES | {"share": 0.167}},
        {
            "shardId": "shard-1",
            "tenant": "before",
            "lastMinute": None,
            "lastHour": {"seconds": HOUR_MIN_S, "share": 0.5, "operations": 2, "bytes": 3, "waitedSeconds": 0.0},
        },
    ]


async def test_tenants_of_all_shards_are_in_the_order_of_their_seconds() -> None:
    top = TopTenants()
    await top.note({"top-1": usage_of(a=1.0, b=3.0), "top-2": usage_of(a=2.0, c=0.75, d=0.1)})

    assert [(row.shard_id, row.tenant) for row in top.rows] == [
        ("top-1", "b"),
        ("top-2", "a"),
        ("top-1", "a"),
        ("top-2", "c"),
    ]
    assert top.first() == (TopTenant("b", "top-1", 3.0), TopTenant("a", "top-2", 2.0), TopTenant("a", "top-1", 1.0))
    assert len(top.first()) == TOP_MAX
    for shard_id in ("top-1", "top-2"):
        instruments.remove_shard(shard_id)


async def test_metrics_have_ranks_and_no_names() -> None:
    top = TopTenants()
    await top.note({"ranked-1": usage_of(a=1.0, b=3.0, small=0.25)})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [3.0, 1.0, 0.25] + [0.0] * 7

    await top.note({"ranked-1": TenantUsage()})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [0.0] * 10
    assert (top.rows, top.first()) == ([], ())
    instruments.remove_shard("ranked-1")
    assert metric("ranked-1", 1) is None
