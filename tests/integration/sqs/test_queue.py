"""SQS queues and what receives from them, against real servers: moto's, and ours."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.aws.endpoints import ScriptedAws, client_of
from support.aws.receiver_settings import receiver_settings

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import Message, OutgoingMessage, Queue
from simplu_worker.consumers.sqs.receive.group_scheduler import SchedulerLimits
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, ReturnToQueue, Verdict
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.instruments import SQS_IN_FLIGHT, SQS_MESSAGES

QUEUE_NUMBERS = itertools.count(1)


pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.6)]


async def new_queue(client: Client, **attributes: str) -> Queue:
    """Make an empty queue."""
    answer = await client.create_queue(QueueName=f"queue-{next(QUEUE_NUMBERS)}", Attributes=attributes)
    return Queue(client, answer["QueueUrl"])


async def send(queue: Queue, *bodies: str) -> None:
    """Put a message of each body into *queue*."""
    for start in range(0, len(bodies), 10):
        assert await queue.send([OutgoingMessage(body=body) for body in bodies[start : start + 10]]) == []


async def receive_all(queue: Queue, count: int) -> list[Message]:
    """Receive until *count* messages are there."""
    messages: list[Message] = []
    async with asyncio.timeout(30):
        while len(messages) < count:
            messages += await queue.receive(wait_s=1, max_messages=10)
    return messages


async def counts(queue: Queue) -> tuple[int, int]:
    """Return how many messages are visible and how many are in flight."""
    attributes = await queue.read_attributes()
    return attributes.visible_count, attributes.in_flight_count


async def reached(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110  # the server has nothing to await
            await asyncio.sleep(0.05)


# The queue


async def test_queue_receives_what_was_sent_with_its_facts(client: Client) -> None:
    queue = await new_queue(client)
    await client.send_message(
        QueueUrl=queue.url,
        MessageBody='{"ż": 1}',
        MessageAttributes={
            "MessageType": {"DataType": "String", "StringValue": "SHARD_CREATION"},
            "Binary": {"DataType": "Binary", "BinaryValue": b"\x00"},
        },
    )
    (message,) = await queue.receive(wait_s=1, max_messages=10)
    facts = (message.body, message.attributes, message.receive_count, message.group_id)
    assert facts == ('{"ż": 1}', {"MessageType": "SHARD_CREATION"}, 1, None)
    origin = queue.origin_of(message)
    assert (origin.name, origin.message_id, origin.arrived_at) == (queue.name, message.message_id, message.sent_at)


async def test_queue_tells_its_attributes(client: Client) -> None:
    queue = await new_queue(client, VisibilityTimeout="77", MaximumMessageSize="2048")
    await send(queue, "a", "b", "c")
    await queue.receive(wait_s=1, max_messages=1)
    attributes = await queue.read_attributes()
    assert (attributes.visibility_timeout_s, attributes.max_message_bytes) == (77, 2048)
    assert (attributes.visible_count, attributes.in_flight_count) == (2, 1)


async def test_queue_deletes_more_than_one_batch(client: Client) -> None:
    queue = await new_queue(client)
    await send(queue, *map(str, range(23)))
    messages = await receive_all(queue, 23)
    assert await queue.delete([*messages, messages[0]]) == []
    assert await counts(queue) == (0, 0)


async def test_queue_gives_messages_back_at_once_when_visibility_is_zero(client: Client) -> None:
    queue = await new_queue(client)
    await send(queue, "a")
    messages = await receive_all(queue, 1)
    assert await queue.change_visibility(messages, 0) == []
    (again,) = await receive_all(queue, 1)
    assert (again.message_id, again.receive_count) == (messages[0].message_id, 2)


async def test_queue_refuses_when_it_does_not_exist(client: Client, server_url: str) -> None:
    queue = Queue(client, f"{server_url}/123456789012/missing")
    with pytest.raises(PermanentError, match=r"NonExistentQueue|QueueDoesNotExist"):
        await queue.receive(wait_s=0, max_messages=1)
    async with client_of("sqs", "http://127.0.0.1:1") as nowhere:
        with pytest.raises(RetryableError):
            await Queue(nowhere, "http://127.0.0.1:1/1/q").read_attributes()


async def test_queue_deletes_again_only_what_sqs_had_trouble_with() -> None:
    aws = ScriptedAws()
    async with aws.running() as url, client_of("sqs", url) as client:
        queue = Queue(client, f"{url}/1/q")
        aws.answer({"Messages": [received(name) for name in ("a", "b", "c")]})
        trouble = {"Id": "0", "SenderFault": False, "Code": "InternalError"}
        at_fault = {"Id": "2", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"}
        aws.answer({"Successful": [{"Id": "1"}], "Failed": [trouble, at_fault]})
        aws.answer({"Successful": [{"Id": "0"}], "Failed": []})
        left = await queue.delete(await queue.receive(wait_s=0, max_messages=10))
    handles = [[entry["ReceiptHandle"] for entry in body["Entries"]] for _, body in aws.requests[1:]]
    assert ([message.message_id for message in left], handles) == (["c"], [["h-a", "h-b", "h-c"], ["h-a"]])


def received(message_id: str, *, handle: str | None = None) -> dict[str, Any]:
    """Return a message as SQS writes it, malformed where it may be: its attributes are no numbers."""
    return {
        "MessageId": message_id,
        "ReceiptHandle": handle or f"h-{message_id}",
        "Body": "x",
        "Attributes": {"ApproximateReceiveCount": "many"},
    }


# The receiver


class Desk:
    """A handler that records its messages, one a call, and keeps each until `opened` is set."""

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict: Verdict = Done() if verdict is None else verdict
        self.handled: list[Message] = []
        self.now = self.most = 0
        self.opened = asyncio.Event()
        self.taken = asyncio.Event()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Wait for `opened`."""
        self.handled += messages
        self.now += 1
        self.most = max(self.most, self.now)
        self.taken.set()
        try:
            await self.opened.wait()
        finally:
            self.now -= 1
        return [self.verdict] * len(messages)


