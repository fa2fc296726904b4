from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Self

import asyncpg
import pytest
import pytest_asyncio
from support.full_stack import make_item, make_record
from support.tracing.collector import Collector, ReceivedSpan

from simplu_local.processes.loopback import HOST, poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants, creation_message, open_client, put_items
from simplu_local.workload.workload import Tenant
from simplu_worker import __version__

pytestmark = pytest.mark.slow(3)

in_place_loop = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 40.0
TENANT = Tenant("traced", "main", "dental")
KEY = "s3cret-of-the-collector"
EXPORT_S = 10.0  # of OTEL_EXPORTER_OTLP_TIMEOUT: as long as an export waits for a collector


def traceparent(number: int, *, flags: int = 1) -> str:
    return f"00-{number:032x}-{number:016x}-{flags:02x}"


def link(number: int) -> tuple[str, str]:
    return f"{number:032x}", f"{number:016x}"


class Place:
    def __init__(self) -> None:
        self.stack = Stack(shards=1, stream_shards=1, tenants_per_shard=2)
        self.collector = Collector()
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.stack)
            await entered.enter_async_context(self.collector)
            self.env = self.stack.env | {
                "KINESIS_LEASE_DURATION_SECONDS": "10",  # a shorter one is lost on a busy machine: a batch comes again
                "SHUTDOWN_GRACE_SECONDS": "6",  # polls are shorter then, and so are stops
                "TRACES": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url,
                "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={KEY}",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            }
            self.kinesis = await entered.enter_async_context(open_client("kinesis", self.env))
            self.sqs = await entered.enter_async_context(open_client("sqs", self.env))
            self.worker = WorkerProcess(self.stack.group, self.env)
            self.worker.start()
            await self.worker.wait_ready()
            await create_tenants(self.sqs, self.env["SQS_SHARD_CREATION_QUEUE_URL"], [TENANT])
            await self.until(self.has_tenant)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def has_tenant(self) -> bool:
        return TENANT.tenant_id in await read_tenant_ids(shard_urls(self.env))

    async def until(self, condition: Any) -> None:
        if not await poll_until(condition, within_s=PATIENCE_S):
            pytest.fail(log_tail(self.worker.log_path))

    async def put(self, *texts: object) -> None:
        request_ids = [f"traced-{time.monotonic_ns()}" for _ in texts]
        items = [
            make_item("key", make_record(TENANT, "create", request_id, data={"n": 1}, **members))
            for request_id, members in zip(
                request_ids, ({} if text is None else {"traceparent": text} for text in texts), strict=True
            )
        ]
        await put_items(self.kinesis, self.env["KINESIS_STREAM_NAME"], items, on_put=lambda _: None)

        async def are_committed() -> bool:
            connection = await asyncpg.connect(shard_urls(self.env)[0])
            try:
                query = "SELECT count(*) FROM operations WHERE tenant_id = $1 AND request_id = ANY($2)"
                return bool(await connection.fetchval(query, TENANT.tenant_id, request_ids) == len(items))
            finally:
                await connection.close()

        await self.until(are_committed)

    async def span(self, name: str, is_wanted: Callable[[ReceivedSpan], bool] = lambda _: True) -> ReceivedSpan:
        async def has_come() -> bool:
            return bool(self.collector.find(name, is_wanted))

        await self.until(has_come)
        return self.collector.find(name, is_wanted)[0]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place() -> AsyncIterator[Place]:
    async with Place() as place:
        yield place


def messaging(operation: str, system: str, name: str) -> dict[str, Any]:
    return {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": name,
    }


def without(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in names}


