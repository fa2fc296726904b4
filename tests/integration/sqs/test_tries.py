from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings
from support.aws.servers import SQS, running_servers
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT_WAIT, add_tenant, fetch
from support.postgres.trouble import make_touchy

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import FifoIds, Message, OutgoingMessage, Queue
from simplu_worker.consumers.sqs.order_handler import OrderHandler, open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import RetryHeld, ToDeadLetter
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import TenantControls

pytestmark = pytest.mark.usefixtures("aws_credentials")

RULES = OrderRules(100_000)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BAD = {"raise": "P0001"}
GOOD: dict[str, str] = {}
TENANT = ("ann", "main")
ATTRIBUTES = {"BusinessId": "ann", "LocationId": "main"}
TENANT_MEMBERS = {"businessId": "ann", "locationId": "main"}

_numbers = itertools.count(1)


def message(order_id: str, data: dict[str, str], *, receive_count: int = 1) -> Message:
    number = next(_numbers)
    return Message(
        message_id=f"message-{order_id}",
        receipt_handle=f"receipt-{number}",
        body=json.dumps({"type": "CREATE", "orderId": order_id, "data": data}),
        attributes=ATTRIBUTES,
        sent_at=NOW,
        receive_count=receive_count,
        group_id="g",
        deduplication_id=f"event-{order_id}",
        sequence_number=f"{int(order_id, 36):020}",
    )


def given_up_count() -> float:
    labels = {"operation": "create", "outcome": "retries_exhausted", "source": "sqs"}
    return REGISTRY.get_sample_value("simplu_operations_total", labels) or 0.0


class Desk:
    def __init__(self, routed: RoutedShards, pool: ShardPool) -> None:
        self.routed = routed
        self.pool = pool

    @asynccontextmanager
    async def replica(
        self, gateway: ShardGateway | None = None, *, delays_s: Sequence[float] = (1, 5, 15), queue: Queue | None = None
    ) -> AsyncIterator[OrderHandler]:
        used = gateway or self.gateway()
        async with open_orders(
            used,
            queue or Queue(None, "http://127.0.0.1/000000000000/orders.fifo"),
            rules=RULES,
            retries=RetryRules(delays_s, TENANT_WAIT),
            draw=lambda: 0.0,
            utc=lambda: NOW,
        ) as handler:
            yield handler

    def gateway(self, kind: type[ShardGateway] = ShardGateway) -> ShardGateway:
        return kind(self.routed.directory, self.routed.locator, self.routed.pools, tenant_wait=TENANT_WAIT)

    async def orders(self) -> list[str]:
        rows = await fetch(self.pool, 'SELECT "resourceId" AS id FROM resources ORDER BY 1')
        return [row["id"] for row in rows]


@asynccontextmanager
async def open_desk(address: ShardAddress) -> AsyncIterator[Desk]:
    async with routed_shards([address]) as routed:
        desk = Desk(routed, routed.pools.ensure_pool(address))
        await add_tenant(desk.pool, TENANT)
        routed.register(TENANT, address.shard_id)
        yield desk


@pytest.fixture
async def desk(make_shard: ShardMaker) -> AsyncIterator[Desk]:
    async with open_desk(await make_shard()) as desk:
        await make_touchy(desk.pool)
        yield desk


async def test_waits_use_up_no_tries(desk: Desk) -> None:
    async with desk.replica() as handler:
        for order_id, receive_count in (("follower", 4), ("outage", 9), ("late", 1000)):
            waited = message(order_id, BAD, receive_count=receive_count)
            with capture_logs() as logs:
                assert await handler.handle([waited]) == [RetryHeld(1)]
            assert [one["attempts"] for one in logs if one["event"] == "operation.failing"] == [1]


@pytest.mark.slow(16)
async def test_order_whose_statement_is_always_too_slow_is_given_up(desk: Desk) -> None:
    verdict: object = None
    async with desk.replica(delays_s=(1,)) as handler, asyncio.timeout(60):
        while not isinstance(verdict, ToDeadLetter):
            (verdict,) = await handler.handle([message("o1", {"sleep": "60"})])
            await asyncio.sleep(0.05)
    assert "57014" in verdict.error


# Through a queue


@asynccontextmanager
async def consuming(
    desk: Desk,
    queue: Queue,
    letters: Queue,
    client: Client,
    delays_s: Sequence[float],
    gateway: ShardGateway | None = None,
) -> AsyncIterator[list[Any]]:
    stopping = asyncio.Event()
    async with desk.replica(gateway, delays_s=delays_s, queue=queue) as handler:
        receiver = QueueReceiver(
            queue, handler, DeadLetterQueue(client, letters.url), receiver_settings(poll_wait_s=1, stop_wait_s=1)
        )
        with capture_logs() as logs:
            async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
                tasks.create_task(receiver.run(stopping))
                yield logs
                stopping.set()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # the server has nothing to await
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def sqs_url() -> Iterator[str]:
    with running_servers(SQS) as url_of:
        yield url_of("ours")


async def make_queues(client: Client) -> tuple[Queue, Queue]:
    number = next(_numbers)
    fifo = {"FifoQueue": "true", "VisibilityTimeout": "5"}
    made = await client.create_queue(QueueName=f"orders-{number}.fifo", Attributes=fifo)
    return Queue(client, made["QueueUrl"]), Queue(
        client, (await client.create_queue(QueueName=f"letters-{number}"))["QueueUrl"]
    )


async def send(queue: Queue, data: dict[str, dict[str, str]]) -> None:
    events = [
        OutgoingMessage(
            json.dumps({"type": "CREATE", "orderId": order_id, "data": one, **TENANT_MEMBERS}),
            FifoIds("g", f"event-{order_id}"),
        )
        for order_id, one in data.items()
    ]
    assert await queue.send(events) == []


def deferred(logs: Sequence[Any]) -> list[str]:
    return [one["error"] for one in logs if one["event"] == "orders.deferred"]


async def has_deferred(logs: Sequence[Any]) -> bool:
    return bool(deferred(logs))


async def is_empty(queue: Queue) -> bool:
    found = await queue.read_attributes()
    return found.visible_count + found.in_flight_count == 0


@pytest.mark.slow(12)
async def test_messages_of_a_paused_tenant_come_back_when_it_goes_on(desk: Desk, sqs_url: str) -> None:
    async with client_of("sqs", sqs_url) as client:
        queue, letters = await make_queues(client)
        await desk.routed.gateway.lookups.set_controls(*TENANT, TenantControls(pause_s=7200.0))
        await send(queue, {"first": GOOD, "last": GOOD})

        async def is_hidden() -> bool:
            return (await queue.read_attributes()).in_flight_count == 1 and not deferred(logs)[1:]

        async def is_shown() -> bool:
            return (await queue.read_attributes()).in_flight_count == 0

        async def all_is_done() -> bool:
            return await is_empty(queue)

        async with consuming(desk, queue, letters, client, (2,)) as logs:
            await until(lambda: has_deferred(logs))
            await until(is_hidden)
        await until(is_shown)
        assert await desk.orders() == []
        async with consuming(desk, queue, letters, client, (2,)) as logs:
            await until(lambda: has_deferred(logs))
            await desk.routed.gateway.lookups.set_controls(*TENANT, TenantControls(pause_s=0.0))
            await until(all_is_done)
        assert await desk.orders() == ["first", "last"]
