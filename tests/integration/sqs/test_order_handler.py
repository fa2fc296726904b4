from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.tenant_cases import TENANT_WAIT, add_tenant, fetch
from support.postgres.trouble import calm, make_touchy, shut_gate
from support.reader_world import eventually

from simplu_local.postgres.server import PostgresServer
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.order_handler import CALL_MAX_S, OrderHandler, open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import PositionClaim, TenantControls
from simplu_worker.timing.clock import UtcClock
from simplu_worker.vocabulary import DeadLetterReason

URL = "http://127.0.0.1/000000000000/"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = timedelta(minutes=10)  # how long an id is one event, on one desk
RETRY_DELAYS_S = (1.0, 5.0)
HOMES = {"ann": "shard-1", "bob": "shard-2", "cat": "shard-1"}  # by business id
BAD = {"raise": "P0001"}

_numbers = itertools.count(1)


def message(
    business_id: str,
    order_id: str,
    type_: str = "CREATE",
    data: dict[str, Any] | None = None,
    *,
    group: str | None = "g",
    sent_at: datetime = NOW,
    receive_count: int = 1,
    deduplication_id: str | None = None,
    body: str | None = None,
) -> Message:
    number = next(_numbers)
    event = {"type": type_, "orderId": order_id, "data": {} if data is None else data}
    return Message(
        message_id=f"message-{number}",
        receipt_handle=f"receipt-{number}",
        body=json.dumps(event) if body is None else body,
        attributes={"BusinessId": business_id, "LocationId": "main"},
        sent_at=sent_at,
        receive_count=receive_count,
        group_id=group,
        deduplication_id=deduplication_id or f"event-{number}",
        sequence_number=f"{number:020}",
    )


def received_again(sent: Message, **changes: Any) -> Message:
    changes = {"receive_count": sent.receive_count + 1} | changes
    return msgspec.structs.replace(sent, receipt_handle=f"receipt-{next(_numbers)}", **changes)


def steps(business_id: str, order_id: str, count: int, *, group: str) -> list[Message]:
    kinds = itertools.chain(["CREATE"], itertools.repeat("UPDATE"))
    return [message(business_id, order_id, next(kinds), {"n": n}, group=group) for n in range(count)]


class Desk:
    def __init__(self, routed: RoutedShards, handler: OrderHandler) -> None:
        self.routed = routed
        self.handler = handler
        self.now = NOW

    def pool(self, shard_id: str) -> ShardPool:
        shard = self.routed.citrus.registry.shards[shard_id]
        return self.routed.pools.ensure_pool(ShardAddress(shard_id, shard.connection_string))

    async def handle(self, *messages: Message) -> list[Verdict]:
        return await self.handler.handle(messages)

    async def done(self, *messages: Message) -> None:
        async with asyncio.timeout(60):
            while await self.handle(*messages) != [Done()] * len(messages):  # noqa: ASYNC110  # nothing to await
                await asyncio.sleep(0.05)

    async def orders(self, business_id: str) -> dict[str, Any]:
        query = 'SELECT "resourceId", data::text FROM resources WHERE id = $1 AND "resourceName" = $2'
        rows = await fetch(self.pool(HOMES[business_id]), query, f"{business_id}-main", "order")
        return {row["resourceId"]: json.loads(row["data"]) for row in rows}

    async def log(self, business_id: str) -> list[dict[str, Any]]:
        query = "SELECT request_id, error, xid::text, source FROM operations WHERE tenant_id = $1 ORDER BY request_id"
        return await fetch(self.pool(HOMES[business_id]), query, f"{business_id}-main")


def open_handler(
    gateway: ShardGateway, queue: str, *, utc: UtcClock, window: timedelta | None = None
) -> AbstractAsyncContextManager[OrderHandler]:
    return open_orders(
        gateway,
        Queue(None, URL + queue),
        rules=OrderRules(100_000, window=window),
        retries=RetryRules(RETRY_DELAYS_S, TENANT_WAIT),
        draw=lambda: 0.0,
        utc=utc,
    )


