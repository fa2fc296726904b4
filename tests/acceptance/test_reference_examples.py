"""The examples of the texts that this program was written from, as they are written there: what becomes of each.

The environment is that of the first text: a queue, Citrus, and neither a region nor a queue for dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import aiohttp
import pytest

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.aws import STREAM_NAME
from simplu_local.stack.stack import Stack

pytestmark = pytest.mark.slow(12)

PATIENCE_S: Final = 20.0
TENANT: Final = {"businessId": "business-123", "locationId": "location-456"}
# What the texts leave to the environment of whoever runs the worker: where emulators are, keys, and this tenant.
KEPT: Final = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY", "AWS_SECRET", "DYNAMODB", "CITRUS_", "HTTP_", "KINESIS_STREAM")

SHARD_CREATION: Final[dict[str, Any]] = {**TENANT, "businessType": "dental", "shardId": "", "connectionString": ""}
APPOINTMENT: Final = {**TENANT, "resourceType": "appointment"}
RECORDS: Final[dict[str, dict[str, Any]]] = {
    "req-uuid-123": {
        "operation": "create",
        **APPOINTMENT,
        "resourceId": "appointment-1704067200000",
        "data": {
            "id": "appointment-1704067200000",
            "patientName": "John Doe",
            "appointmentTime": "2024-01-01T10:00:00Z",
            "service": "consultation",
        },
        "timestamp": "2024-01-01T09:00:00Z",
        "requestId": "req-uuid-123",
    },
    "req-uuid-456": {
        "operation": "update",
        **APPOINTMENT,
        "resourceId": "appointment-123",
        "data": {"appointmentTime": "2024-01-01T11:00:00Z", "status": "confirmed"},
        "timestamp": "2024-01-01T09:30:00Z",
        "requestId": "req-uuid-456",
    },
    "req-uuid-789": {
        "operation": "list",
        **APPOINTMENT,
        "filters": {"date": "2024-01-01", "status": "confirmed"},
        "pagination": {"page": 1, "limit": 20},
        "timestamp": "2024-01-01T09:15:00Z",
        "requestId": "req-uuid-789",
    },
}
ORDER: Final[dict[str, Any]] = {"customer_name": "Test", "customer_email": "test@example.com", "items": []}
ORDERS: Final[dict[str, dict[str, Any]]] = {
    "order-1-new": {"type": "CREATE", "data": ORDER, "groupId": "orders", "deduplicationId": "order-1-new"},
    "order-7-new": {
        "type": "CREATE",
        "orderId": "order-7",
        "data": ORDER,
        "groupId": "orders",
        "deduplicationId": "order-7-new",
    },
    "order-7-pending": {
        "type": "UPDATE",
        "orderId": "order-7",
        "data": {"status": "pending"},
        "groupId": "orders",
        "deduplicationId": "order-7-pending",
    },
    "order-7-gone": {
        "type": "DELETE",
        "orderId": "order-7",
        "data": {},
        "groupId": "orders",
        "deduplicationId": "order-7-gone",
    },
}
# The second text has an update of an appointment that none of its examples creates.
OUTCOMES: Final = dict.fromkeys((*RECORDS, *ORDERS), "succeeded") | {"req-uuid-456": "not_found"}
MONITORING: Final = ("/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats")

Note: TypeAlias = Callable[[str, object], None]


def environment(stack: Stack) -> dict[str, str]:
    """Return the lines of the first text, with the order queue and the default tenant of its orders."""
    url = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT_ID}/"
    return {name: value for name, value in stack.env.items() if name.startswith(KEPT)} | {
        "SQS_SHARD_CREATION_QUEUE_URL": f"{url}shard-creation",
        "SQS_ORDER_EVENTS_QUEUE_URL": f"{url}order-events.fifo",
        "CITRUS_TIMEOUT": "5000",
        "CITRUS_RETRY_ATTEMPTS": "3",
        "ORDER_EVENTS_BUSINESS_ID": TENANT["businessId"],
        "ORDER_EVENTS_LOCATION_ID": TENANT["locationId"],
        "API_TOKEN": stack.env["API_TOKEN"],
        "API_OPEN_READS": "true",
    }


async def ask(worker: WorkerProcess, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a path."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(worker.url + path, headers=headers) as answer:
        return answer.status, await answer.json()


async def send_examples(stack: Stack) -> None:
    """Send every record and message."""
    async with stack.aws_client("sqs") as sqs, stack.aws_client("kinesis") as kinesis:
        url = stack.env["SQS_SHARD_CREATION_QUEUE_URL"]
        await sqs.send_message(QueueUrl=url, MessageBody=json.dumps(SHARD_CREATION))
        for record in RECORDS.values():
            key = "-".join(record[name] for name in ("businessId", "locationId", "resourceType"))
            await kinesis.put_record(StreamName=STREAM_NAME, Data=json.dumps(record).encode(), PartitionKey=key)
        for name, event in ORDERS.items():
            await sqs.send_message(
                QueueUrl=stack.env["SQS_ORDER_EVENTS_QUEUE_URL"],
                MessageBody=json.dumps(event),
                MessageGroupId=event["groupId"],
                MessageDeduplicationId=name,
            )


async def test_examples_of_the_references_work_as_written(record_property: Note) -> None:
    """Each ends as the table says, none as a dead letter; and their monitoring points answer without a token."""
    found: dict[str, str] = {}
    async with Stack(shards=1, stream_shards=1) as stack:
        worker = WorkerProcess(stack.group, environment(stack), number=1)
        worker.start()
        await worker.wait_ready()
        await send_examples(stack)

        async def are_decided() -> bool:
            tenant = "&".join(f"{name}={value}" for name, value in TENANT.items())
            for name in OUTCOMES:
                _, answer = await ask(worker, f"/operations/{name}?{tenant}", stack.env["API_TOKEN"])
                found[name] = answer.get("error") or answer["status"]
            return found == OUTCOMES

        assert await poll_until(are_decided, within_s=PATIENCE_S), found
        open_views = {path: await ask(worker, path) for path in MONITORING}
        closed = (await ask(worker, "/operations/req-uuid-123"))[0]
        await worker.stop(within_s=PATIENCE_S)

    assert {status for status, _ in open_views.values()} == {200}
    letters = open_views["/sqs/stats"][1]["queues"][-1]
    assert (letters["name"], letters["visible"], closed) == ("shard-creation-dead-letters", 0, 401)
    record_property("note", f"References' examples: {len(found) + 1} sent as written, {found}")
