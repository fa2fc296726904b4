from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from support.aws.endpoints import REGION, client_of
from support.aws.receiver_settings import receiver_settings

from simplu_local.aws_server.faults import SetOptions
from simplu_local.sqs.faults import SqsFault
from simplu_local.sqs.server import SqsServer
from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, ReturnToQueue, Verdict
from simplu_worker.instruments import SQS_POLLS_REPLACED, message_outcomes
from simplu_worker.operations.dead_letter import DeadLetter

QUEUE_NUMBERS = itertools.count(1)

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1)]


@dataclass
class Sqs:
    server: SqsServer
    url: str
    client: Client
    polls: Client

    async def queue(self, *, is_fifo: bool = False, **attributes: str) -> Queue:
        fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if is_fifo else {}
        name = f"network-{next(QUEUE_NUMBERS)}" + (".fifo" if is_fifo else "")
        answer = await self.client.create_queue(QueueName=name, Attributes=attributes | fifo)
        return Queue(self.client, answer["QueueUrl"], poll_client=self.polls)

    async def send(self, queue: Queue, *bodies: str) -> None:
        for start in range(0, len(bodies), 10):
            entries = [
                {"Id": str(number), "MessageBody": body}
                | ({"MessageGroupId": body.partition("-")[0]} if queue.is_fifo else {})
                for number, body in enumerate(bodies[start : start + 10])
            ]
            await self.client.send_message_batch(QueueUrl=queue.url, Entries=entries)

    def fault(self, action: str, kind: Any, **members: Any) -> None:
        self.server.run_command(SqsFault(action=action, kind=kind, **members))

    async def emptied(self, queue: Queue) -> None:
        there = self.server.account.find(queue.name)
        await reached(lambda: not there.visible_count and not there.in_flight_count)


@pytest.fixture
async def sqs() -> AsyncIterator[Sqs]:
    server = SqsServer()
    async with (
        server.serve() as url,
        client_of("sqs", url) as client,
        open_client("sqs", region=REGION, endpoint_url=url, read_timeout_s=30, pool_size=60) as polls,
    ):
        yield Sqs(server, url, client, polls)


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what changes is behind the network
            await asyncio.sleep(0.02)


class Desk:
    def __init__(self, verdict: Callable[[Message], Verdict] = lambda _: Done()) -> None:
        self.verdict = verdict
        self.handled: list[Message] = []

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        await asyncio.sleep(0.005)
        verdicts: list[Verdict] = []
        failed: set[str | None] = set()
        for message in messages:
            verdict = ReturnToQueue(0) if message.group_id in failed else self.verdict(message)
            if not isinstance(verdict, Done):
                failed.add(message.group_id)
            else:
                self.handled.append(message)
            verdicts.append(verdict)
        return verdicts


class NoLetters:
    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        raise AssertionError(letters)


@asynccontextmanager
async def receiving(queue: Queue, desk: Desk, **options: Any) -> AsyncIterator[QueueReceiver]:
    stopping = asyncio.Event()
    options = {"poll_wait_s": 1, "stop_wait_s": 2.0} | options
    receiver = QueueReceiver(queue, desk, NoLetters(), receiver_settings(**options))
    async with asyncio.timeout(180), asyncio.TaskGroup() as tasks:
        tasks.create_task(receiver.run(stopping))
        yield receiver
        stopping.set()


async def test_t25_hung_poll_is_replaced(sqs: Sqs) -> None:
    queue, desk = await sqs.queue(), Desk()
    sqs.fault("ReceiveMessage", "hang")
    await sqs.send(queue, "a")
    async with receiving(queue, desk, silence_s=2.0):  # one that a busy machine does not reach
        await sqs.emptied(queue)
    assert ([one.body for one in desk.handled], SQS_POLLS_REPLACED.labels(queue.name)._value.get()) == (["a"], 1)


