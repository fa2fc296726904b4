"""The same tests of the local SQS and of two others, so that a misreading of the API is not only ours."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from support.aws.endpoints import CREDENTIALS, client_of
from support.aws.servers import SQS, running_servers

from simplu_worker.aws.clients import Client

pytestmark = pytest.mark.slow

Test = TypeVar("Test", bound=Callable[..., Any])
ALL = ("ours", "moto", "ministack")


def on(*names: str) -> Callable[[Test], Test]:
    mark: Callable[[Test], Test] = pytest.mark.parametrize("endpoint_url", names, indirect=True)
    return mark


@pytest.fixture(scope="module")
def url_of() -> Iterator[Callable[[str], str]]:
    with running_servers(SQS) as url_of:
        yield url_of


@pytest.fixture
def endpoint_url(url_of: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    return url_of(request.param)


@pytest.fixture
async def client(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with client_of("sqs", endpoint_url) as opened:
        yield opened


class Queue:
    def __init__(self, client: Client, url: str) -> None:
        self.client = client
        self.url = url

    @classmethod
    async def make(cls, client: Client, *, fifo: bool = False, **attributes: str) -> Queue:
        name = f"queue-{uuid4()}" + (".fifo" if fifo else "")
        if fifo:
            attributes["FifoQueue"] = "true"
        made = await client.create_queue(QueueName=name, Attributes=attributes)
        return cls(client, made["QueueUrl"])

    @classmethod
    async def make_with_redrive(cls, client: Client, most: int, *, fifo: bool = False) -> tuple[Queue, Queue]:
        letters = await cls.make(client, fifo=fifo)
        policy = {"deadLetterTargetArn": await letters.attribute("QueueArn"), "maxReceiveCount": str(most)}
        return await cls.make(client, fifo=fifo, RedrivePolicy=json.dumps(policy)), letters

    async def attribute(self, name: str) -> str:
        answer = await self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])
        return str(answer["Attributes"][name])

    async def counts(self) -> tuple[int, int, int]:
        answer = await self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        found = answer["Attributes"]
        return (
            int(found["ApproximateNumberOfMessages"]),
            int(found["ApproximateNumberOfMessagesNotVisible"]),
            int(found["ApproximateNumberOfMessagesDelayed"]),
        )

    async def send(self, *bodies: str, **more: Any) -> None:
        for body in bodies:
            ids = {"MessageGroupId": body[0], "MessageDeduplicationId": body} if self.url.endswith(".fifo") else {}
            await self.client.send_message(QueueUrl=self.url, MessageBody=body, **(ids | more))

    async def receive(self, most: int = 10, **more: Any) -> list[dict[str, Any]]:
        more = {"WaitTimeSeconds": 0} | more
        answer = await self.client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=most,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
            **more,
        )
        return list(answer.get("Messages", []))

    async def bodies(self, most: int = 10, **more: Any) -> list[str]:
        return [message["Body"] for message in await self.receive(most, **more)]

    async def delete(self, message: dict[str, Any]) -> None:
        await self.client.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])

    async def change(self, message: dict[str, Any], visibility_s: int) -> None:
        await self.client.change_message_visibility(
            QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=visibility_s
        )

    async def delete_batch(self, handles: dict[str, str]) -> dict[str, Any]:
        entries = [{"Id": name, "ReceiptHandle": handle} for name, handle in handles.items()]
        answer: dict[str, Any] = await self.client.delete_message_batch(QueueUrl=self.url, Entries=entries)
        return answer


async def code_of(awaitable: Any) -> str:
    with pytest.raises(ClientError) as caught:
        await awaitable
    return str(caught.value.response["Error"]["Code"])


def count_of(message: dict[str, Any]) -> int:
    return int(message["Attributes"]["ApproximateReceiveCount"])


@on(*ALL)
async def test_message_comes_as_it_was_sent(client: Client) -> None:
    queue = await Queue.make(client)
    body = 'Zażółć {"a": "\\u0000"} \U0001f600\t\r\n'
    attributes = {
        "Kind": {"DataType": "String", "StringValue": "ORDER"},
        "Count": {"DataType": "Number.int", "StringValue": "7"},
        "Bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    sent = await client.send_message(QueueUrl=queue.url, MessageBody=body, MessageAttributes=attributes)
    (message,) = await queue.receive()
    digest = hashlib.md5(body.encode()).hexdigest()
    assert (message["Body"], message["MessageAttributes"]) == (body, attributes)
    assert (sent["MD5OfMessageBody"], message["MD5OfBody"]) == (digest, digest)
    assert sent["MD5OfMessageAttributes"] == "97500c99d3d4fd82bae40cd874a2cb0e"  # all three agree
    assert message["MessageId"] == sent["MessageId"]
    system = message["Attributes"]
    assert 0 <= int(system["ApproximateFirstReceiveTimestamp"]) - int(system["SentTimestamp"]) < 10_000


@on("ours", "ministack")
async def test_message_with_a_forbidden_character_is_refused(client: Client) -> None:
    queue = await Queue.make(client)
    assert await code_of(queue.send("a\x00b")) == "InvalidMessageContents"
    assert await code_of(queue.send("a\ufffeb")) == "InvalidMessageContents"


@on(*ALL)
async def test_message_is_refused_when_too_large(client: Client) -> None:
    queue = await Queue.make(client, MaximumMessageSize="1024")
    await queue.send("x" * 1024)
    assert await code_of(queue.send("x" * 1025)) == "InvalidParameterValue"


@on(*ALL)
async def test_poll_waits_and_ends_with_the_first_message(client: Client) -> None:
    loop = asyncio.get_running_loop()
    queue = await Queue.make(client, ReceiveMessageWaitTimeSeconds="1")
    started = loop.time()
    answer = await client.receive_message(QueueUrl=queue.url)
    assert (answer.get("Messages"), 0.9 < loop.time() - started < 10) == (None, True)
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(queue.bodies(WaitTimeSeconds=9))
        await asyncio.sleep(0.3)
        await queue.send("here")
        started = loop.time()
    assert (poll.result(), loop.time() - started < 7) == (["here"], True)


@on(*ALL)
async def test_delayed_message_comes_later(client: Client) -> None:
    queue = await Queue.make(client, DelaySeconds="3")
    await queue.send("late")
    await queue.send("at once", DelaySeconds=0)
    assert await queue.counts() == (1, 0, 1)
    assert await queue.bodies() == ["at once"]
    assert await queue.bodies(WaitTimeSeconds=9) == ["late"]


@on(*ALL)
async def test_message_comes_again_when_its_visibility_timeout_ends(client: Client) -> None:
    queue = await Queue.make(client, VisibilityTimeout="3")
    await queue.send("a")
    (first,) = await queue.receive()
    assert (await queue.receive(), await queue.counts()) == ([], (0, 1, 0))
    (second,) = await queue.receive(WaitTimeSeconds=9)
    assert (second["MessageId"], count_of(first), count_of(second)) == (first["MessageId"], 1, 2)
    assert second["ReceiptHandle"] != first["ReceiptHandle"]
    times = [message["Attributes"]["ApproximateFirstReceiveTimestamp"] for message in (first, second)]
    assert times[0] == times[1]


@on("ours", "moto")
async def test_delete_works_once_and_again(client: Client) -> None:
    queue = await Queue.make(client)
    await queue.send("a")
    (message,) = await queue.receive()
    await queue.delete(message)
    await queue.delete(message)
    assert await queue.counts() == (0, 0, 0)


@on(*ALL)
@pytest.mark.parametrize(
    ("ids", "code"),
    [
        ([], "EmptyBatchRequest"),
        ([str(number) for number in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
    ],
)
async def test_batch_is_refused_as_a_whole(client: Client, ids: list[str], code: str) -> None:
    queue = await Queue.make(client)
    entries = [{"Id": name, "MessageBody": "x"} for name in ids]
    refused = client.send_message_batch(QueueUrl=queue.url, Entries=entries)
    assert await code_of(refused) == f"AWS.SimpleQueueService.{code}"


@on(*ALL)
async def test_group_is_locked_while_one_of_it_is_in_flight(client: Client) -> None:
    queue = await Queue.make(client, fifo=True)
    await queue.send("A0", "B0", "A1", "A2")
    (first,) = await queue.receive(1)
    assert (first["Body"], first["Attributes"]["MessageGroupId"]) == ("A0", "A")
    assert await queue.bodies() == ["B0"]
    assert await queue.bodies() == []
    await queue.delete(first)
    assert await queue.bodies() == ["A1", "A2"]


@on("ours", "ministack")
async def test_repeated_message_is_dropped_for_five_minutes(client: Client) -> None:
    queue = await Queue.make(client, fifo=True, ContentBasedDeduplication="true")
    ids = {"QueueUrl": queue.url, "MessageGroupId": "A"}
    first = await client.send_message(MessageBody="x", **ids)
    (message,) = await queue.receive()
    await queue.delete(message)
    again = await client.send_message(MessageBody="x", **ids)
    assert (again["MessageId"], await queue.bodies()) == (first["MessageId"], [])
    await client.send_message(MessageBody="x", MessageDeduplicationId="1", **ids)
    await client.send_message(MessageBody="y", MessageDeduplicationId="1", **ids)
    assert await queue.bodies() == ["x"]


@on(*ALL)
async def test_fifo_queue_wants_its_ids(client: Client) -> None:
    queue = await Queue.make(client, fifo=True)
    no_group = client.send_message(QueueUrl=queue.url, MessageBody="x", MessageDeduplicationId="1")
    assert await code_of(no_group) == "MissingParameter"
    no_id = client.send_message(QueueUrl=queue.url, MessageBody="x", MessageGroupId="A")
    assert await code_of(no_id) == "InvalidParameterValue"
    assert await code_of(queue.send("A0", DelaySeconds=5)) == "InvalidParameterValue"


@on("ours", "ministack")
async def test_earlier_receipt_is_refused_by_a_fifo_queue(client: Client) -> None:
    queue = await Queue.make(client, fifo=True)
    await queue.send("A0")
    (first,) = await queue.receive(VisibilityTimeout=0)
    (second,) = await queue.receive()
    for refused in (queue.delete(first), queue.change(first, 30)):
        assert await code_of(refused) in {"InvalidParameterValue", "ReceiptHandleIsInvalid"}
    (failed,) = (await queue.delete_batch({"x": first["ReceiptHandle"]}))["Failed"]
    await queue.delete(second)
    assert (failed["SenderFault"], await queue.counts()) == (True, (0, 0, 0))


@on(*ALL)
@pytest.mark.parametrize("fifo", [False, True])
async def test_message_is_a_dead_letter_when_received_too_often(client: Client, *, fifo: bool) -> None:
    queue, letters = await Queue.make_with_redrive(client, 2, fifo=fifo)
    attributes = {"Kind": {"DataType": "String", "StringValue": "ORDER"}}
    await queue.send("A0", MessageAttributes=attributes)
    (message,) = await queue.receive(VisibilityTimeout=0)
    assert await queue.bodies(VisibilityTimeout=0) == ["A0"]
    assert await queue.bodies() == []
    (letter,) = await letters.receive()
    assert (letter["MessageId"], letter["MessageAttributes"]) == (message["MessageId"], attributes)
    assert await queue.counts() == (0, 0, 0)


@on(*ALL)
async def test_missing_queue_is_not_found(client: Client) -> None:
    queue = await Queue.make(client)
    await client.delete_queue(QueueUrl=queue.url)
    for call in (queue.receive(), queue.send("x"), queue.counts(), client.get_queue_url(QueueName="missing")):
        with pytest.raises(client.exceptions.QueueDoesNotExist) as caught:
            await call
        assert caught.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"


@on(*ALL)
async def test_queue_is_found_by_its_name(client: Client) -> None:
    queue = await Queue.make(client, VisibilityTimeout="77")
    name = queue.url.rpartition("/")[2]
    assert (await client.get_queue_url(QueueName=name))["QueueUrl"] == queue.url
    assert (await client.list_queues(QueueNamePrefix=name))["QueueUrls"] == [queue.url]
    assert not (await client.list_queues(QueueNamePrefix="missing")).get("QueueUrls")
    again = await client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "77"})
    assert again["QueueUrl"] == queue.url
    other = client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "78"})
    assert await code_of(other) == "QueueAlreadyExists"


@on("ours", "ministack")
async def test_receivers_at_once_get_each_message_once(client: Client) -> None:
    queue, seen = await Queue.make(client, VisibilityTimeout="300"), Counter[str]()
    for start in range(0, 400, 10):
        entries = [{"Id": str(number), "MessageBody": f"{start + number}"} for number in range(10)]
        await client.send_message_batch(QueueUrl=queue.url, Entries=entries)

    async def receive() -> None:
        while messages := await queue.receive():
            seen.update(message["Body"] for message in messages)
            await queue.delete_batch({str(n): message["ReceiptHandle"] for n, message in enumerate(messages)})

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(receive())
    assert (len(seen), set(seen.values()), await queue.counts()) == (400, {1}, (0, 0, 0))