@asynccontextmanager
async def open_desk(
    shards: Sequence[ShardAddress], *, queue: str = "orders.fifo", window: timedelta | None = None
) -> AsyncIterator[Desk]:
    async with routed_shards(shards) as routed:
        desk: Desk | None = None

        def utc() -> datetime:
            return NOW if desk is None else desk.now

        async with open_handler(routed.gateway, queue, utc=utc, window=window) as handler:
            desk = Desk(routed, handler)
            for business_id, shard_id in HOMES.items():
                await add_tenant(desk.pool(shard_id), (business_id, "main"))
                routed.register((business_id, "main"), shard_id)
            yield desk


@pytest.fixture
async def desk(make_shard: ShardMaker) -> AsyncIterator[Desk]:
    async with open_desk([await make_shard("shard-1"), await make_shard("shard-2")]) as desk:
        yield desk


async def test_orders_are_applied_in_one_transaction_for_each_shard(desk: Desk) -> None:
    await desk.handle(*(message(business_id, "first", group=business_id) for business_id in HOMES))
    before = {row["xid"] for business_id in HOMES for row in await desk.log(business_id)}
    messages = [
        one for number in range(20) for one in steps(list(HOMES)[number % 3], f"o{number}", 3, group=f"g{number}")
    ]

    assert await desk.handle(*messages) == [Done()] * 60

    xids: defaultdict[str, set[str]] = defaultdict(set)
    for business_id, shard_id in HOMES.items():
        orders = await desk.orders(business_id)
        assert {order["n"] for name, order in orders.items() if name != "first"} == {2}
        xids[shard_id] |= {row["xid"] for row in await desk.log(business_id)} - before
    assert {shard_id: len(found) for shard_id, found in xids.items()} == {"shard-1": 1, "shard-2": 1}


async def test_orders_of_others_go_on_when_rows_of_a_tenant_are_locked(desk: Desk) -> None:
    await desk.done(message("ann", "first", group="a"), message("cat", "first", group="c"))
    rival = await asyncpg.connect(desk.pool("shard-1").address.connection_string)
    await rival.execute("BEGIN")
    await rival.execute("SELECT FROM tenants WHERE business_id = 'ann' FOR UPDATE")
    locked = [message("ann", f"o{number}", group=group) for number, group in enumerate(("a", "a", "b"))]
    others = [message("cat", f"o{number}", group=f"c{number}") for number in range(3)]

    for _ in range(len(RETRY_DELAYS_S) + 2):
        verdicts = await desk.handle(*locked, *others)
        assert [type(verdict) for verdict in verdicts] == [RetryHeld, ReturnToQueue, RetryHeld, Done, Done, Done]

    await rival.close()
    await desk.done(*locked)
    assert sorted(await desk.orders("ann")) == ["first", "o0", "o1", "o2"]


async def test_messages_of_a_paused_tenant_are_hidden_longer_each_time(desk: Desk) -> None:
    await desk.done(message("ann", "first", group="a"))
    paused = [message("ann", f"o{number}", group=group) for number, group in enumerate(("a", "a", "b"))]
    await desk.routed.gateway.lookups.set_controls("ann", "main", TenantControls(pause_s=7200.0))

    verdicts = await desk.handle(*paused, message("cat", "o", group="c"))

    assert verdicts == [ReturnToQueue(1), ReturnToQueue(0), ReturnToQueue(1), Done()]
    again = [await desk.handle(received_again(paused[0], receive_count=count)) for count in (2, 6, 100)]
    assert again == [[ReturnToQueue(2)], [ReturnToQueue(32)], [ReturnToQueue(300)]]
    await desk.routed.gateway.lookups.set_controls("ann", "main", TenantControls(pause_s=90.0))
    assert await desk.handle(received_again(paused[0], receive_count=100)) == [ReturnToQueue(90)]
    await desk.routed.gateway.lookups.set_controls("ann", "main", TenantControls(pause_s=0.0))
    await desk.done(*paused)
    assert sorted(await desk.orders("ann")) == ["first", "o0", "o1", "o2"]