async def test_t27_connection_that_was_dropped_costs_one_quick_retry(sqs: Sqs) -> None:
    queue, desk = await sqs.queue(), Desk()
    async with receiving(queue, desk):
        await reached(lambda: sqs.server.state()["polls"] == 1)
        sqs.fault("ReceiveMessage", "cut", count=1)
        await asyncio.sleep(1.1)
        sent_at = asyncio.get_running_loop().time()
        await sqs.send(queue, "a")
        await sqs.emptied(queue)
    assert asyncio.get_running_loop().time() - sent_at < 3
    assert len(desk.handled) == 1


async def test_t32_heartbeats_leave_while_fifty_polls_are_parked(sqs: Sqs) -> None:
    queue, empty = await sqs.queue(), await sqs.queue()
    await sqs.send(queue, "a")
    (message,) = await queue.receive(wait_s=1, max_messages=1)
    async with asyncio.TaskGroup() as tasks:
        parked = [tasks.create_task(empty.receive(wait_s=20, max_messages=1)) for _ in range(50)]
        await reached(lambda: sqs.server.state()["polls"] == 50)
        async with asyncio.timeout(15):  # less than is left of the polls
            assert await queue.change_visibility_batch([(message, 30)]) == []
            assert await queue.delete_batch([message]) == []
        for poll in parked:
            poll.cancel()


async def test_lost_answer_of_a_fifo_receive_is_had_again_at_once(sqs: Sqs) -> None:
    queue, desk = await sqs.queue(is_fifo=True, VisibilityTimeout="600"), Desk()
    sqs.server.run_command(SetOptions(options={"polls_outlive_clients": True}))
    sqs.fault("ReceiveMessage", "delay", applied=True, delay_ms=60_000)
    await sqs.send(queue, "a-1", "a-2", "b-1")
    async with receiving(queue, desk, silence_s=0.2):
        await sqs.emptied(queue)
    assert [one.receive_count for one in desk.handled] == [1, 1, 1]


async def test_t14_expired_receipt_handle_is_refused_by_a_fifo_queue(sqs: Sqs) -> None:
    queue, calls = await sqs.queue(is_fifo=True), itertools.count()

    def verdict(_: Message) -> Verdict:
        if next(calls) == 0:
            sqs.server.account.find(queue.name).expire_receipts(sqs.server.now_ms())
        return Done()

    desk = Desk(verdict)
    await sqs.send(queue, "a-1")
    async with receiving(queue, desk, limits=SchedulerLimits(message_count=1)):
        await sqs.emptied(queue)
    counted = {name: count for name, count in message_outcomes(queue.name).items() if count}
    assert ([one.receive_count for one in desk.handled], counted) == ([1, 2], {"stale_receipt": 1, "deleted": 1})


async def test_order_holds_in_every_group_whatever_goes_wrong(sqs: Sqs) -> None:
    queue, failures = await sqs.queue(is_fifo=True, VisibilityTimeout="3"), itertools.count()
    bodies = [f"g{number % 30}-{number // 30:03}" for number in range(600)]
    desk = Desk(lambda _: ReturnToQueue(1) if next(failures) % 97 == 50 else Done())
    for action in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        sqs.fault(action, "entries", entries=3, count=3)
        sqs.fault(action, "cut", count=2, applied=True)
    sqs.fault("ReceiveMessage", "cut", count=2, applied=True)
    sqs.fault("ReceiveMessage", "fail", count=1)
    await sqs.send(queue, *bodies)
    async with receiving(queue, desk, limits=SchedulerLimits(batch_count=20, call_count=4)):
        await reached(lambda: len(desk.handled) >= 100)
        sqs.server.account.find(queue.name).expire_receipts(sqs.server.now_ms())
        await sqs.emptied(queue)
    by_group: defaultdict[str | None, dict[str, None]] = defaultdict(dict)
    for one in desk.handled:
        by_group[one.group_id].setdefault(one.body)  # the first time counts: a redelivered message is found done
    assert sum(map(len, by_group.values())) == 600
    assert all(list(group) == sorted(group) for group in by_group.values())
