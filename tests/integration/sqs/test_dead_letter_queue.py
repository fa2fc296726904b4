"""Dead letters reach their queue, however long it refuses or is silent."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import RETENTION_MAX_S
from simplu_worker.dead_letters.queue import DeadLetterQueue, ensure_default_queue
from simplu_worker.errors import ConfigurationError, RetryableError
from simplu_worker.instruments import DEAD_LETTERS
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.vocabulary import DeadLetterReason, Source

QUEUE_NUMBERS = itertools.count(1)
URL = "http://127.0.0.1:4566/000000000000/control-dead-letters"
MISSING = "AWS.SimpleQueueService.NonExistentQueue"

pytestmark = pytest.mark.usefixtures("aws_credentials")


async def new_url(client: Client, suffix: str = "", **attributes: str) -> str:
    name = f"dead-letters-{next(QUEUE_NUMBERS)}{suffix}"
    return str((await client.create_queue(QueueName=name, Attributes=attributes))["QueueUrl"])


async def stored(client: Client, url: str, count: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(messages) < count:
            answer = await client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1, MessageSystemAttributeNames=["All"]
            )
            messages += answer.get("Messages", [])
            if url.endswith(".fifo"):
                for message in answer.get("Messages", []):
                    await client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return messages


def letter(number: int = 1, record: bytes = b"{}", *, tenant: str = "b") -> DeadLetter:
    origin = Origin(
        source=Source.KINESIS,
        name="stream",
        arrived_at=datetime(2026, 1, 2, tzinfo=UTC),
        stream_shard_id="shardId-0",
        sequence_number=str(number),
        partition_key="key",
    )
    return DeadLetter(
        reason=DeadLetterReason.INVALID_JSON,
        error="expected JSON",
        origin=origin,
        failed_at=datetime(2026, 1, 2, tzinfo=UTC),
        attempts=1,
        record=record,
        business_id=tenant,
        location_id="l",
    )


async def test_store_returns_when_all_letters_are_in_the_queue(client: Client) -> None:
    url = await new_url(client)
    letters = DeadLetterQueue(client, url)
    await letters.read_limits()
    counted = DEAD_LETTERS.labels("invalid_json")._value.get()
    with capture_logs() as logs:
        await letters.store([letter(n, b'"private"', tenant=f"b{n % 2}") for n in range(23)], stopping=asyncio.Event())
    bodies = [json.loads(message["Body"]) for message in await stored(client, url, 23)]
    assert {body["source"]["sequenceNumber"] for body in bodies} == {str(n) for n in range(23)}
    assert DEAD_LETTERS.labels("invalid_json")._value.get() == counted + 23
    assert {(entry["event"], entry["business_id"]) for entry in logs} == {
        ("dead_letter.stored", "b0"),
        ("dead_letter.stored", "b1"),
    }
    assert (sum(entry["count"] for entry in logs), "private" in str(logs)) == (23, False)


async def test_store_waits_while_the_queue_refuses(client: Client) -> None:
    url = await new_url(client)
    await client.delete_queue(QueueUrl=url)
    letters = DeadLetterQueue(client, url, draw=lambda: 0.0)
    with capture_logs() as logs:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            storing = tasks.create_task(letters.store([letter()], stopping=asyncio.Event()))
            while not any(entry["event"] == "dead_letter.deferred" for entry in logs):  # noqa: ASYNC110  # a log
                await asyncio.sleep(0.02)
            assert not storing.done()
            await client.create_queue(QueueName=url.rsplit("/", 1)[-1])
    assert len(await stored(client, url, 1)) == 1


async def test_store_raises_when_stopped_before_all_is_stored() -> None:
    stopping = asyncio.Event()
    stopping.set()
    async with client_of("sqs", "http://127.0.0.1:1") as client:
        letters = DeadLetterQueue(client, "http://127.0.0.1:1/1/q")
        with pytest.raises(RetryableError, match="1 dead letters not stored"):
            await letters.store([letter()], stopping=stopping)


async def test_store_sends_failed_entries_again() -> None:
    aws = ScriptedAws()
    async with aws.running() as url, client_of("sqs", url) as client:
        letters = DeadLetterQueue(client, f"{url}/1/q", draw=lambda: 0.0)
        failed = [{"Id": name, "SenderFault": False, "Code": "InternalError"} for name in ("0", "2")]
        aws.answer({"Successful": [], "Failed": failed})
        aws.answer({"Attributes": {"MaximumMessageSize": "262144"}})
        aws.answer({"Successful": [], "Failed": []})
        await letters.store([letter(n) for n in range(3)], stopping=asyncio.Event())
    sent = [
        [json.loads(entry["MessageBody"])["source"]["sequenceNumber"] for entry in body["Entries"]]
        for operation, body in aws.requests
        if operation == "SendMessageBatch"
    ]
    assert sent == [["0", "1", "2"], ["0", "2"]]


async def test_store_fits_letters_to_the_queue(client: Client) -> None:
    url = await new_url(client, MaximumMessageSize="4096")
    record = random.Random(1).randbytes(20_000)
    await DeadLetterQueue(client, url, draw=lambda: 0.0).store([letter(1, record)], stopping=asyncio.Event())
    (message,) = await stored(client, url, 1)
    body = json.loads(message["Body"])
    assert (len(message["Body"]) <= 4096, body["truncated"], body["recordBytes"]) == (True, True, 20_000)


@pytest.mark.slow(2)
async def test_default_queue_is_created_once_and_keeps_for_two_weeks(client: Client) -> None:
    control = (await client.create_queue(QueueName="control"))["QueueUrl"]
    url = f"{control}-dead-letters"

    await ensure_default_queue(client, url, asyncio.Event())

    first = (await client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
    assert first["MessageRetentionPeriod"] == str(RETENTION_MAX_S)
    assert first.get("SqsManagedSseEnabled") == "true"
    await client.set_queue_attributes(QueueUrl=url, Attributes={"MessageRetentionPeriod": "3600"})
    await ensure_default_queue(client, url, asyncio.Event())
    again = (await client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
    assert again["MessageRetentionPeriod"] == "3600"


@pytest.mark.slow
async def test_default_queue_of_another_account_is_a_wrong_setting(client: Client) -> None:
    with pytest.raises(ConfigurationError, match=r"SQS_DEAD_LETTER_QUEUE_URL: .* of another account"):
        await ensure_default_queue(client, "http://127.0.0.1/999999999999/control-dead-letters", asyncio.Event())


async def test_default_queue_that_may_not_be_made_is_a_wrong_setting() -> None:
    aws = ScriptedAws()
    aws.refuse(MISSING)
    aws.refuse("AccessDenied")
    async with aws.running() as url, client_of("sqs", url) as client:
        with pytest.raises(ConfigurationError, match=r"AccessDenied.*allow sqs:GetQueueUrl and sqs:CreateQueue"):
            await ensure_default_queue(client, URL, asyncio.Event())


async def test_default_queue_is_created_where_sqs_knows_no_encryption() -> None:
    aws = ScriptedAws()
    aws.refuse(MISSING)
    aws.refuse("InvalidAttributeName")
    aws.answer({"QueueUrl": URL})
    async with aws.running() as url, client_of("sqs", url) as client:
        await ensure_default_queue(client, URL, asyncio.Event())
    asked = [(operation, "SqsManagedSseEnabled" in body.get("Attributes", {})) for operation, body in aws.requests]
    assert asked == [("GetQueueUrl", False), ("CreateQueue", True), ("CreateQueue", False)]


@pytest.mark.slow
async def test_default_queue_is_waited_for_while_sqs_does_not_answer() -> None:
    aws, stopping, failures = ScriptedAws(), asyncio.Event(), list[int]()
    for _ in range(2):
        aws.script.append((503, {"__type": "ServiceUnavailable", "message": "later"}))
    aws.answer({"QueueUrl": URL})
    async with aws.running() as url, client_of("sqs", url) as client:
        tell = partial(failures.append, 1)
        await ensure_default_queue(client, URL, stopping, on_failure=tell, draw=lambda: 0.0)
        assert len(aws.requests) == 3
        stopping.set()
        await ensure_default_queue(client, URL, stopping)
    assert len(aws.requests) == 3
    assert len(failures) == 2
