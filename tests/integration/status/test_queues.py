from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest
from aiohttp import ClientSession
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings
from support.settings import settings_in

from simplu_local.sqs.server import SqsServer
from simplu_worker.assembly.shards import open_shards
from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.order_handler import OrderHandler
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, Verdict
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.status.guard import Guard
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import open_http

TOKEN = "token-of-the-monitoring-points"
QUEUE_NUMBERS = itertools.count(1)
SHARD = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": "1", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.5)]


class Desk:
    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_busy = asyncio.Event()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        self.is_busy.set()
        await self.is_open.wait()
        return [Done() for _ in messages]


class NoLetters:
    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        raise AssertionError(letters)


class OneOrder:
    def is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        return request_id == "event-1" and names in {None, ("a", "b")}

    def stats(self) -> dict[str, int]:
        return {"shard-1": 1}


@dataclass
class Site:
    server: SqsServer
    client: Client
    session: ClientSession
    url: str
    replica: ReplicaStatus
    queue: Queue
    letters: Queue
    desk: Desk

    async def ask(self, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self.session.request(method, f"{self.url}{path}", headers=headers) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def send(self, queue: Queue, count: int) -> None:
        for number in range(count):
            group = {"MessageGroupId": f"g{number}"} if queue.is_fifo else {}
            await self.client.send_message(QueueUrl=queue.url, MessageBody=f"{number}", **group)

    async def row_of(self, queue: Queue, path: str = "/sqs/stats", member: str = "queues") -> dict[str, Any]:
        _, answer = await self.ask(path)
        (row,) = [row for row in answer[member] if queue.name in {row.get("name"), row.get("queue")}]
        return dict(row)

    async def shown(
        self, condition: Callable[[dict[str, Any]], bool], path: str = "/sqs/stats", member: str = "queues"
    ) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while not condition(row := await self.row_of(self.queue, path, member)):  # noqa: ASYNC110  # it is asked for over HTTP
                await asyncio.sleep(0.02)
        return row


async def new_queue(client: Client, *, is_fifo: bool = False, **attributes: str) -> Queue:
    fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if is_fifo else {}
    name = f"watched-{next(QUEUE_NUMBERS)}" + (".fifo" if is_fifo else "")
    answer = await client.create_queue(QueueName=name, Attributes=attributes | fifo)
    return Queue(client, answer["QueueUrl"])


@asynccontextmanager
async def consumed(receiver: QueueReceiver, desk: Desk) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        tasks.create_task(receiver.run(stopping))
        yield
        desk.is_open.set()
        stopping.set()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    server, desk = SqsServer(), Desk()
    replica = ReplicaStatus("replica-1", asyncio.Event())
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_of("sqs", await stack.enter_async_context(server.serve())))
        letters = await new_queue(client)
        queue = await new_queue(client, is_fifo=True, VisibilityTimeout="40")
        receiver = QueueReceiver(queue, desk, NoLetters(), receiver_settings(poll_wait_s=1))
        shards = await stack.enter_async_context(open_shards(settings_in(SHARD)))
        watched = {queue.name: queue, letters.name: letters}
        monitoring = Monitoring({queue.name: receiver}, watched)
        replica.start(shards.gateway, shards.pools, shards.locator, monitoring=monitoring)
        http = open_http(Guard(Tokens(operator=TOKEN), "127.0.0.1", allow_destructive=True), 0, replica)
        port = await stack.enter_async_context(http)
        session = await stack.enter_async_context(ClientSession())
        await stack.enter_async_context(consumed(receiver, desk))
        yield Site(server, client, session, f"http://127.0.0.1:{port}", replica, queue, letters, desk)


async def test_sqs_stats_shows_what_is_in_hand_of_a_queue(site: Site) -> None:
    await site.send(site.queue, 2)
    row = await site.shown(lambda row: row["inHand"] == 2)
    assert (row["consumed"], row["isFifo"], row["state"]) == (True, True, "polling")
    assert (row["visible"], row["inFlight"], row["visibilityTimeoutSeconds"]) == (0, 2, 40)
    assert row["oldestInHandSeconds"] > 0


async def test_purge_empties_the_queue_that_is_named(site: Site) -> None:
    site.desk.is_open.set()
    other = await new_queue(site.client)
    cast(dict[str, Any], site.replica.monitoring.queues)[other.name] = other
    await site.send(other, 3)
    await site.send(site.letters, 3)
    await site.letters.receive(wait_s=1, max_messages=1)
    with capture_logs() as logs:
        status, answer = await site.ask(f"/sqs/purge?queue={site.letters.name}", "DELETE")
    assert (status, answer) == (202, {"queue": site.letters.name, "emptyWithinSeconds": 60})
    status, answer = await site.ask(f"/sqs/purge?queue={site.letters.name}", "DELETE")
    assert (status, answer["retryAfterSeconds"], "once in 60 s" in answer["error"]) == (429, 60, True)
    row = await site.row_of(site.letters)
    assert (row["visible"], row["inFlight"]) == (0, 0)
    assert (await site.row_of(other))["visible"] == 3
    assert [(line["queue"], line["log_level"]) for line in logs if line["event"] == "queue.purged"] == [
        (site.letters.name, "warning")
    ]


async def test_handler_stats_shows_queues_and_what_was_done(site: Site) -> None:
    await site.send(site.queue, 3)
    await site.desk.is_busy.wait()
    at_work = await site.row_of(site.queue, "/handler/stats", "handlers")
    site.desk.is_open.set()
    row = await site.shown(lambda row: row["outcomes"]["deleted"] == 3, "/handler/stats", "handlers")
    assert at_work["handling"] > 0
    assert (row["handled"], row["received"], row["inHand"], row["outcomes"]["retried"]) == (3, 3, 0, 0)
    assert row["handlingSeconds"] > 0
    assert {"lastTurnSeconds", "oldestInHandSeconds"} <= row.keys()
    _, answer = await site.ask("/handler/stats")
    assert [queue["name"] for queue in answer["queues"]] == [site.queue.name, site.letters.name]
    assert {"retries", "operations", "deadLetters"} <= answer.keys()


async def test_operation_is_pending_while_an_order_handler_has_it(site: Site) -> None:
    orders, known = {site.queue.name: cast(OrderHandler, OneOrder())}, site.replica
    assert known.gateway
    assert known.pools
    assert known.locator
    shown = Monitoring(known.monitoring.receivers, known.monitoring.queues, orders)
    known.start(known.gateway, known.pools, known.locator, monitoring=shown)
    assert site.replica.lookups
    asked = [("event-1", None), ("event-1", ("a", "b")), ("event-1", ("a", "c")), ("event-2", None)]
    assert [site.replica.lookups._is_pending(*one) for one in asked] == [True, True, False, False]
    assert (await site.row_of(site.queue, "/handler/stats", "handlers"))["onTheirWay"] == {"shard-1": 1}
