"""The examples of the texts that this program was written from, as they are written there: what becomes of each.

The environment is that of the first text: a queue, Citrus, and neither a region nor a queue for dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import aiohttp
import asyncpg
import pytest

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.aws import STREAM_NAME
from simplu_local.stack.stack import Stack

pytestmark = pytest.mark.slow(12)

PATIENCE_S: Final = 60.0
TENANT: Final = {"businessId": "business-123", "locationId": "location-456"}
# What the texts leave to the environment of whoever runs the worker: where emulators are, keys, and this tenant.
KEPT: Final = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY", "AWS_SECRET", "DYNAMODB", "CITRUS_", "HTTP_", "KINESIS_STREAM")

# The first text's `aws sqs create-queue`.
CONTROL_QUEUE: Final = "shard-creation-queue"
CONTROL_ATTRIBUTES: Final = {
    "VisibilityTimeout": "30",
    "MessageRetentionPeriod": "1209600",
    "ReceiveMessageWaitTimeSeconds": "20",
}
SHARD_CREATION: Final[dict[str, Any]] = {**TENANT, "businessType": "dental", "shardId": "", "connectionString": ""}
APPOINTMENT: Final = {**TENANT, "resourceType": "appointment"}
CREATED: Final = "appointment-1704067200000"
CONFIRMED: Final = {"appointmentTime": "2024-01-01T11:00:00Z", "status": "confirmed"}
RECORDS: Final[dict[str, dict[str, Any]]] = {
    "req-uuid-123": {
        "operation": "create",
        **APPOINTMENT,
        "resourceId": CREATED,
        "data": {
            "id": CREATED,
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
        "data": CONFIRMED,
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
    # What the app server makes of the second text's `curl -X POST /api/resources/business-123-location-456`.
    "req-curl": {
        "operation": "create",
        **APPOINTMENT,
        "data": {
            "patientName": "John Doe",
            "appointmentTime": "2024-01-01T10:00:00Z",
            "service": "consultation",
        },
        "timestamp": "2024-01-01T09:20:00Z",
        "requestId": "req-curl",
    },
    # The text's update, of an appointment that is there; and operations that its interface names without an example.
    "req-update": {
        "operation": "update",
        **APPOINTMENT,
        "resourceId": CREATED,
        "data": CONFIRMED,
        "timestamp": "2024-01-01T09:30:00Z",
        "requestId": "req-update",
    },
    "req-patch": {
        "operation": "patch",
        **APPOINTMENT,
        "resourceId": "req-curl",
        "data": {"status": "confirmed"},
        "timestamp": "2024-01-01T09:40:00Z",
        "requestId": "req-patch",
    },
    "req-list": {
        "operation": "list",
        **APPOINTMENT,
        "filters": {"date": "2024-01-01", "status": "confirmed"},
        "pagination": {"page": 1, "limit": 20},
        "timestamp": "2024-01-01T09:45:00Z",
        "requestId": "req-list",
    },
    "req-delete": {
        "operation": "delete",
        **APPOINTMENT,
        "resourceId": "req-curl",
        "timestamp": "2024-01-01T09:50:00Z",
        "requestId": "req-delete",
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
    # With the ids of the third text.
    "generated-new": {
        "type": "CREATE",
        "orderId": "generated_id",
        "data": ORDER,
        "groupId": "orders",
        "deduplicationId": "generated-new",
    },
    "existing-paid": {
        "type": "UPDATE",
        "orderId": "existing_id",
        "data": {"status": "paid"},
        "groupId": "orders",
        "deduplicationId": "existing-paid",
    },
    "existing-gone": {
        "type": "DELETE",
        "orderId": "existing_id",
        "data": {},
        "groupId": "orders",
        "deduplicationId": "existing-gone",
    },
}
# The second text has an update of an appointment, and the third an update and a delete of an order, that none of their
# examples creates.
NEVER_CREATED: Final = ("req-uuid-456", "existing-paid", "existing-gone")
OUTCOMES: Final = dict.fromkeys((*RECORDS, *ORDERS), "succeeded") | dict.fromkeys(NEVER_CREATED, "not_found")
# The filters want a status: the appointment has one from the update on, the other one by the patch.
LISTED: Final = {"req-uuid-789": [], "req-list": [CREATED, "req-curl"]}
# What is left: by type and id, the document and its creation. The update left nothing of the document before.
ROWS: Final[dict[tuple[str, str], tuple[dict[str, Any], str | None]]] = {
    ("appointment", CREATED): (CONFIRMED, "2024-01-01T09:00:00+00:00"),
    ("order", "generated_id"): (ORDER, None),
    ("order", "order-1-new"): (ORDER, None),
    ("settings", "default"): ({"locale": "en", "timezone": "UTC", "appointmentMinutes": 30}, None),
}
MONITORING: Final = ("/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats")

Note: TypeAlias = Callable[[str, object], None]


def environment(stack: Stack) -> dict[str, str]:
    """Return the lines of the first text, with the order queue and the default tenant of its orders."""
    url = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT_ID}/"
    return {name: value for name, value in stack.env.items() if name.startswith(KEPT)} | {
        "SQS_SHARD_CREATION_QUEUE_URL": f"{url}{CONTROL_QUEUE}",
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


async def ask_citrus(stack: Stack, path: str) -> Any:
    """Return the answer of Citrus to the request of the first text, with its header."""
    headers = {"Authorization": f"Bearer {stack.citrus_api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(stack.citrus_url + path) as answer:
        assert answer.status == 200
        return await answer.json()


async def rows_of_tenant(stack: Stack) -> list[asyncpg.Record]:
    """Return what readers get by the statement of the texts."""
    connection = await asyncpg.connect(stack.env["STACK_POSTGRES_URLS"])
    try:
        return await connection.fetch("SELECT * FROM resources WHERE id = $1", "-".join(TENANT.values()))
    finally:
        await connection.close()


async def send_examples(stack: Stack, control_url: str) -> None:
    """Send every record and message; that of the new tenant twice, as a standard queue may deliver it."""
    async with stack.aws_client("sqs") as sqs, stack.aws_client("kinesis") as kinesis:
        for _ in range(2):
            await sqs.send_message(QueueUrl=control_url, MessageBody=json.dumps(SHARD_CREATION))
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
    results: dict[str, Any] = {}
    async with Stack(shards=1, stream_shards=1) as stack:
        async with stack.aws_client("sqs") as sqs:
            made = await sqs.create_queue(QueueName=CONTROL_QUEUE, Attributes=CONTROL_ATTRIBUTES)
        worker = WorkerProcess(stack.group, environment(stack), number=1)
        worker.start()
        await worker.wait_ready()
        await send_examples(stack, made["QueueUrl"])

        async def are_decided() -> bool:
            tenant = "&".join(f"{name}={value}" for name, value in TENANT.items())
            for name in OUTCOMES:
                _, answer = await ask(worker, f"/operations/{name}?{tenant}", stack.env["API_TOKEN"])
                found[name] = answer.get("error") or answer["status"]
                results[name] = answer.get("result")
            return found == OUTCOMES

        assert await poll_until(are_decided, within_s=PATIENCE_S), found
        open_views = {path: await ask(worker, path) for path in MONITORING}
        closed = (await ask(worker, "/operations/req-uuid-123"))[0]
        rows = await rows_of_tenant(stack)
        named = await ask_citrus(stack, f"/api/shard/{'-'.join(TENANT.values())}")
        (healthy,) = await ask_citrus(stack, "/api/shards/health")
        await worker.stop(within_s=PATIENCE_S)
        events = [json.loads(line) for line in worker.log_path.read_text(encoding="utf-8").splitlines()]

    # The texts know no urgent orders: the log says so at the start.
    missing = [one for one in events if one["event"] == "source.not_configured"]
    assert [(one["source"], one["variable"]) for one in missing] == [
        ("priority order events", "SQS_PRIORITY_QUEUE_URL"),
    ]
    assert {status for status, _ in open_views.values()} == {200}
    letters = open_views["/sqs/stats"][1]["queues"][-1]
    assert (letters["name"], letters["visible"], closed) == (f"{CONTROL_QUEUE}-dead-letters", 0, 401)
    assert {name: [one["resourceId"] for one in results[name]["items"]] for name in LISTED} == LISTED
    assert {name: results[name]["hasMore"] for name in LISTED} == dict.fromkeys(LISTED, False)
    stored = {(row["resourceName"], row["resourceId"]): row for row in rows}
    assert stored.keys() == ROWS.keys()
    for key, (document, created) in ROWS.items():
        assert json.loads(stored[key]["data"]) == document
        assert stored[key]["businessType"] == "dental"
        assert created is None or stored[key]["date"].isoformat() == created
    assert (named["shardId"], named["businessCount"]) == (healthy["shardId"], 1)
    record_property("note", f"References' examples: {len(found) + 1} sent, {found}")