@asynccontextmanager
async def receiving(
    queue: Queue, desk: Desk, *, limit: int = 20, poll_wait_s: int = 1, stop_wait_s: float = 0.05
) -> AsyncIterator[tuple[QueueReceiver, asyncio.Event]]:
    """Run a receiver; at the end stop it and wait until it has drained."""
    stopping = asyncio.Event()
    letters = DeadLetterQueue(queue._client, queue.url)
    receiver = QueueReceiver(
        queue,
        desk,
        letters,
        receiver_settings(
            limits=SchedulerLimits(message_count=limit, batch_count=1, call_count=limit),
            poll_wait_s=poll_wait_s,
            stop_wait_s=stop_wait_s,
        ),
        draw=lambda: 0.0,
    )
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        tasks.create_task(receiver.run(stopping))
        yield receiver, stopping
        stopping.set()


async def test_receiver_deletes_what_was_handled(client: Client) -> None:
    queue, desk = await new_queue(client), Desk()
    desk.opened.set()
    await send(queue, *map(str, range(15)))
    async with receiving(queue, desk):
        await reached(lambda: emptied(queue))
    assert sorted(message.body for message in desk.handled) == sorted(map(str, range(15)))
    assert SQS_MESSAGES.labels(queue.name, "deleted")._value.get() == 15
    assert SQS_IN_FLIGHT.labels(queue.name)._value.get() == 0


async def emptied(queue: Queue) -> bool:
    """Return whether *queue* is empty."""
    return await counts(queue) == (0, 0)


async def test_receiver_takes_no_more_than_its_limit(client: Client) -> None:
    queue, desk = await new_queue(client), Desk()
    await send(queue, *map(str, range(8)))
    async with receiving(queue, desk, limit=3) as (receiver, _):
        await reached(lambda: in_flight(queue, 3))
        await reached(lambda: in_hand(receiver, 3))  # the answer that brings them may be on its way
        assert (receiver.in_flight_count, await counts(queue)) == (3, (5, 3))
        desk.opened.set()
        await reached(lambda: emptied(queue))
    assert (desk.most, len(desk.handled)) == (3, 8)


