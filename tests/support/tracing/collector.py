"""A receiver of OTLP over HTTP, as a collector is one: protobuf, gzip, `/v1/traces`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from simplu_local.processes.loopback import HOST
from simplu_worker.timing.waits import sleep_or_event

KINDS: Final = {SpanMessage.SPAN_KIND_CLIENT: "client", SpanMessage.SPAN_KIND_CONSUMER: "consumer"}
BODY_MAX_BYTES: Final = 20 * 1024 * 1024  # the default of OpenTelemetry's collector


class ReceivedSpan(NamedTuple):
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    is_error: bool
    status: str
    duration_s: float
    resource: dict[str, Any]
    scope: str


class Collector:
    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.spans: list[ReceivedSpan] = []
        self.headers: list[dict[str, str]] = []  # of each request
        self._ending = asyncio.Event()  # no answer is late any more
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/v1/traces", self._receive)
        self._runner = web.AppRunner(app, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._ending.set()
        await self._runner.cleanup()

    def find(self, name: str, is_wanted: Callable[[ReceivedSpan], bool] = lambda _: True) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name and is_wanted(span)]

    async def _receive(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        body = await request.read()  # aiohttp has decompressed it
        await sleep_or_event(self.delay_s, until=self._ending)
        if request.content_type != "application/x-protobuf":
            return web.Response(status=415)
        message = ExportTraceServiceRequest.FromString(body)
        for group in message.resource_spans:
            resource = {one.key: _value_of(one.value) for one in group.resource.attributes}
            for scoped in group.scope_spans:
                self.spans += [_received(span, resource, scoped.scope.name) for span in scoped.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


def _received(span: SpanMessage, resource: dict[str, Any], scope: str) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=KINDS.get(span.kind, str(span.kind)),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes={one.key: _value_of(one.value) for one in span.attributes},
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        is_error=span.status.code == 2,
        status=span.status.message,
        duration_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        resource=resource,
        scope=scope,
    )


def _value_of(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
