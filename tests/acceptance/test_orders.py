"""Order events through the whole worker: from a producer's messages to rows, dead letters and an empty queue."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

import asyncpg
import pytest
import pytest_asyncio

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import Tenant

pytestmark = pytest.mark.slow(6)

in_rooms_loop = pytest.mark.asyncio(loop_scope="module")

TENANTS = [Tenant(f"shop-{number}", "main", "gym") for number in range(4)]
PATIENCE_S = 40.0
BATCH = 10
ORDERS_SQL = """
SELECT id, "resourceId" AS order_id, data::text FROM resources WHERE "resourceName" = 'order' AND id = ANY ($1)
"""
LOG_SQL = "SELECT count(*) FROM operations WHERE resource_type = 'order' AND source = 'sqs' AND tenant_id = ANY ($1)"


class Room:
    """A stack, one worker, and what a test sends and finds."""

    def __init__(self) -> None:
        self.stack = Stack(shards=2, stream_shards=1, tenants_per_shard=2)
        self._exit = AsyncExitStack()
        self._sent = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.stack)
            env = self.stack.env | {"KINESIS_STREAM_NAME": "", "TENANT_WAIT_SECONDS": "1"}
            self.sqs = await entered.enter_async_context(open_client("sqs", env))
            self.worker = WorkerProcess(self.stack.group, env)
            self.worker.start()
            await self.worker.wait_ready()
            await create_tenants(self.sqs, env["SQS_SHARD_CREATION_QUEUE_URL"], TENANTS)
            ids = {tenant.tenant_id for tenant in TENANTS}

            async def are_there() -> bool:
                return ids <= await read_tenant_ids(shard_urls(self.stack.env))

            await self.until(are_there)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def until(self, condition: Any) -> None:
        """Wait until *condition* says yes; a failure shows the worker's log."""
        if not await poll_until(condition, within_s=PATIENCE_S):
            pytest.fail(log_tail(self.worker.log_path))

    async def send(self, queue: str, events: Iterable[tuple[Tenant, str, dict[str, Any] | str]]) -> None:
        entries = []
        for tenant, group, event in events:
            self._sent += 1
            attributes = {"BusinessId": tenant.business_id, "LocationId": tenant.location_id}
            entries.append(
                {
                    "Id": str(self._sent),
                    "MessageBody": event if isinstance(event, str) else json.dumps(event),
                    "MessageGroupId": group,
                    "MessageDeduplicationId": f"sent-{self._sent}",
                    "MessageAttributes": {
                        name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()
                    },
                }
            )
        for first in range(0, len(entries), BATCH):
            answer = await self.sqs.send_message_batch(
                QueueUrl=self.stack.env[queue], Entries=entries[first : first + BATCH]
            )
            assert "Failed" not in answer

    async def orders(self) -> dict[tuple[str, str], Any]:
        rows = [row for url in shard_urls(self.stack.env) for row in await fetch(url, ORDERS_SQL)]
        return {(row["id"], row["order_id"]): json.loads(row["data"]) for row in rows}

    async def logged_count(self) -> int:
        return sum([int((await fetch(url, LOG_SQL))[0]["count"]) for url in shard_urls(self.stack.env)])

    async def is_empty(self, queue: str) -> bool:
        answer = await self.sqs.get_queue_attributes(QueueUrl=self.stack.env[queue], AttributeNames=["All"])
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return all(answer["Attributes"][name] == "0" for name in names)

    async def letters(self) -> list[dict[str, Any]]:
        url, letters = self.stack.env["SQS_DEAD_LETTER_QUEUE_URL"], []
        while messages := (await self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)).get("Messages"):
            for message in messages:
                letters.append(json.loads(message["Body"]))
                await self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return letters


async def fetch(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query, [tenant.tenant_id for tenant in TENANTS]))
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room() -> AsyncIterator[Room]:
    async with Room() as room:
        yield room


def life(tenant: Tenant, order_id: str, group: str, count: int) -> list[tuple[Tenant, str, dict[str, Any] | str]]:
    """Return the events of an order that is made and then counted up."""
    events = [{"type": "CREATE" if not n else "UPDATE", "orderId": order_id, "data": {"n": n}} for n in range(count)]
    return [(tenant, group, event) for event in events]


@in_rooms_loop
async def test_orders_of_many_groups_are_applied_and_only_the_poison_is_a_dead_letter(room: Room) -> None:
    lives = [life(TENANTS[number % 4], f"order-{number}", f"group-{number}", 6) for number in range(50)]
    events = [one for step in zip(*lives, strict=True) for one in step]
    for place in range(30, 300, 100):
        events.insert(place, (TENANTS[0], "group-0", '{"type":"UPDATE"}'))

    await room.send("SQS_ORDER_EVENTS_QUEUE_URL", events)
    await room.until(lambda: room.is_empty("SQS_ORDER_EVENTS_QUEUE_URL"))

    assert await room.orders() == {(TENANTS[number % 4].tenant_id, f"order-{number}"): {"n": 5} for number in range(50)}
    assert await room.logged_count() == 300
    letters = await room.letters()
    assert [letter["reason"] for letter in letters] == ["invalid_message"] * 3
    assert {letter["source"]["groupId"] for letter in letters} == {"group-0"}
    assert all(letter["requestId"].startswith("sent-") for letter in letters)


@in_rooms_loop
async def test_orders_wait_for_their_shard_and_others_do_not(room: Room) -> None:
    servers = list(room.stack.servers.values())
    homes = [await read_tenant_ids([server.url]) for server in servers]
    (away, there) = ([tenant for tenant in TENANTS if tenant.tenant_id in home] for home in homes)
    await servers[0].kill()
    lives = [life(tenant, "restart", f"restart-{tenant.business_id}", 5) for tenant in TENANTS]
    await room.send("SQS_ORDER_EVENTS_QUEUE_URL", [one for step in zip(*lives, strict=True) for one in step])

    async def others_are_done() -> bool:
        query = f"""{ORDERS_SQL} AND "resourceId" = 'restart' AND data = '{{"n": 4}}'"""
        return len(await fetch(servers[1].url, query)) == len(there)

    await room.until(others_are_done)
    await servers[0].start()
    await room.until(lambda: room.is_empty("SQS_ORDER_EVENTS_QUEUE_URL"))

    orders = await room.orders()
    assert [orders[tenant.tenant_id, "restart"] for tenant in (*away, *there)] == [{"n": 4}] * 4
    assert await room.letters() == []
