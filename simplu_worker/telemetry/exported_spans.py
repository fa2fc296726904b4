"""The door to OpenTelemetry: spans by its conventions, exported by OTLP over HTTP from a thread.

Imported only when `TRACES` is on. The SDK reads its own variables. No call waits: spans that end go into a queue of
fixed size, and the oldest are dropped while it is full.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Self

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from simplu_worker import __version__
from simplu_worker.telemetry import spans
from simplu_worker.telemetry.spans import CURRENT, TracedBatch, TracedTransaction

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NOWHERE: Final = Context()


def choose_links(texts: Iterable[str], max_count: int) -> list[SpanContext]:
    """Return the spans that *texts* name, each once, *max_count* at most; malformed texts name none.

    Sampled ones go first: a link to a span that was not recorded leads nowhere.
    """
    found: dict[tuple[int, int, bool], SpanContext] = {}
    for text in dict.fromkeys(texts):
        span = get_current_span(_PROPAGATOR.extract({"traceparent": text}, _NOWHERE)).get_span_context()
        if span.is_valid:
            found.setdefault((span.trace_id, span.span_id, span.trace_flags.sampled), span)
    return sorted(found.values(), key=lambda span: not span.trace_flags.sampled)[:max_count]  # stable


LINKS_MAX: Final = 128  # a span
# A span with all of its links takes 80 kB: the SDK's own 2048 would be 170 MB.
QUEUE_MAX_COUNT: Final = 512
EXPORT_MAX_COUNT: Final = 128  # of them in one request
POSTGRES_PORT: Final = 5432
SYSTEMS: Final = {"kinesis": "aws_kinesis", "sqs": "aws_sqs"}
DEFAULT_SERVICE: Final = "simplu-worker"

log = structlog.get_logger(__name__)

Attributes = dict[str, AttributeValue]


class ExportedBatch(spans.Span):
    """A span `process`; one that is not sampled records nothing."""

    __slots__ = ("_token", "span")

    def __init__(self, span: Span) -> None:
        self.span = span

    def __enter__(self) -> Self:
        self._token = CURRENT.set(self)
        return self

    def end(self, error: BaseException | None) -> None:
        """End."""
        CURRENT.reset(self._token)
        _end(self.span, error)

    def note_outcomes(self, outcomes: Iterable[str]) -> None:
        """Note the number of records with each outcome."""
        if self.span.is_recording():
            self.span.set_attributes({f"simplu.outcomes.{name}": count for name, count in Counter(outcomes).items()})


class ExportedTransaction(spans.Span):
    """A child of the first batch of a transaction, linked to the others."""

    __slots__ = ("_begun_ns", "_place", "_tracer", "_transaction")

    def __init__(self, tracer: trace.Tracer, transaction: TracedTransaction) -> None:
        self._tracer = tracer
        self._transaction = transaction
        self._begun_ns: int | None = None
        self._place: Attributes = {}

    def note_begun(self, host: str, port: int | None) -> None:
        """Note the server and the time."""
        self._begun_ns = time.time_ns()
        self._place = {"server.address": host, "server.port": POSTGRES_PORT if port is None else port}

    def end(self, error: BaseException | None) -> None:
        """Make the span."""
        work, database = self._transaction.work, self._transaction.database
        batches = [one.span for one in work.spans if isinstance(one, ExportedBatch) and one.span.is_recording()]
        if self._begun_ns is None or not batches:
            return
        first, *others = batches
        attributes: Attributes = {
            "db.system.name": "postgresql",
            "db.namespace": database,
            "db.operation.name": "transaction",
            **_batch_size("db.operation.batch.size", len(work.operations)),
            **self._place,
            "simplu.shard.id": self._transaction.shard_id,
        }
        links = [Link(one.get_span_context()) for one in others[:LINKS_MAX]]
        parent = trace.set_span_in_context(first)
        span = self._tracer.start_span(
            f"transaction {database}", parent, SpanKind.CLIENT, attributes, links, self._begun_ns
        )
        for one in others:
            one.add_link(span.get_span_context())
        if (code := _sqlstate_of(error)) is not None:
            span.set_attribute("db.response.status_code", code)
        _end(span, error)


class ExportedReceive(spans.Span):
    """A span `receive`."""

    __slots__ = ("_attributes", "_count", "_name", "_started_ns", "_tracer")

    def __init__(self, tracer: trace.Tracer, name: str, attributes: Attributes) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._started_ns = time.time_ns()
        self._count = 0

    def note_records(self, count: int) -> None:
        """Note the number of records."""
        self._count = count

    def end(self, error: BaseException | None) -> None:
        """Make the span."""
        if not self._count and not isinstance(error, Exception):
            return
        attributes = self._attributes | ({"messaging.batch.message_count": self._count} if self._count else {})
        span = self._tracer.start_span(
            f"receive {self._name}", Context(), SpanKind.CLIENT, attributes, start_time=self._started_ns
        )
        _end(span, error)


class SpanExport:
    """The tracer of a process, and its thread that exports."""

    def __init__(self, provider: TracerProvider, *, group_name: str) -> None:
        """*group_name* is that of the application."""
        self._provider = provider
        self._tracer = provider.get_tracer("simplu_worker", __version__)
        self._group_name = group_name

    def process(self, batch: TracedBatch) -> spans.Span:
        """Start the span of *batch*, with links to its producers."""
        attributes = self._messaging("process", batch.source, batch.name, batch.stream_shard_id)
        attributes |= _batch_size("messaging.batch.message_count", batch.message_count)
        if batch.shard_id is not None:
            attributes["simplu.shard.id"] = batch.shard_id
        span = self._tracer.start_span(f"process {batch.name}", Context(), SpanKind.CONSUMER, attributes)
        if span.is_recording():
            for one in choose_links(batch.traceparents(), LINKS_MAX):
                span.add_link(one)
        return ExportedBatch(span)

    def transact(self, transaction: TracedTransaction) -> spans.Span:
        """Return the span of *transaction*."""
        return ExportedTransaction(self._tracer, transaction)

    def receive(self, source: str, name: str, stream_shard_id: str | None) -> spans.Span:
        """Return the span of a request, made at its end."""
        return ExportedReceive(self._tracer, name, self._messaging("receive", source, name, stream_shard_id))

    async def close(self, *, within_s: float) -> None:
        """Export the queued spans *within_s*; the rest is lost. Idempotent."""
        # A thread of its own, which ends with the process: the loop waits for those of its executor.
        ending = threading.Thread(target=self._provider.shutdown, name="span export end", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, within_s)
        if ending.is_alive():
            log.warning("tracing.not_flushed", after_s=round(within_s, 2))

    def _messaging(self, operation: str, source: str, name: str, stream_shard_id: str | None) -> Attributes:
        attributes: Attributes = {
            "messaging.system": SYSTEMS[source],
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": name,
        }
        if stream_shard_id is not None:
            attributes["messaging.destination.partition.id"] = stream_shard_id
            attributes["messaging.consumer.group.name"] = self._group_name
        return attributes


def create_span_export(*, group_name: str, replica_name: str, environ: Mapping[str, str] = os.environ) -> SpanExport:
    """Return the tracer of a replica. Raises ValueError for wrong `OTEL_*` values."""
    own = {"service.name": DEFAULT_SERVICE, "service.version": __version__, "service.instance.id": replica_name}
    resource = Resource.create(own | dict(OTELResourceDetector().detect().attributes))  # the standard variables win
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    queue_max = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE_MAX_COUNT)
    export_max = int(environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") or min(queue_max, EXPORT_MAX_COUNT))
    exporter = OTLPSpanExporter()
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=queue_max, max_export_batch_size=export_max)
    )
    return SpanExport(provider, group_name=group_name)


def _batch_size(name: str, count: int) -> Attributes:
    return {name: count} if count > 1 else {}


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        kind = type(error).__name__
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, kind))
    span.end()


def _sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of the cause of *error*, if any."""
    while error is not None:
        if isinstance(code := getattr(error, "sqlstate", None), str):
            return code
        error = error.__cause__
    return None
