"""The examples of the texts that this program was written from, as they are written there: what becomes of each.

The environment is that of the first text: a queue, Citrus, and neither a region nor a queue for dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import aiohttp
import pytest
from support.rows import fetch

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
# The restaurant of the text on sharding, and the shop of the text on events, beside the clinic of the others.
RESTAURANT: Final = {"businessId": "restaurant-1", "locationId": "main"}
SHOP: Final = {"businessId": "acmo", "locationId": "main"}
TENANTS: Final = {"dental": TENANT, "restaurant": RESTAURANT, "shop": SHOP}
SHARD_CREATIONS: Final[list[dict[str, Any]]] = [
    {**tenant, "businessType": name, "shardId": "", "connectionString": ""} for name, tenant in TENANTS.items()
]
APPOINTMENT: Final = {**TENANT, "resourceType": "appointment"}
CREATED: Final = "appointment-1704067200000"
NEW_YEAR: Final = "appointment-new-year"
NEXT_DAY: Final = "appointment-next-day"
BOOKED: Final[dict[str, dict[str, Any]]] = {
    NEW_YEAR: {"patientName": "Ana", "appointmentTime": "2024-01-01T15:00:00Z", "status": "confirmed"},
    NEXT_DAY: {"patientName": "Ben", "appointmentTime": "2024-01-02T15:00:00Z", "status": "confirmed"},
}
CONFIRMED: Final = {"appointmentTime": "2024-01-01T11:00:00Z", "status": "confirmed"}
VISIT: Final = {"patientName": "John Doe", "appointmentTime": "2024-01-01T10:00:00Z", "service": "consultation"}
ASKED: Final[dict[str, Any]] = {
    "filters": {"date": "2024-01-01", "status": "confirmed"},
    "pagination": {"page": 1, "limit": 20},
}


def record(request_id: str, operation: str, at: str, **members: Any) -> dict[str, Any]:
    day = "2024-01-01T" if len(at) == len("09:00") else ""
    return {"operation": operation, **APPOINTMENT, **members, "timestamp": f"{day}{at}:00Z", "requestId": request_id}


def booked(request_id: str, at: str, appointment: str) -> dict[str, Any]:
    return record(request_id, "create", at, resourceId=appointment, data=BOOKED[appointment])


RECORDS: Final = [
    # The calendar of a day has what is on that day, whenever it was booked.
    booked("req-booked-before", "2023-12-20T09:00", NEW_YEAR),
    booked("req-booked-on-the-day", "08:00", NEXT_DAY),
    record("req-uuid-123", "create", "09:00", resourceId=CREATED, data={"id": CREATED, **VISIT}),
    record("req-uuid-456", "update", "09:30", resourceId="appointment-123", data=CONFIRMED),
    record("req-uuid-789", "list", "09:15", **ASKED),
    # What the app server makes of the second text's `curl -X POST /api/resources/business-123-location-456`.
    record("req-curl", "create", "09:20", data=VISIT),
    # The text's update, of an appointment that is there; and operations that its interface names without an example.
    record("req-update", "update", "09:30", resourceId=CREATED, data=CONFIRMED),
    record("req-patch", "patch", "09:40", resourceId="req-curl", data={"status": "confirmed"}),
    record("req-list", "list", "09:45", **ASKED),
    record("req-delete", "delete", "09:50", resourceId="req-curl"),
]
ORDER: Final[dict[str, Any]] = {"customer_name": "Test", "customer_email": "test@example.com", "items": []}


def event(name: str, kind: str, data: dict[str, Any], order: str | None = None) -> dict[str, Any]:
    named = {} if order is None else {"orderId": order}
    return {"type": kind, **named, "data": data, "groupId": "orders", "deduplicationId": name}


ORDERS: Final = [
    event("order-1-new", "CREATE", ORDER),
    event("order-7-new", "CREATE", ORDER, "order-7"),
    event("order-7-pending", "UPDATE", {"status": "pending"}, "order-7"),
    event("order-7-gone", "DELETE", {}, "order-7"),
    # With the ids of the third text.
    event("generated-new", "CREATE", ORDER, "generated_id"),
    event("existing-paid", "UPDATE", {"status": "paid"}, "existing_id"),
    event("existing-gone", "DELETE", {}, "existing_id"),
]
# The second text has an update of an appointment, and the third an update and a delete of an order, that none of their
# examples creates.
NEVER_CREATED: Final = ("req-uuid-456", "existing-paid", "existing-gone")
# The events name no tenant: those of the restaurant and of the shop are sent with attributes that do.
TRADERS: Final = ("restaurant", "shop")
KEPT_ORDERS: Final = ("generated_id", "order-1-new")
OUTCOMES: Final = {
    (name, request): "not_found" if request in NEVER_CREATED else "succeeded"
    for name in TENANTS
    for request in (
        *(one["requestId"] for one in (RECORDS if name == "dental" else ())),
        *(one["deduplicationId"] for one in ORDERS),
    )
}
# The filters want a status: the appointment has one from the update on, the other one by the patch.
LISTED: Final = {"req-uuid-789": [NEW_YEAR], "req-list": [CREATED, NEW_YEAR, "req-curl"]}
# What is left: by tenant, type and id, the document and its creation. The update left nothing of the document before.
ROWS: Final[dict[tuple[str, str, str], tuple[dict[str, Any], str | None]]] = {
    ("dental", "appointment", CREATED): (CONFIRMED, "2024-01-01T09:00:00+00:00"),
    ("dental", "appointment", NEW_YEAR): (BOOKED[NEW_YEAR], "2023-12-20T09:00:00+00:00"),
    ("dental", "appointment", NEXT_DAY): (BOOKED[NEXT_DAY], "2024-01-01T08:00:00+00:00"),
    ("dental", "settings", "default"): ({"locale": "en", "timezone": "UTC", "appointmentMinutes": 30}, None),
    **{
        (name, "settings", "default"): ({"locale": "en", "timezone": "UTC", "currency": "EUR"}, None)
        for name in TRADERS
    },
    **{(name, "order", order): (ORDER, None) for name in TENANTS for order in KEPT_ORDERS},
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
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(worker.url + path, headers=headers) as answer:
        return answer.status, await answer.json()


async def ask_citrus(stack: Stack, path: str) -> Any:
    headers = {"Authorization": f"Bearer {stack.citrus_api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(stack.citrus_url + path) as answer:
        assert answer.status == 200
        return await answer.json()


async def send_examples(stack: Stack, control_url: str) -> None:
    """Send every record and message; those of new tenants twice, as a standard queue may deliver them."""
    async with stack.aws_client("sqs") as sqs, stack.aws_client("kinesis") as kinesis:
        for creation in SHARD_CREATIONS * 2:
            await sqs.send_message(QueueUrl=control_url, MessageBody=json.dumps(creation))
        for one in RECORDS:
            key = "-".join(one[name] for name in ("businessId", "locationId", "resourceType"))
            await kinesis.put_record(StreamName=STREAM_NAME, Data=json.dumps(one).encode(), PartitionKey=key)
        for trader, tenant in TENANTS.items():
            attributes = {
                f"{name[0].upper()}{name[1:]}": {"DataType": "String", "StringValue": value}
                for name, value in tenant.items()
                if tenant is not TENANT
            }
            for one in ORDERS:
                await sqs.send_message(
                    QueueUrl=stack.env["SQS_ORDER_EVENTS_QUEUE_URL"],
                    MessageBody=json.dumps(one),
                    MessageAttributes=attributes,
                    MessageGroupId=one["groupId"],
                    MessageDeduplicationId=f"{trader}-{one['deduplicationId']}",
                )


async def test_examples_of_the_references_work_as_written(record_property: Note) -> None:
    found: dict[tuple[str, str], str] = {}
    results: dict[str, Any] = {}
    async with Stack(shards=1, stream_shards=1) as stack:
        async with stack.aws_client("sqs") as sqs:
            made = await sqs.create_queue(QueueName=CONTROL_QUEUE, Attributes=CONTROL_ATTRIBUTES)
        worker = WorkerProcess(stack.group, environment(stack), number=1)
        worker.start()
        await worker.wait_ready()
        await send_examples(stack, made["QueueUrl"])

        async def are_decided() -> bool:
            for name, request in OUTCOMES:
                tenant = "&".join(f"{member}={value}" for member, value in TENANTS[name].items())
                _, answer = await ask(worker, f"/operations/{request}?{tenant}", stack.env["API_TOKEN"])
                found[name, request] = answer.get("error") or answer["status"]
                results[request] = answer.get("result")
            return found == OUTCOMES

        assert await poll_until(are_decided, within_s=PATIENCE_S), found
        open_views = {path: await ask(worker, path) for path in MONITORING}
        closed = (await ask(worker, "/operations/req-uuid-123"))[0]
        url = stack.env["STACK_POSTGRES_URLS"]
        rows = {
            name: await fetch(url, "SELECT * FROM resources WHERE id = $1", "-".join(tenant.values()))
            for name, tenant in TENANTS.items()
        }
        orders = {name: await fetch(url, f"SELECT * FROM {name}_orders") for name in TRADERS}
        named = await ask_citrus(stack, f"/api/shard/{'-'.join(TENANT.values())}")
        (healthy,) = await ask_citrus(stack, "/api/shards/health")
        await worker.stop(within_s=PATIENCE_S)
        events = [json.loads(line) for line in worker.log_path.read_text(encoding="utf-8").splitlines()]

    # The texts know no urgent orders: the log says so at the start.
    missing = [one for one in events if one["event"] == "source.not_configured"]
    assert [(one["source"], one["variable"]) for one in missing] == [
        ("priority order events", "SQS_PRIORITY_QUEUE_URL")
    ]
    assert {status for status, _ in open_views.values()} == {200}
    letters = open_views["/sqs/stats"][1]["queues"][-1]
    assert (letters["name"], letters["visible"], closed) == (f"{CONTROL_QUEUE}-dead-letters", 0, 401)
    assert {name: [one["resourceId"] for one in results[name]["items"]] for name in LISTED} == LISTED
    assert {name: results[name]["hasMore"] for name in LISTED} == dict.fromkeys(LISTED, False)
    stored = {(name, row["resourceName"], row["resourceId"]): row for name in rows for row in rows[name]}
    assert stored.keys() == ROWS.keys()
    for key, (document, created) in ROWS.items():
        assert json.loads(stored[key]["data"]) == document
        assert stored[key]["businessType"] == key[0]
        assert created is None or stored[key]["date"].isoformat() == created
    for found_orders in orders.values():
        assert {(one["customer_name"], one["customer_email"], one["deleted_at"]) for one in found_orders} == {
            (ORDER["customer_name"], ORDER["customer_email"], None)
        }
        assert len(found_orders) == len(KEPT_ORDERS)
    assert (named["shardId"], named["businessCount"]) == (healthy["shardId"], len(TENANTS))
    record_property("note", f"References' examples: {len(found) + len(TENANTS)} sent, {found}")
