"""The spans that a collector gets of a worker, with links to its producers; a collector that is late delays nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key, poll_until_true

from simplu_local.processes.loopback import HOST
from simplu_local.workload.producer import creation_message
from simplu_worker import __version__
from simplu_worker.timing.waits import sleep_or_event

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(3)]

BODY_MAX_BYTES: Final = 20 * 1024 * 1024  # the default of OpenTelemetry's collector
PATIENCE_S = 40.0
KEY = "s3cret-of-the-collector"
EXPORT_S = 10.0  # of OTEL_EXPORTER_OTLP_TIMEOUT: as long as an export waits for a collector


def traceparent(number: int, *, flags: int = 1) -> str:
    return f"00-{number:032x}-{number:016x}-{flags:02x}"


def link(number: int) -> tuple[bytes, bytes]:
    return number.to_bytes(16, "big"), number.to_bytes(8, "big")


class ReceivedSpan(NamedTuple):
    message: SpanMessage
    resource: dict[str, Any]
    scope: str

    @property
    def attributes(self) -> dict[str, Any]:
        return _values_of(self.message.attributes)

    @property
    def links(self) -> list[tuple[bytes, bytes]]:
        return [(one.trace_id, one.span_id) for one in self.message.links]

    @property
    def duration_s(self) -> float:
        return (self.message.end_time_unix_nano - self.message.start_time_unix_nano) / 1e9


def _values_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}


class Collector:
    def __init__(self) -> None:
        self.delay_s = 0.0
        self.spans: list[ReceivedSpan] = []
        self.headers: list[dict[str, str]] = []  # of each request
        self._ending = asyncio.Event()  # no answer is late any more

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Give the URL of the collector."""
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/v1/traces", self._receive)
        runner = web.AppRunner(app, shutdown_timeout=2)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
        self._ending.set()
        await runner.cleanup()

    def find(self, name: str, is_wanted: Callable[[ReceivedSpan], bool] = lambda _: True) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.message.name == name and is_wanted(span)]

    async def _receive(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        body = await request.read()  # aiohttp has decompressed it
        await sleep_or_event(self.delay_s, until=self._ending)
        if request.content_type != "application/x-protobuf":
            return web.Response(status=415)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values_of(group.resource.attributes)
            for scoped in group.scope_spans:
                self.spans += [ReceivedSpan(span, resource, scoped.scope.name) for span in scoped.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


class Place(NamedTuple):
    """A worker that sends its spans to a collector."""

    stack: FullStack
    collector: Collector

    async def span(self, name: str, is_wanted: Callable[[ReceivedSpan], bool] = lambda _: True) -> ReceivedSpan:
        async def find() -> list[ReceivedSpan]:
            return self.collector.find(name, is_wanted)

        return (await poll_until_true(find, within_s=PATIENCE_S))[0]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place() -> AsyncIterator[Place]:
    collector = Collector()
    async with collector.listening() as url:
        env = {
            "KINESIS_LEASE_DURATION_SECONDS": "10",  # a shorter one is lost on a busy machine: a batch comes again
            "SHUTDOWN_GRACE_SECONDS": "6",  # polls are shorter then, and so are stops
            "TRACES": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={KEY}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        async with FullStack(env=env) as stack:
            yield Place(stack, collector)


def messaging(operation: str, system: str, name: str) -> dict[str, Any]:
    names = ("operation.name", "operation.type")
    return {
        **{f"messaging.{one}": operation for one in names},
        "messaging.system": system,
        "messaging.destination.name": name,
    }


async def test_batch_of_the_stream_has_a_span_with_its_producers(place: Place) -> None:
    stack, stream = place.stack, place.stack.stream
    texts = (traceparent(7), traceparent(8, flags=0), traceparent(7), "malformed", 5)
    members = [{}, *[dict[str, object](traceparent=text) for text in texts]]
    records = [
        make_record(stack.steady[0], "create", f"traced-{number}", resourceId=f"t-{number}", data={"n": 1}, **one)
        for number, one in enumerate(members)
    ]
    await stack.put(*(make_item(partition_key(0), json.dumps(one).encode()) for one in records))
    span = await place.span(f"process {stream}", lambda span: link(7) in span.links)
    partition = {
        "messaging.destination.partition.id": "shardId-000000000000",
        "messaging.consumer.group.name": stack.stack.env["KINESIS_APPLICATION_NAME"],
    }
    message = span.message
    assert (message.kind, message.parent_span_id) == (SpanMessage.SPAN_KIND_CONSUMER, b"")
    assert (message.status.code, span.scope) == (Status.STATUS_CODE_UNSET, "simplu_worker")
    assert span.attributes == messaging("process", "aws_kinesis", stream) | partition | {
        "messaging.batch.message_count": 6,
        "simplu.shard.id": "shard-1",
        "simplu.outcomes.applied": 6,
    }
    assert span.links == [link(7), link(8)]
    assert (span.resource["service.name"], span.resource["service.version"]) == ("simplu-worker", __version__)

    server = stack.servers[0]
    transaction = await place.span(
        f"transaction {server.database}", lambda one: one.message.parent_span_id == message.span_id
    )
    assert (transaction.message.kind, transaction.links) == (SpanMessage.SPAN_KIND_CLIENT, [])
    assert transaction.message.trace_id == message.trace_id
    assert transaction.attributes == {
        "db.system.name": "postgresql",
        "db.namespace": server.database,
        "db.operation.name": "transaction",
        "db.operation.batch.size": 6,
        "server.address": HOST,
        "server.port": server.port,
        "simplu.shard.id": "shard-1",
    }
    assert 0 < transaction.duration_s <= span.duration_s
    receive = await place.span(f"receive {stream}", lambda one: one.attributes["messaging.batch.message_count"] == 6)
    assert (receive.message.kind, receive.message.parent_span_id) == (SpanMessage.SPAN_KIND_CLIENT, b"")


async def test_messages_of_queues_have_spans_with_their_producers(place: Place) -> None:
    env, tenant = place.stack.stack.env, place.stack.steady[0]
    values = {"BusinessId": tenant.business_id, "LocationId": tenant.location_id, "traceparent": traceparent(21)}
    await place.stack.sqs.send_message(
        QueueUrl=env["SQS_ORDER_EVENTS_QUEUE_URL"],
        MessageBody=json.dumps({"type": "CREATE", "orderId": "traced", "data": {"n": 1}}),
        MessageAttributes={name: {"DataType": "String", "StringValue": text} for name, text in values.items()},
        MessageGroupId="g",
        MessageDeduplicationId="d",
    )
    message = creation_message(tenant, way=0, now=datetime.now(UTC))
    message["MessageAttributes"]["traceparent"] = {"DataType": "String", "StringValue": traceparent(22)}
    await place.stack.sqs.send_message(QueueUrl=env["SQS_SHARD_CREATION_QUEUE_URL"], **message)
    for source, number in (("ORDER_EVENTS", 21), ("SHARD_CREATION", 22)):
        queue = env[f"SQS_{source}_QUEUE_URL"].rpartition("/")[2]
        span = await place.span(f"process {queue}", lambda one, number=number: link(number) in one.links)  # type: ignore[misc]
        attributes = messaging("process", "aws_sqs", queue) | {"simplu.outcomes.applied": 1}
        assert attributes.items() <= span.attributes.items()
        await place.span(f"receive {queue}")


async def test_collector_that_answers_late_or_is_away_delays_nothing(place: Place) -> None:
    stack, chain = place.stack, Chain(place.stack.steady[0])
    place.collector.delay_s = 60
    began_at = time.monotonic()
    for _ in range(3):  # if one waited for the export of the one before: two times
        await stack.put(chain)
        await stack.wait_until_applied(chain, within_s=PATIENCE_S)
    assert time.monotonic() - began_at < 2 * EXPORT_S
    await stack.worker.stop(within_s=PATIENCE_S)
    sent = {(headers["api-key"], headers["content-encoding"]) for headers in place.collector.headers}
    assert sent == {(KEY, "gzip")}
    log = stack.worker.log_path.read_text(encoding="utf-8")
    assert ("tracing.not_flushed" in log, KEY in log) == (True, False)