async def test_messages_beyond_a_limit_stay_in_flight_in_order(desk: Desk) -> None:
    limited = [message("ann", f"o{number}", group="a") for number in range(3)]
    await desk.done(message("cat", "first", group="c"))  # found: it does not come behind a batch that takes long
    set_controls = desk.routed.gateway.lookups.set_controls
    await set_controls("ann", "main", TenantControls(operations_per_s=0.01))
    first, second, _, free = await desk.handle(*limited, message("cat", "o", group="c"))
    assert (first, isinstance(second, RetryHeld), free) == (Done(), True, Done())
    assert sorted(await desk.orders("ann")) == ["o0"]
    await set_controls("ann", "main", TenantControls(operations_per_s=0.0))
    await desk.done(*limited[1:])
    assert sorted(await desk.orders("ann")) == ["o0", "o1", "o2"]


async def test_pause_ends_before_the_queue_loses_what_waits(desk: Desk) -> None:
    desk.handler._queue.retention = timedelta(hours=1)
    late = message("ann", "o", receive_count=100)
    await desk.routed.gateway.lookups.set_controls("ann", "main", TenantControls(pause_s=7200.0))

    desk.now = NOW + timedelta(minutes=29)
    assert await desk.handle(late) == [ReturnToQueue(60)]
    desk.now = NOW + timedelta(minutes=30)
    await desk.done(late)
    rows = await fetch(desk.pool("shard-1"), "SELECT paused_until FROM tenants WHERE id = 'ann-main'")
    assert [row["paused_until"] for row in rows] == [None]


async def test_orders_are_created_patched_and_deleted(desk: Desk) -> None:
    messages = [
        message("ann", "o1", "CREATE", {"status": "new", "note": "x"}),
        message("ann", "o1", "UPDATE", {"status": "paid", "note": None}),
        message("ann", "o2", "CREATE", {}),
        message("ann", "o2", "DELETE"),
        message("ann", "o3", "UPDATE", {"status": "paid"}),
        message("ann", "o4", "CREATE", {"note": "\0"}),
    ]
    assert await desk.handle(*messages) == [Done()] * 6
    assert await desk.orders("ann") == {"o1": {"status": "paid"}}
    assert sorted(row["error"] or "" for row in await desk.log("ann")) == ["", "", "", "", "invalid_data", "not_found"]
    assert {row["source"] for row in await desk.log("ann")} == {"sqs"}


async def test_order_is_applied_once_when_it_is_received_again(desk: Desk) -> None:
    labels = {"source": "sqs", "operation": "create", "outcome": "duplicate"}
    count = REGISTRY.get_sample_value("simplu_operations_total", labels) or 0
    first = message("ann", "o1", "CREATE", {"n": 1}, deduplication_id="same")
    assert await desk.handle(first) == [Done()]
    assert await desk.handle(message("ann", "o1", "UPDATE", {"n": 2})) == [Done()]

    again = message("ann", "o1", "CREATE", {"n": 1}, deduplication_id="same")
    assert await desk.handle(received_again(first), again) == [Done(), Done()]

    assert await desk.orders("ann") == {"o1": {"n": 2}}
    assert REGISTRY.get_sample_value("simplu_operations_total", labels) == count + 2


@pytest.fixture
async def desk_with_window(make_shard: ShardMaker) -> AsyncIterator[Desk]:
    async with open_desk([await make_shard("shard-1"), await make_shard("shard-2")], window=WINDOW) as desk:
        yield desk


def sent_after(seconds: float, type_: str, data: dict[str, Any], **members: Any) -> Message:
    return message("ann", "o1", type_, data, sent_at=NOW + timedelta(seconds=seconds), **members)


