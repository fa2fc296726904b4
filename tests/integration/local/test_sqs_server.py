"""The local SQS over HTTP, for a client of AWS: its protocol, and the commands of its control path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError
from support.aws.endpoints import client_of

from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.sqs.faults import SqsFault
from simplu_local.sqs.server import serve_sqs
from simplu_worker.aws.clients import Client

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve_sqs() as url:
        yield url


@pytest.fixture
async def sqs(url: str) -> AsyncIterator[Client]:
    async with client_of("sqs", url) as client:
        await client.create_queue(QueueName="queue")
        await client.create_queue(QueueName="queue.fifo", Attributes={"FifoQueue": "true"})
        yield client


async def send(sqs: Client, url: str, *bodies: str, name: str = "queue") -> None:
    for body in bodies:
        ids = {"MessageGroupId": "A", "MessageDeduplicationId": body} if name.endswith(".fifo") else {}
        await sqs.send_message(QueueUrl=queue_url(url, name), MessageBody=body, **ids)


async def receive(sqs: Client, url: str, name: str = "queue", **more: Any) -> list[dict[str, Any]]:
    answer = await sqs.receive_message(QueueUrl=queue_url(url, name), MaxNumberOfMessages=10, **more)
    return list(answer.get("Messages", []))


async def bodies(sqs: Client, url: str, name: str = "queue", **more: Any) -> list[str]:
    return [message["Body"] for message in await receive(sqs, url, name, **more)]


def queue_url(url: str, name: str = "queue") -> str:
    return f"{url}/123456789012/{name}"


async def parked(url: str, count: int) -> bool:
    return bool((await send_commands(url))["polls"] == count)


@pytest.mark.parametrize(("applied", "expected"), [(False, []), (True, ["cut"])])
async def test_cut_loses_the_request_or_only_its_answer(
    url: str, sqs: Client, *, applied: bool, expected: list[str]
) -> None:
    await send_commands(url, SqsFault(action="SendMessage", kind="cut", applied=applied))
    with pytest.raises(BotoCoreError):
        await send(sqs, url, "cut")
    assert await bodies(sqs, url) == expected


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
