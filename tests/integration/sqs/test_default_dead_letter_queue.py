from __future__ import annotations

import asyncio
from functools import partial

import pytest
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import RETENTION_MAX_S
from simplu_worker.dead_letters.queue import ensure_default_queue
from simplu_worker.errors import ConfigurationError

URL = "http://127.0.0.1:4566/000000000000/control-dead-letters"
MISSING = "AWS.SimpleQueueService.NonExistentQueue"

pytestmark = pytest.mark.usefixtures("aws_credentials")


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
