from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from operator import contains

import asyncpg
import pytest
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings
from support.aws.servers import SQS, running_servers
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT_WAIT, add_tenant, fetch
from support.postgres.trouble import make_touchy
from support.reader_world import eventually

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import FifoIds, Message, OutgoingMessage, Queue, batches
from simplu_worker.consumers.sqs.order_handler import OrderHandler, open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules, tenant_of_order
from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.slots import PUT_BACK_BASE_S, PriorityGate
from simplu_worker.consumers.sqs.receive.verdicts import Done, Verdict
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.timing.clock import loop_time

pytestmark = pytest.mark.usefixtures("aws_credentials")

RULES = OrderRules(100_000)
LIMITS = SchedulerLimits(message_count=80, batch_count=40)
FLOOD_COUNT = 400
CONSUMED_S = 300.0
QUIET_COUNT = 4
HOMES = {"ann": "shard-1", "cat": "shard-1", "bob": "shard-2"}  # by business id

_numbers = itertools.count(1)


class Desk:
    def __init__(self, handler: OrderHandler) -> None:
        self._handler = handler
        self.done: dict[str, int] = {}  # by order id: receive count
        self.receive_counts: dict[str, int] = {}

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        ids = [json.loads(message.body)["orderId"] for message in messages]
        self.receive_counts |= {one: message.receive_count for one, message in zip(ids, messages, strict=True)}
        verdicts = await self._handler.handle(messages)
        self.done |= {
            one: self.receive_counts[one] for one, verdict in zip(ids, verdicts, strict=True) if verdict == Done()
        }
        return verdicts

    def done_of(self, name: str) -> list[str]:
        return [one for one in self.done if one.startswith(name)]


class World:
    def __init__(self, routed: RoutedShards, client: Client, polls: Client, pools: dict[str, ShardPool]) -> None:
        self.pools = pools
        self._routed = routed
        self._client = client
        self._polls = polls

    async def make_queue(self, *, is_fifo: bool) -> Queue:
        name = f"fair-{next(_numbers)}" + (".fifo" if is_fifo else "")
        attributes = {"VisibilityTimeout": "30"} | ({"FifoQueue": "true"} if is_fifo else {})
        made = await self._client.create_queue(QueueName=name, Attributes=attributes)
        return Queue(self._client, made["QueueUrl"], poll_client=self._polls)

    @asynccontextmanager
    async def consuming(
        self, queue: Queue, gate: PriorityGate | None = None
    ) -> AsyncIterator[tuple[Desk, QueueReceiver]]:
        gateway, letters = self._routed.gateway, await self.make_queue(is_fifo=False)
        retries, stopping = RetryRules((1, 5, 15), TENANT_WAIT), asyncio.Event()
        async with open_orders(gateway, queue, rules=RULES, retries=retries) as handler:
            desk = Desk(handler)
            receiver = QueueReceiver(
                queue,
                desk,
                DeadLetterQueue(self._client, letters.url),
                receiver_settings(limits=LIMITS, poll_wait_s=1, drain_s=5),
                gate=gate,
                tenant_of=partial(tenant_of_order, rules=RULES),
            )
            async with asyncio.timeout(CONSUMED_S), asyncio.TaskGroup() as tasks:
                tasks.create_task(receiver.run(stopping))
                yield desk, receiver
                stopping.set()

    async def log_count(self, business_id: str) -> int:
        query = "SELECT count(*) AS count FROM operations WHERE tenant_id = $1"
        (row,) = await fetch(self.pools[HOMES[business_id]], query, f"{business_id}-main")
        return int(row["count"])


@pytest.fixture(scope="module")
def sqs_url() -> Iterator[str]:
    with running_servers(SQS) as url_of:
        yield url_of("ours")


@pytest.fixture
async def world(make_shard: ShardMaker, sqs_url: str) -> AsyncIterator[World]:
    addresses = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with AsyncExitStack() as stack:
        routed = await stack.enter_async_context(routed_shards(addresses))
        pools = {one.shard_id: routed.pools.ensure_pool(one) for one in addresses}
        for business_id, shard_id in HOMES.items():
            await add_tenant(pools[shard_id], (business_id, "main"))
            routed.register((business_id, "main"), shard_id)
        await make_touchy(pools["shard-1"])
        client, polls = [await stack.enter_async_context(client_of("sqs", sqs_url)) for _ in range(2)]
        yield World(routed, client, polls, pools)