async def in_flight(queue: Queue, count: int) -> bool:
    """Return whether *count* messages of *queue* are in flight."""
    return (await counts(queue))[1] == count


async def in_hand(receiver: QueueReceiver, count: int) -> bool:
    """Return whether *receiver* has *count* messages in flight."""
    return receiver.in_flight_count == count


async def test_receiver_keeps_a_message_hidden_while_it_is_in_hand(client: Client) -> None:
    queue, desk = await new_queue(client, VisibilityTimeout="4"), Desk()
    await send(queue, "a")
    async with receiving(queue, desk):
        await desk.taken.wait()
        assert await queue.receive(wait_s=6, max_messages=10) == []
        desk.opened.set()
        await reached(lambda: emptied(queue))
    assert [message.receive_count for message in desk.handled] == [1]


async def test_receiver_puts_a_message_off_as_the_handler_says(client: Client) -> None:
    queue, desk = await new_queue(client, VisibilityTimeout="4"), Desk(ReturnToQueue(delay_s=600))
    desk.opened.set()
    await send(queue, "a")
    async with receiving(queue, desk) as (receiver, _):
        await desk.taken.wait()
        await reached(lambda: in_hand(receiver, 0))
        assert await queue.receive(wait_s=6, max_messages=10) == []
    assert (len(desk.handled), await counts(queue)) == (1, (0, 1))
    assert SQS_MESSAGES.labels(queue.name, "retried")._value.get() == 1


async def test_receiver_finishes_what_is_in_hand_when_stopped(client: Client) -> None:
    queue, desk = await new_queue(client), Desk()
    await send(queue, "a")
    async with receiving(queue, desk, stop_wait_s=3) as (receiver, stopping):
        await desk.taken.wait()
        stopping.set()
        await reached(lambda: unparked(receiver))
        await send(queue, "b")
        desk.opened.set()
    assert ([message.body for message in desk.handled], await counts(queue)) == (["a"], (1, 0))


async def test_receiver_gives_back_what_a_late_poll_brings_when_stopped(client: Client) -> None:
    queue, desk = await new_queue(client), Desk()
    async with receiving(queue, desk, poll_wait_s=9, stop_wait_s=30) as (receiver, stopping):
        await reached(lambda: parked(receiver))
        stopping.set()
        await send(queue, "late")
    (again,) = await receive_all(queue, 1)
    assert (desk.handled, again.body, again.receive_count) == ([], "late", 2)


async def parked(receiver: QueueReceiver) -> bool:
    """Return whether a poll is under way."""
    return bool(receiver.stats()["polls"])


async def unparked(receiver: QueueReceiver) -> bool:
    """Return whether the last poll has ended."""
    return not receiver.stats()["polls"]


async def test_receiver_ends_soon_when_stopped_while_a_poll_is_parked(client: Client) -> None:
    queue = await new_queue(client)
    async with receiving(queue, Desk(), poll_wait_s=10, stop_wait_s=0.1) as (receiver, stopping):
        await reached(lambda: parked(receiver))
        started_at = asyncio.get_running_loop().time()
        stopping.set()
    assert asyncio.get_running_loop().time() - started_at < 7  # less than is left of the poll


async def test_receiver_goes_on_when_the_queue_comes_back(client: Client) -> None:
    queue, desk = await new_queue(client), Desk()
    desk.opened.set()
    await client.delete_queue(QueueUrl=queue.url)
    async with receiving(queue, desk) as (receiver, _):
        await reached(lambda: troubled(receiver))
        await client.create_queue(QueueName=queue.name)
        await send(queue, "a")
        await reached(lambda: emptied(queue))
        assert (len(desk.handled), receiver.last_error) == (1, None)


async def troubled(receiver: QueueReceiver) -> bool:
    """Return whether *receiver* has an error."""
    return receiver.last_error is not None
