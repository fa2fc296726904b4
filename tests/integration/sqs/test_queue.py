from __future__ import annotations

import asyncio
import itertools

import pytest
from support.aws.endpoints import REGION, client_of

from simplu_local.sqs.server import SqsServer
from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sqs_queue import Message, OutgoingMessage, Queue
from simplu_worker.errors import PermanentError, RetryableError

QUEUE_NUMBERS = itertools.count(1)


pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.6)]


async def new_queue(client: Client, **attributes: str) -> Queue:
    answer = await client.create_queue(QueueName=f"queue-{next(QUEUE_NUMBERS)}", Attributes=attributes)
    return Queue(client, answer["QueueUrl"])


async def send(queue: Queue, *bodies: str) -> None:
    for start in range(0, len(bodies), 10):
        assert await queue.send([OutgoingMessage(body=body) for body in bodies[start : start + 10]]) == {}


async def receive_all(queue: Queue, count: int) -> list[Message]:
    messages: list[Message] = []
    async with asyncio.timeout(30):
        while len(messages) < count:
            messages += await queue.receive(wait_s=1, max_messages=10)
    return messages


async def counts(queue: Queue) -> tuple[int, int]:
    attributes = await queue.read_attributes()
    return attributes.visible_count, attributes.in_flight_count


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


async def test_queue_deletes_more_than_one_batch(client: Client) -> None:
    queue = await new_queue(client)
    await send(queue, *map(str, range(23)))
    messages = await receive_all(queue, 23)
    assert await queue.delete([*messages, messages[0]]) == []
    assert await counts(queue) == (0, 0)


async def test_queue_refuses_when_it_does_not_exist(client: Client, server_url: str) -> None:
    queue = Queue(client, f"{server_url}/123456789012/missing")
    with pytest.raises(PermanentError, match=r"NonExistentQueue|QueueDoesNotExist"):
        await queue.receive(wait_s=0, max_messages=1)
    async with client_of("sqs", "http://127.0.0.1:1") as nowhere:
        with pytest.raises(RetryableError):
            await Queue(nowhere, "http://127.0.0.1:1/1/q").read_attributes()


async def test_t32_deletes_leave_while_fifty_polls_are_parked() -> None:
    server = SqsServer()
    async with (
        server.serve() as url,
        client_of("sqs", url) as client,
        open_client("sqs", region=REGION, endpoint_url=url, read_timeout_s=30, pool_size=60) as polls,
        asyncio.timeout(60),
    ):
        queue, empty = [Queue(client, (await new_queue(client)).url, poll_client=polls) for _ in range(2)]
        await send(queue, "a")
        (message,) = await queue.receive(wait_s=1, max_messages=1)
        parked = [asyncio.ensure_future(empty.receive(wait_s=20, max_messages=1)) for _ in range(50)]
        while server.state()["polls"] < 50:  # noqa: ASYNC110  # what changes is behind the network
            await asyncio.sleep(0.02)
        async with asyncio.timeout(15):  # less than is left of the polls
            assert await queue.change_visibility_batch([(message, 30)]) == []
            assert await queue.delete_batch([message]) == []
        for poll in parked:
            poll.cancel()
