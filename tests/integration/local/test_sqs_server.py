"""The local SQS over HTTP, for a client of AWS: its protocol, and the commands of its control path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from botocore.exceptions import BotoCoreError, ClientError
from support.aws.endpoints import client_of

from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.sqs.faults import ExpireReceipts, SqsFault
from simplu_local.sqs.server import serve_sqs
from simplu_worker.aws.clients import Client

pytestmark = pytest.mark.usefixtures("aws_credentials")
NAMES = ("queue", "queue.fifo")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Run an empty server."""
    async with serve_sqs() as url:
        yield url


@pytest.fixture
async def sqs(url: str) -> AsyncIterator[Client]:
    """Open a client of that server, which has a standard and a FIFO queue."""
    async with client_of("sqs", url) as client:
        await client.create_queue(QueueName="queue")
        await client.create_queue(QueueName="queue.fifo", Attributes={"FifoQueue": "true"})
        yield client


async def send(sqs: Client, url: str, *bodies: str, name: str = "queue") -> None:
    """Send messages, in a FIFO queue all in one group."""
    for body in bodies:
        ids = {"MessageGroupId": "A", "MessageDeduplicationId": body} if name.endswith(".fifo") else {}
        await sqs.send_message(QueueUrl=queue_url(url, name), MessageBody=body, **ids)


async def receive(sqs: Client, url: str, name: str = "queue", **more: Any) -> list[dict[str, Any]]:
    """Receive up to ten messages."""
    answer = await sqs.receive_message(QueueUrl=queue_url(url, name), MaxNumberOfMessages=10, **more)
    return list(answer.get("Messages", []))


async def bodies(sqs: Client, url: str, name: str = "queue", **more: Any) -> list[str]:
    """Receive once; return the bodies of the messages."""
    return [message["Body"] for message in await receive(sqs, url, name, **more)]


def queue_url(url: str, name: str = "queue") -> str:
    """Return the URL of a queue."""
    return f"{url}/123456789012/{name}"


async def delete(sqs: Client, url: str, messages: list[dict[str, Any]], name: str = "queue") -> dict[str, Any]:
    """Delete messages in one batch, with their indexes as ids; return the answer."""
    entries = [{"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)]
    answer: dict[str, Any] = await sqs.delete_message_batch(QueueUrl=queue_url(url, name), Entries=entries)
    return answer


async def code_of(awaitable: Any) -> tuple[str, int]:
    """Return the code and the HTTP status that a call fails with."""
    with pytest.raises(ClientError) as caught:
        await awaitable
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


async def parked(url: str, count: int) -> bool:
    """Return whether *count* polls wait."""
    return bool((await send_commands(url))["polls"] == count)


async def test_error_names_shape_and_older_code(url: str) -> None:
    headers = {"X-Amz-Target": "AmazonSQS.ReceiveMessage", "Content-Type": "application/x-amz-json-1.0"}
    async with (
        ClientSession() as session,
        session.post(url, json={"QueueUrl": queue_url(url, "missing")}, headers=headers) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json(content_type=None))["__type"] == "com.amazonaws.sqs#QueueDoesNotExist"
        assert answer.headers["x-amzn-query-error"] == "AWS.SimpleQueueService.NonExistentQueue;Sender"
        assert answer.content_type == "application/x-amz-json-1.0"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SqsFault(action="SendMessage", kind="throttle"), ("RequestThrottled", 400)),
        (SqsFault(action="SendMessage", kind="fail"), ("InternalFailure", 500)),
        (SqsFault(action="SendMessage", kind="fail", status=503), ("InternalFailure", 503)),
        (SqsFault(action="SendMessage", kind="fail", code="OverLimit"), ("OverLimit", 400)),
        (SqsFault(action="SendMessage", kind="fail", code="KmsDisabled"), ("KMS.DisabledException", 400)),
    ],
)
async def test_fault_refuses_the_next_calls_only(
    url: str, sqs: Client, fault: SqsFault, expected: tuple[str, int]
) -> None:
    await send_commands(url, fault)
    assert await code_of(send(sqs, url, "refused")) == expected
    await send(sqs, url, "taken")
    assert await bodies(sqs, url) == ["taken"]


async def test_fault_may_be_for_one_queue_alone(url: str, sqs: Client) -> None:
    await send_commands(url, SqsFault(action="SendMessage", kind="throttle", queue="queue.fifo"))
    await send(sqs, url, "taken")
    assert await code_of(send(sqs, url, "x", name="queue.fifo")) == ("RequestThrottled", 400)


@pytest.mark.parametrize(("applied", "expected"), [(False, []), (True, ["cut"])])
async def test_cut_loses_the_request_or_only_its_answer(
    url: str, sqs: Client, *, applied: bool, expected: list[str]
) -> None:
    await send_commands(url, SqsFault(action="SendMessage", kind="cut", applied=applied))
    with pytest.raises(BotoCoreError):
        await send(sqs, url, "cut")
    assert await bodies(sqs, url) == expected


async def test_lost_answer_of_a_receive_is_had_again_by_its_attempt_id(url: str, sqs: Client) -> None:
    await send(sqs, url, "a", "b", name="queue.fifo")
    await send_commands(url, SqsFault(action="ReceiveMessage", kind="cut", applied=True))
    with pytest.raises(BotoCoreError):
        await receive(sqs, url, "queue.fifo", ReceiveRequestAttemptId="1")
    assert await bodies(sqs, url, "queue.fifo") == []
    assert await bodies(sqs, url, "queue.fifo", ReceiveRequestAttemptId="1") == ["a", "b"]