async def test_id_of_an_order_event_names_another_one_after_the_window(desk_with_window: Desk) -> None:
    handle, orders = desk_with_window.handle, partial(desk_with_window.orders, "ann")
    late = REGISTRY.get_sample_value("simplu_repetitions_late_total") or 0
    first = sent_after(0, "UPDATE", {"status": "pending"}, deduplication_id="pending")
    assert await handle(sent_after(0, "CREATE", {}), first, sent_after(1, "UPDATE", {"status": "paid"})) == [Done()] * 3

    repetition = sent_after(600, "UPDATE", {"status": "pending"}, deduplication_id="pending")
    assert await handle(repetition) == [Done()]
    assert (await orders(), REGISTRY.get_sample_value("simplu_repetitions_late_total")) == (
        {"o1": {"status": "paid"}},
        late + 1,
    )
    another = sent_after(601, "UPDATE", {"status": "pending"}, deduplication_id="pending")
    assert await handle(another) == [Done()]
    assert await orders() == {"o1": {"status": "pending"}}
    assert await handle(sent_after(700, "UPDATE", {"status": "sent"})) == [Done()]

    replay = json.loads(first.body) | {"deduplicationId": "pending", "firstSentAt": NOW.isoformat()}
    assert (
        await handle(
            received_again(another), received_again(first), sent_after(10_000, "UPDATE", {}, body=json.dumps(replay))
        )
        == [Done()] * 3
    )
    assert await orders() == {"o1": {"status": "sent"}}
    kept = "SELECT simplu_id(request) AS id, kind::text FROM log_rows WHERE get_byte(request, 0) = 3"
    assert await fetch(desk_with_window.pool(HOMES["ann"]), kept) == [{"id": "pending", "kind": "P"}]
    third = sent_after(1202, "DELETE", {}, deduplication_id="pending")
    assert await handle(third) == [Done()]
    assert await orders() == {}
    assert REGISTRY.get_sample_value("simplu_repetitions_late_total") == late + 1
    rows = [row for row in await desk_with_window.log("ann") if row["request_id"] == "pending"]
    assert [row["error"] for row in rows] == [None]


async def test_events_with_one_id_are_applied_in_turn_in_one_batch(desk_with_window: Desk) -> None:
    events = [
        sent_after(601 * number, type_, {"n": number}, deduplication_id="tick")
        for number, type_ in enumerate(["CREATE", "UPDATE", "CREATE", "DELETE", "UPDATE"])
    ]
    between = sent_after(900, "UPDATE", {"seen": True})

    assert await desk_with_window.handle(*events[:2], between, *events[2:3]) == [Done()] * 4
    assert await desk_with_window.orders("ann") == {"o1": {"n": 1, "seen": True}}
    assert {row["error"] for row in await desk_with_window.log("ann")} == {None, "already_exists"}
    assert await desk_with_window.handle(*events[3:]) == [Done()] * 2
    assert {row["error"] for row in await desk_with_window.log("ann")} == {None, "not_found"}
    assert await desk_with_window.handle(*map(received_again, events)) != [Done()] * 5, "another content, sent before"
    assert await desk_with_window.orders("ann") == {}


async def test_order_with_a_used_deduplication_id_is_a_dead_letter(desk: Desk) -> None:
    used = message("ann", "o1", "CREATE", {"n": 1}, deduplication_id="same")
    reused = message("ann", "o1", "UPDATE", {"n": 2}, deduplication_id="same")
    verdicts = await desk.handle(used, reused, message("ann", "o1", "UPDATE", {"n": 3}))
    assert verdicts[::2] == [Done(), Done()]
    assert isinstance(verdicts[1], ToDeadLetter)
    assert (verdicts[1].reason, verdicts[1].ids.request_id, verdicts[1].ids.resource_id, verdicts[1].before_delete) == (
        DeadLetterReason.REQUEST_ID_REUSED,
        "same",
        "o1",
        None,
    )
    assert await desk.orders("ann") == {"o1": {"n": 3}}