@in_place_loop
async def test_batch_of_the_stream_has_a_span_with_its_producers_and_its_transaction(place: Place) -> None:
    stream = place.env["KINESIS_STREAM_NAME"]
    await place.put(traceparent(7), traceparent(8, flags=0), traceparent(7), "malformed", 5, None)
    span = await place.span(f"process {stream}", lambda span: link(7) in span.links)
    partition = {
        "messaging.destination.partition.id": "shardId-000000000000",
        "messaging.consumer.group.name": place.env.get("KINESIS_APPLICATION_NAME", "simplu-worker"),
    }
    assert (span.kind, span.parent_id, span.is_error, span.scope) == ("consumer", "", False, "simplu_worker")
    assert span.attributes == messaging("process", "aws_kinesis", stream) | partition | {
        "messaging.batch.message_count": 6,
        "simplu.shard.id": span.attributes["simplu.shard.id"],
        "simplu.outcomes.applied": 6,
        "simplu.links.malformed": 2,
    }
    assert span.links == [link(7), link(8)]
    assert without(span.resource, "service.instance.id", "telemetry.sdk.version") == {
        "service.name": "simplu-worker",
        "service.version": __version__,
        "deployment.environment.name": "test",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
    }

    url = shard_urls(place.env)[0]
    database, port = url.rpartition("/")[2].partition("?")[0], int(url.rpartition(":")[2].partition("/")[0])
    transaction = await place.span(f"transaction {database}", lambda one: one.parent_id == span.span_id)
    assert (transaction.kind, transaction.trace_id, transaction.links) == ("client", span.trace_id, [])
    assert transaction.attributes == {
        "db.system.name": "postgresql",
        "db.namespace": database,
        "db.operation.name": "transaction",
        "db.operation.batch.size": 6,
        "server.address": HOST,
        "server.port": port,
        "simplu.shard.id": span.attributes["simplu.shard.id"],
    }
    assert 0 < transaction.duration_s <= span.duration_s

    receive = await place.span(f"receive {stream}", lambda one: one.attributes["messaging.batch.message_count"] == 6)
    assert (receive.kind, receive.parent_id) == ("client", "")
    assert receive.attributes == messaging("receive", "aws_kinesis", stream) | partition | {
        "messaging.batch.message_count": 6
    }


@in_place_loop
async def test_messages_of_queues_have_spans_with_their_producers(place: Place) -> None:
    orders = place.env["SQS_ORDER_EVENTS_QUEUE_URL"]
    fifo = {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if orders.endswith(".fifo") else {}
    values = {"BusinessId": TENANT.business_id, "LocationId": TENANT.location_id, "traceparent": traceparent(21)}
    await place.sqs.send_message(
        QueueUrl=orders,
        MessageBody=json.dumps({"type": "CREATE", "orderId": "traced", "data": {"n": 1}}),
        MessageAttributes={name: {"DataType": "String", "StringValue": text} for name, text in values.items()},
        **fifo,
    )
    queue = orders.rpartition("/")[2]
    span = await place.span(f"process {queue}")
    assert span.kind == "consumer"
    assert without(span.attributes, "simplu.shard.id") == messaging("process", "aws_sqs", queue) | {
        "simplu.outcomes.applied": 1
    }
    assert span.links == [link(21)]
    await place.span(f"receive {queue}")

    def is_child(one: ReceivedSpan) -> bool:
        return one.parent_id == span.span_id

    child = await place.span(f"transaction {shard_urls(place.env)[0].rpartition('/')[2].partition('?')[0]}", is_child)
    assert "db.operation.batch.size" not in child.attributes  # by the conventions: it is of one operation

    control = place.env["SQS_SHARD_CREATION_QUEUE_URL"]
    message = creation_message(TENANT, way=0, now=datetime.now(UTC))
    message["MessageAttributes"]["traceparent"] = {"DataType": "String", "StringValue": traceparent(22)}
    fifo = {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if control.endswith(".fifo") else {}
    await place.sqs.send_message(QueueUrl=control, **message, **fifo)
    name = control.rpartition("/")[2]
    created = await place.span(f"process {name}", lambda one: link(22) in one.links)
    assert created.attributes == messaging("process", "aws_sqs", name) | {"simplu.outcomes.applied": 1}


@in_place_loop
async def test_collector_that_answers_late_or_is_away_delays_nothing(place: Place) -> None:
    place.collector.delay_s = 60
    began_at = time.monotonic()
    for _ in range(3):
        await place.put(traceparent(31))  # if it waited for the export of the one before: two times
    assert time.monotonic() - began_at < 2 * EXPORT_S
    await place.worker.stop(within_s=PATIENCE_S)
    assert all(headers["api-key"] == KEY for headers in place.collector.headers)
    assert {headers["content-encoding"] for headers in place.collector.headers} == {"gzip"}

    away = WorkerProcess(
        place.stack.group, place.env | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:{KEY}@{HOST}:1"}, number=1
    )
    place.worker, late = away, place.worker
    away.start()
    await away.wait_ready()
    await place.put(traceparent(32))
    await away.stop(within_s=PATIENCE_S)
    logs = late.log_path.read_text(), away.log_path.read_text()
    assert "tracing.not_flushed" in logs[0]
    assert "Failed to export span" in logs[1] or "Transient error" in logs[1] or "tracing.not_flushed" in logs[1]
    assert all(KEY not in text for text in logs)
