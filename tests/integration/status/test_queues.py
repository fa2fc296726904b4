from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings
from support.reader_world import eventually

from simplu_local.sqs.server import SqsServer
from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.order_handler import OrderHandler
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, Verdict
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.status.lookups import Lookups
from simplu_worker.status.queues import Monitoring

QUEUE_NUMBERS = itertools.count(1)

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
    client: Client
    queue: Queue
    letters: Queue
    desk: Desk
    monitoring: Monitoring

    async def send(self, queue: Queue, count: int) -> None:
        for number in range(count):
            group = {"MessageGroupId": f"g{number}"} if queue.is_fifo else {}
            await self.client.send_message(QueueUrl=queue.url, MessageBody=f"{number}", **group)

    async def row_of(self, queue: Queue) -> dict[str, Any]:
        _, answer = await self.monitoring.sqs_stats()
        return next(dict(row) for row in answer["queues"] if row["name"] == queue.name)

    async def handled(self) -> dict[str, Any]:
        _, answer = await self.monitoring.handler_stats()
        (row,) = answer["handlers"]
        return dict(row)

    def has(self, expected: int, name: str) -> Callable[[], bool]:
        (receiver,) = self.monitoring.receivers.values()
        return lambda: receiver.stats()[name] == expected


async def new_queue(client: Client, *, is_fifo: bool = False, **attributes: str) -> Queue:
    fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if is_fifo else {}
    name = f"watched-{next(QUEUE_NUMBERS)}" + (".fifo" if is_fifo else "")
    answer = await client.create_queue(QueueName=name, Attributes=attributes | fifo)
    return Queue(client, answer["QueueUrl"])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    desk, stopping = Desk(), asyncio.Event()
    async with SqsServer().serve() as url, client_of("sqs", url) as client:
        letters = await new_queue(client)
        queue = await new_queue(client, is_fifo=True, VisibilityTimeout="40")
        receiver = QueueReceiver(queue, desk, NoLetters(), receiver_settings(poll_wait_s=1))
        orders = {queue.name: cast(OrderHandler, OneOrder())}
        monitoring = Monitoring({queue.name: receiver}, {queue.name: queue, letters.name: letters}, orders)
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            tasks.create_task(receiver.run(stopping))
            yield Site(client, queue, letters, desk, monitoring)
            desk.is_open.set()
            stopping.set()


async def test_sqs_stats_shows_what_is_in_hand_of_a_queue(site: Site) -> None:
    await site.send(site.queue, 2)
    await eventually(site.has(2, "inHand"))
    row = await site.row_of(site.queue)
    assert (row["consumed"], row["isFifo"], row["state"]) == (True, True, "polling")
    assert (row["visible"], row["inFlight"], row["visibilityTimeoutSeconds"]) == (0, 2, 40)
    assert row["oldestInHandSeconds"] > 0


async def test_purge_empties_the_queue_that_is_named(site: Site) -> None:
    site.desk.is_open.set()
    other = await new_queue(site.client)
    cast(dict[str, Any], site.monitoring.queues)[other.name] = other
    await site.send(other, 3)
    await site.send(site.letters, 3)
    await site.letters.receive(wait_s=1, max_messages=1)
    with capture_logs() as logs:
        assert await site.monitoring.purge(site.letters.name) == (
            *(202, {"queue": site.letters.name, "emptyWithinSeconds": 60}),
        )
    status, answer = await site.monitoring.purge(site.letters.name)
    assert (status, answer["retryAfterSeconds"], "once in 60 s" in answer["error"]) == (429, 60, True)
    row = await site.row_of(site.letters)
    assert (row["visible"], row["inFlight"], (await site.row_of(other))["visible"]) == (0, 0, 3)
    purged = [(line["queue"], line["log_level"]) for line in logs if line["event"] == "queue.purged"]
    assert purged == [(site.letters.name, "warning")]


async def test_handler_stats_shows_queues_and_what_was_done(site: Site) -> None:
    await site.send(site.queue, 3)
    await site.desk.is_busy.wait()
    at_work = await site.handled()
    site.desk.is_open.set()
    await eventually(site.has(3, "handled"))
    await eventually(site.has(0, "inHand"))
    row = await site.handled()
    assert at_work["handling"] > 0
    assert (row["handled"], row["received"], row["inHand"], row["outcomes"]["retried"]) == (3, 3, 0, 0)
    assert (row["handlingSeconds"] > 0, row["outcomes"]["deleted"], row["onTheirWay"]) == (True, 3, {"shard-1": 1})
    assert {"lastTurnSeconds", "oldestInHandSeconds"} <= row.keys()
    _, answer = await site.monitoring.handler_stats()
    assert [queue["name"] for queue in answer["queues"]] == [site.queue.name, site.letters.name]
    assert {"retries", "operations", "deadLetters"} <= answer.keys()


async def test_operation_is_pending_while_an_order_handler_has_it(site: Site) -> None:
    lookups = Lookups(cast(Any, None), cast(Any, None), cast(Any, None), site.monitoring, fleet=None, runbook_url=None)
    asked = [("event-1", None), ("event-1", ("a", "b")), ("event-1", ("a", "c")), ("event-2", None)]
    assert [lookups._is_pending(*one) for one in asked] == [True, True, False, False]
