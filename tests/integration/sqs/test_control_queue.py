from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings

from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.consumers.sqs.control_handler import ControlHandler
from simplu_worker.consumers.sqs.receive.failure_counts import FailureCounts
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import RetryRules
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.errors import RetryableError
from simplu_worker.shards.types import (
    ChangeResult,
    DestructionResult,
    FailedOnShardError,
    ProvisionAnswer,
    ProvisionRequest,
    ProvisionResult,
)

QUEUE_NUMBERS = itertools.count(1)
CREATION = {"businessId": "b", "locationId": "l", "businessType": "dental", "timestamp": "2026-01-02T03:04:05Z"}


class RecordingShards:
    def __init__(self, *script: ProvisionResult | Exception) -> None:
        self.requests: list[ProvisionRequest] = []
        self.failures: Counter[tuple[str, str]] = Counter()
        self._script = deque(script)

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        self.requests += requests
        return [self._script.popleft() if self._script else ProvisionResult.PROVISIONED for _ in requests]

    async def destroy(self, *_: object) -> DestructionResult:
        return DestructionResult.UNKNOWN

    async def destroy_all(self, *_: object) -> dict[str, DestructionResult]:
        return {"l": DestructionResult.DESTROYING}

    async def rename(self, *_: object, **__: object) -> ChangeResult:
        return ChangeResult.APPLIED

    async def add_admin(self, *_: object, **__: object) -> ChangeResult:
        return ChangeResult.APPLIED

    async def count_failures(self, shard_id: str, failed: Sequence[tuple[str, str]]) -> list[int | None]:
        self.failures.update(failed)
        return [self.failures[key] for key in failed]

    async def forget_failures(self, shard_id: str, tenant_id: str, message_id: str) -> None:
        del self.failures[tenant_id, message_id]


pytestmark = pytest.mark.usefixtures("aws_credentials")


class Desk:
    def __init__(self, client: Client, control: Queue, letters: Queue) -> None:
        self.client = client
        self.control = control
        self.letters = letters

    async def send(self, body: str, **attributes: str) -> None:
        named = {name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()}
        await self.client.send_message(QueueUrl=self.control.url, MessageBody=body, MessageAttributes=named)

    async def counts(self) -> tuple[int, int, int]:
        control, letters = await self.control.read_attributes(), await self.letters.read_attributes()
        return control.visible_count, control.in_flight_count, letters.visible_count

    async def reaches(self, *expected: int) -> None:
        await until(lambda: self._are(expected))

    async def letter(self) -> dict[str, Any]:
        (message,) = await self.letters.receive(wait_s=1, max_messages=1)
        body: dict[str, Any] = json.loads(message.body)
        return body

    async def _are(self, expected: tuple[int, ...]) -> bool:
        return await self.counts() == expected


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # the server has nothing to await
            await asyncio.sleep(0.05)


@pytest.fixture
async def desk(endpoint_url: str) -> AsyncIterator[Desk]:
    async with client_of("sqs", endpoint_url) as client:
        number = next(QUEUE_NUMBERS)
        urls = [
            (await client.create_queue(QueueName=f"{name}-{number}"))["QueueUrl"] for name in ("control", "letters")
        ]
        yield Desk(client, *(Queue(client, url) for url in urls))


@asynccontextmanager
async def consuming(
    desk: Desk, shards: RecordingShards, *, stop_wait_s: float = 0.05, tenant_wait: timedelta = timedelta()
) -> AsyncIterator[list[Any]]:
    stopping = asyncio.Event()
    retries = RetryRules((0, 0), tenant_wait)
    failures = FailureCounts(shards)
    handler = ControlHandler(shards, shards, shards, failures, desk.control, retries=retries, draw=lambda: 0.0)
    letters = DeadLetterQueue(desk.client, desk.letters.url)
    receiver = QueueReceiver(desk.control, handler, letters, receiver_settings(poll_wait_s=1, stop_wait_s=stop_wait_s))
    with capture_logs() as logs:
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            tasks.create_task(receiver.run(stopping))
            yield logs
            stopping.set()


def logged(logs: list[Any], event: str) -> list[dict[str, Any]]:
    return [entry for entry in logs if entry["event"] == event]


async def test_creation_is_provisioned_and_deleted(desk: Desk) -> None:
    shards = RecordingShards()
    await desk.send(json.dumps(CREATION), MessageType="SHARD_CREATION")
    async with consuming(desk, shards) as logs:
        await desk.reaches(0, 0, 0)
    (request,) = shards.requests
    assert (request.tenant_id, request.business_type, request.requested_at.isoformat()) == (
        "b-l",
        "dental",
        "2026-01-02T03:04:05+00:00",
    )
    (entry,) = logged(logs, "control.applied")
    assert (entry["business_id"], entry["location_id"], entry["result"]) == ("b", "l", "provisioned")


@pytest.mark.slow(1)
async def test_creation_comes_again_when_a_dependency_is_in_trouble(desk: Desk) -> None:
    shards = RecordingShards(*(RetryableError("citrus is down") for _ in range(2)))
    await desk.send(json.dumps(CREATION))
    async with consuming(desk, shards) as logs:
        await desk.reaches(0, 0, 0)
    assert (len(shards.requests), await desk.counts()) == (3, (0, 0, 0))
    assert [entry["error"] for entry in logged(logs, "control.deferred")] == ["citrus is down"] * 2


async def test_creation_becomes_a_dead_letter_after_the_last_delay(desk: Desk) -> None:
    failed = FailedOnShardError("KeyError", shard_id="shard-1", tenant_id="b-l")
    shards = RecordingShards(*(failed for _ in range(3)))
    await desk.send(json.dumps(CREATION))
    async with consuming(desk, shards) as logs:
        await desk.reaches(0, 0, 1)
    letter = await desk.letter()
    assert (letter["reason"], letter["attempts"], letter["error"]) == (
        "retries_exhausted",
        3,
        "it failed 3 times: KeyError",
    )
    assert [entry["receive_count"] for entry in logged(logs, "control.failed")] == [1, 1, 1]
    assert shards.failures == Counter()


@pytest.mark.slow
async def test_message_waits_while_the_dead_letter_queue_refuses(desk: Desk) -> None:
    await desk.client.delete_queue(QueueUrl=desk.letters.url)
    await desk.send("{")
    async with consuming(desk, RecordingShards(), stop_wait_s=3) as logs:
        await until(lambda: deferred(logs))
    (again,) = await desk.control.receive(wait_s=1, max_messages=1)
    assert (again.body, again.receive_count) == ("{", 2)


async def deferred(logs: list[Any]) -> bool:
    return bool(logged(logs, "dead_letter.deferred"))