@pytest.mark.slow
async def test_group_of_several_tenants_is_applied_in_its_order(desk: Desk) -> None:
    await desk.handle(*(message(business_id, "first", group=business_id) for business_id in HOMES))
    await fetch(desk.pool("shard-2"), "UPDATE tenants SET state = 'fenced'")
    mixed = [message(business_id, "o1", data={"n": 1}, group="mixed") for business_id in ("ann", "bob", "cat", "ann")]
    alone = message("cat", "o2", group="alone")

    verdicts = await desk.handle(*mixed, alone)

    assert verdicts[0] == Done()
    assert isinstance(verdicts[1], RetryHeld)
    assert verdicts[2:] == [ReturnToQueue(0), ReturnToQueue(0), Done()]
    assert [sorted(await desk.orders(business_id)) for business_id in HOMES] == [
        ["first", "o1"],
        ["first"],
        ["first", "o2"],
    ]

    await fetch(desk.pool("shard-2"), "UPDATE tenants SET state = 'active'")
    assert await desk.handle(*map(received_again, mixed[1:])) == [Done()] * 3


async def test_unregistered_tenant_is_given_up_when_overdue(desk: Desk) -> None:
    early, late = NOW - TENANT_WAIT - timedelta(seconds=60), NOW - TENANT_WAIT
    fresh = message("dan", "o1", sent_at=late, group="fresh")
    with capture_logs() as logs:
        assert await desk.handle(fresh, message("ann", "o1", group="other")) == [RetryHeld(0.5), Done()]
    (entry,) = [entry for entry in logs if entry["event"] == "orders.deferred"]
    assert (entry["count"], entry["error"]) == (1, "tenant dan-main is unregistered")
    desk.now += timedelta(seconds=50)
    assert await desk.handle(received_again(fresh, receive_count=9)) == [RetryHeld(10.0)]

    overdue = [message("dan", f"o{number}", sent_at=early) for number in range(2)]
    behind = [message("dan", "o3", sent_at=NOW), message("ann", "o3")]
    verdicts = await desk.handle(*overdue, *behind)

    assert all(isinstance(verdict, ToDeadLetter) for verdict in verdicts[:2])
    assert [verdict.reason for verdict in verdicts if isinstance(verdict, ToDeadLetter)] == ["unknown_tenant"] * 2
    assert verdicts[2:] == [RetryHeld(0.0), RetryHeld(0.0)]
    assert "o3" not in await desk.orders("ann")


class WatchedGateway(ShardGateway):
    steps: list[str]

    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        self.steps.append("apply")
        return await super().apply(shard_id, operations, claim=claim)

    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        await asyncio.sleep(0.05)
        await super().wait_until_safe(shard_id, operations)
        self.steps.append("safe")


async def test_large_group_goes_on_once_its_first_batch_is_safe(desk: Desk) -> None:
    routed = desk.routed
    gateway = WatchedGateway(routed.directory, routed.locator, routed.pools, tenant_wait=TENANT_WAIT)
    gateway.steps = []
    text = "x" * 90_000
    large = [message("ann", f"o{number}", data={"text": text}, group="large") for number in range(15)]
    async with open_handler(gateway, "orders.fifo", utc=lambda: NOW) as handler:
        assert await handler.handle(large) == [Done()] * 15
    assert gateway.steps == ["apply", "safe"] * 2


async def test_order_is_given_up_after_its_last_try(desk: Desk) -> None:
    await make_touchy(desk.pool("shard-1"))
    bad, behind = message("ann", "o1", data=BAD), message("ann", "o2")

    with capture_logs() as logs:
        assert await desk.handle(bad, behind) == [RetryHeld(1.0), ReturnToQueue(0)]
        assert await desk.handle(bad, behind) == [RetryHeld(5.0), ReturnToQueue(0)]
        verdict, held = await desk.handle(bad, behind)

    assert [one["attempts"] for one in logs if one["event"] == "operation.failing"] == [1, 2]
    assert isinstance(verdict, ToDeadLetter)
    assert (verdict.reason, verdict.ids.request_id, verdict.ids.resource_id) == (
        "retries_exhausted",
        bad.deduplication_id,
        "o1",
    )
    assert (verdict.error, verdict.attempts) == (
        "it failed 3 times: a function or trigger of the database raised it (P0001)",
        3,
    )
    assert held == RetryHeld(0.0)
    assert await desk.log("ann") == []
    assert verdict.before_delete is not None
    await verdict.before_delete()
    assert [row["error"] for row in await desk.log("ann")] == ["retries_exhausted"]
    assert await desk.handle(behind) == [Done()]
    assert await desk.handle(received_again(bad)) == [Done()]
    assert sorted(await desk.orders("ann")) == ["o2"]

    await calm(desk.pool("shard-1"))
    replay = message("ann", "o1", data=BAD, deduplication_id=bad.deduplication_id, sent_at=NOW + timedelta(hours=1))
    assert await desk.handle(replay) == [Done()]
    assert sorted(await desk.orders("ann")) == ["o1", "o2"]