async def send(queue: Queue, business_id: str, orders: Iterable[tuple[str, str]], *, sleep_s: float = 0.0) -> None:
    events = [
        OutgoingMessage(
            json.dumps(
                {
                    "type": "CREATE",
                    "orderId": order_id,
                    "data": {"sleep": sleep_s} if sleep_s else {},
                    "businessId": business_id,
                    "locationId": "main",
                }
            ),
            FifoIds(group, order_id) if queue.is_fifo else None,
        )
        for order_id, group in orders
    ]
    for batch in batches(events):
        assert await queue.send(batch) == {}


async def until(condition: Callable[[], bool]) -> None:
    await eventually(condition, within_s=CONSUMED_S)


async def send_in_turn(queue: Queue, desk: Desk, businesses: Sequence[str]) -> None:
    for number in range(QUIET_COUNT):
        for business_id in businesses:
            order_id = f"{business_id}-{number}"
            await send(queue, business_id, [(order_id, order_id)])
            await until(partial(contains, desk.done, order_id))


@pytest.mark.slow(40)
@pytest.mark.parametrize("is_fifo", [True, False], ids=["fifo", "standard"])
async def test_quiet_tenants_do_not_wait_for_one_that_is_locked(world: World, *, is_fifo: bool) -> None:
    """Neither on its shard nor elsewhere, though its groups are many more than the slots; all are applied in the end.

    Its messages are received rarely meanwhile: redrive policies count that.
    """
    queue = await world.make_queue(is_fifo=is_fifo)
    async with world.consuming(queue) as (desk, receiver):
        await send(queue, "ann", [("first", "first")])
        await until(lambda: "first" in desk.done)
        rival = await asyncpg.connect(world.pools["shard-1"].address.connection_string)
        await rival.execute("BEGIN")
        await rival.execute("SELECT FROM tenants WHERE business_id = 'ann' FOR UPDATE")
        began_at = loop_time()
        await send(queue, "ann", [(f"flood-{number}", f"g{number}") for number in range(FLOOD_COUNT)])
        await until(lambda: receiver.stats()["waiting"] > 0)

        await send_in_turn(queue, desk, ["bob", "cat"])

        assert desk.done_of("flood") == []
        # Each time a message is hidden for twice as long: it comes a third time where a busy machine takes long here.
        turns_s = (loop_time() - began_at) / (PUT_BACK_BASE_S / 2)
        assert max(desk.receive_counts.values()) <= max(2, 1 + int(math.log2(1 + turns_s)))
        assert receiver.in_flight_count <= LIMITS.message_count // 2
        await rival.close()
        await until(lambda: len(desk.done_of("flood")) == FLOOD_COUNT)
    assert await world.log_count("ann") == FLOOD_COUNT + 1


@pytest.mark.slow(40)
@pytest.mark.parametrize("is_fifo", [True, False], ids=["fifo", "standard"])
async def test_quiet_tenants_do_not_wait_for_one_that_is_slow(world: World, *, is_fifo: bool) -> None:
    queue = await world.make_queue(is_fifo=is_fifo)
    groups = range(FLOOD_COUNT * 3 // 4)
    # Of much more than what the shard does meanwhile, however much slower the quiet ones are than it. All are there
    # before the first is received: a busy machine sends them more slowly than the shard applies them.
    flood = [(f"flood-{group}-{number}", f"g{group}") for number in range(4) for group in groups]
    await send(queue, "ann", flood, sleep_s=0.05)
    async with world.consuming(queue) as (desk, receiver):
        await until(lambda: receiver.in_flight_count >= LIMITS.message_count)

        await send_in_turn(queue, desk, ["bob", "cat"])

        assert len(desk.done_of("flood")) < len(flood)
    done = {one: number for number, one in enumerate(desk.done)}
    second = [one for one in done if is_fifo and one.startswith("flood") and one.endswith("-1")]
    assert all(done[one.removesuffix("1") + "0"] < done[one] for one in second)


@pytest.mark.slow(15)
async def test_ordinary_queue_has_turns_beside_a_full_priority_queue(world: World) -> None:
    first, second = await world.make_queue(is_fifo=True), await world.make_queue(is_fifo=True)
    await send(first, "ann", [(f"high-{number}", f"h{number}") for number in range(8 * FLOOD_COUNT)])
    await send(second, "ann", [(f"low-{number}", f"l{number}") for number in range(FLOOD_COUNT // 4)])
    async with world.consuming(first) as (high, receiver):
        await until(lambda: len(high.done) > 0)
        gate = PriorityGate(receiver.activity)
        async with world.consuming(second, gate) as (low, _):
            await until(lambda: len(low.done) == FLOOD_COUNT // 4)
            assert len(low.done) < len(high.done) < 8 * FLOOD_COUNT
