"""Spans of this process, kept in memory as the SDK ended them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from simplu_worker.telemetry.exported_spans import SpanExport
from simplu_worker.telemetry.spans import TRACING


class RecordedSpans:
    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def ended(self, start: str = "") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(start)]


@contextmanager
def record_spans(sampler: Sampler = ALWAYS_ON) -> Iterator[RecordedSpans]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    TRACING.tracer = SpanExport(provider, group_name="application")
    try:
        yield RecordedSpans(exporter)
    finally:
        TRACING.tracer = None
        provider.shutdown()