@pytest.mark.slow(2)
async def test_shard_that_does_not_answer_keeps_nobody_else_waiting(desk: Desk) -> None:
    await desk.handle(*(message(business_id, "first", group=business_id) for business_id in HOMES))
    stuck, behind = steps("bob", "o1", 2, group="stuck")
    async with shut_gate(desk.pool("shard-2")) as gate:
        started = time.monotonic()
        verdicts = await desk.handle(stuck, behind, message("ann", "o1", group="free"))
        assert time.monotonic() - started < CALL_MAX_S + 5  # the shard is silent for longer
        assert [type(verdict) for verdict in verdicts] == [RetryHeld, ReturnToQueue, Done]
        assert desk.handler.is_pending(stuck.deduplication_id or "", ("bob", "main"))
        started = time.monotonic()
        again, other = received_again(stuck, receive_count=1), message("bob", "o2", group="x")
        verdicts = await desk.handle(again, behind, other, message("cat", "o2", group="y"))
        assert time.monotonic() - started < CALL_MAX_S - 0.5
        assert [type(verdict) for verdict in verdicts] == [RetryHeld, ReturnToQueue, RetryHeld, Done]
        await gate.open()
        await eventually(lambda: not desk.handler.is_pending(stuck.deduplication_id or "", None))
        assert await desk.handle(again, behind, other) == [Done()] * 3
    assert (await desk.orders("bob"))["o1"] == {"n": 1}
    assert len(await desk.log("bob")) == 4


async def test_orders_are_applied_when_their_shard_is_back(
    make_shard: ShardMaker, breakable_server: PostgresServer
) -> None:
    breakable = await copy_shard(breakable_server, "shard-2")
    async with open_desk([await make_shard("shard-1"), breakable]) as desk:
        await desk.handle(*(message(business_id, "first", group=business_id) for business_id in HOMES))
        chain = steps("bob", "o1", 3, group="down")
        await breakable_server.kill()
        verdicts: list[Verdict] = []
        for receive_count in (1, 50):
            tried = [received_again(one, receive_count=receive_count) for one in chain]
            verdicts = await desk.handle(*tried, message("ann", f"o{receive_count}", group="up"))
            assert [type(verdict) for verdict in verdicts] == [RetryHeld, ReturnToQueue, ReturnToQueue, Done]
        assert verdicts[0] == RetryHeld(30.0)
        await breakable_server.start()
        await desk.done(*chain)
        assert await desk.orders("bob") == {"first": {}, "o1": {"n": 2}}


@pytest.mark.parametrize("receive_count", [4, 9, 1000])
async def test_waits_use_up_no_tries(desk: Desk, receive_count: int) -> None:
    await make_touchy(desk.pool("shard-1"))
    with capture_logs() as logs:
        assert await desk.handle(message("ann", "o1", data=BAD, receive_count=receive_count)) == [RetryHeld(1.0)]
    assert [one["attempts"] for one in logs if one["event"] == "operation.failing"] == [1]


@pytest.mark.slow(24)
async def test_order_whose_statement_is_always_too_slow_is_given_up(desk: Desk) -> None:
    await make_touchy(desk.pool("shard-1"))
    verdict, slow = None, message("ann", "o1", data={"sleep": "60"})
    async with asyncio.timeout(90):
        while not isinstance(verdict, ToDeadLetter):
            (verdict,) = await desk.handle(slow)
            await asyncio.sleep(0.05)
    assert "57014" in verdict.error