async def test_hang_lasts_until_the_faults_are_cleared(url: str, sqs: Client) -> None:
    await send_commands(url, SqsFault(action="ReceiveMessage", kind="hang"))
    await send(sqs, url, "a")

    async def asked() -> bool:
        return "ReceiveMessage" in (await send_commands(url))["calls"]

    async with asyncio.TaskGroup() as tasks:
        late = tasks.create_task(bodies(sqs, url))
        assert await poll_until(asked, within_s=5)
        assert not late.done()
        await send_commands(url, ClearFaults())
    assert late.result() == ["a"]


@pytest.mark.parametrize("sender_fault", [False, True])
async def test_entries_of_a_batch_fail_on_demand(url: str, sqs: Client, *, sender_fault: bool) -> None:
    await send(sqs, url, *"abcd")
    messages = await receive(sqs, url)
    await send_commands(
        url, SqsFault(action="DeleteMessageBatch", kind="entries", entries=3, sender_fault=sender_fault)
    )
    answer = await delete(sqs, url, messages)
    assert [entry["Id"] for entry in answer["Successful"]] == ["3"]
    failed = [(entry["Id"], entry["SenderFault"], entry["Code"]) for entry in answer["Failed"]]
    assert failed == [(str(number), sender_fault, "InternalError") for number in range(3)]
    assert (await delete(sqs, url, messages))["Successful"] == [{"Id": str(number)} for number in range(4)]


async def test_entries_may_be_named_as_failed_and_done(url: str, sqs: Client) -> None:
    await send(sqs, url, *"ab")
    await send_commands(url, SqsFault(action="DeleteMessageBatch", kind="entries", entries=1, applied=True))
    answer = await delete(sqs, url, await receive(sqs, url))
    assert ([entry["Id"] for entry in answer["Failed"]], len(answer["Successful"])) == (["0"], 1)
    assert (await send_commands(url))["queues"]["queue"]["ApproximateNumberOfMessagesNotVisible"] == "0"


async def test_duplicate_gives_a_message_out_twice(url: str, sqs: Client) -> None:
    await send(sqs, url, "a")
    await send_commands(url, SqsFault(action="ReceiveMessage", kind="duplicate"))
    first, second = await receive(sqs, url), await receive(sqs, url)
    assert [message["MessageId"] for message in first] == [message["MessageId"] for message in second]
    assert first[0]["ReceiptHandle"] != second[0]["ReceiptHandle"]
    assert await receive(sqs, url) == []


@pytest.mark.parametrize(("name", "code"), [("queue", None), ("queue.fifo", "InvalidParameterValue")])
async def test_receipts_expire_on_demand(url: str, sqs: Client, name: str, code: str | None) -> None:
    await send(sqs, url, "a", "b", name=name)
    messages = await receive(sqs, url, name)
    await send_commands(url, ExpireReceipts(queue=name))
    answer = await delete(sqs, url, messages, name)
    assert {entry["Code"] for entry in answer.get("Failed", [])} == ({code} if code else set())
    assert await bodies(sqs, url, name) == (["a", "b"] if code else [])


async def test_clock_goes_forward_on_demand(url: str, sqs: Client) -> None:
    await send(sqs, url, "a")
    await receive(sqs, url, VisibilityTimeout=3600)
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(bodies(sqs, url, WaitTimeSeconds=9))
        assert await poll_until(lambda: parked(url, 1), within_s=5)
        await send_commands(url, AdvanceClock(ms=3_600_000))
    assert poll.result() == ["a"]


async def test_poll_wakes_when_a_group_is_unlocked(url: str, sqs: Client) -> None:
    await send(sqs, url, "a", "b", name="queue.fifo")
    answer = await sqs.receive_message(QueueUrl=queue_url(url, "queue.fifo"))
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(bodies(sqs, url, "queue.fifo", WaitTimeSeconds=9))
        assert await poll_until(lambda: parked(url, 1), within_s=5)
        await delete(sqs, url, answer["Messages"], "queue.fifo")
    assert poll.result() == ["b"]


@pytest.mark.parametrize(("outlive", "expected"), [(False, ["a"]), (True, [])])
async def test_poll_whose_client_is_gone_takes_nothing_unless_told(
    url: str, sqs: Client, *, outlive: bool, expected: list[str]
) -> None:
    await send_commands(url, SetOptions(options={"polls_outlive_clients": outlive}))
    poll = asyncio.ensure_future(bodies(sqs, url, WaitTimeSeconds=9))
    assert await poll_until(lambda: parked(url, 1), within_s=5)
    poll.cancel()
    assert await poll_until(lambda: parked(url, int(outlive)), within_s=5)
    await send(sqs, url, "a")
    assert await poll_until(lambda: parked(url, 0), within_s=5)
    assert await bodies(sqs, url) == expected


async def test_wrong_commands_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        await send_commands(url, ExpireReceipts(queue="missing"))
    with pytest.raises(ValueError, match="Expected `bool`"):
        await send_commands(url, SetOptions(options={"polls_outlive_clients": "perhaps"}))
