"""Spans that no collector takes: they cost neither memory without bound nor time of the callers."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from simplu_worker.telemetry.tracing.exported_spans import LINKS_MAX, QUEUE_MAX_COUNT
from simplu_worker.telemetry.tracing.opening import open_tracing
from simplu_worker.telemetry.tracing.spans import TracedBatch, process_span

SPAN_COUNT = 3 * QUEUE_MAX_COUNT
MEMORY_MAX_BYTES = 80 * 1024 * 1024  # without a bound these spans would take 120 MiB, with the SDK's own one too
TEXTS = [f"00-{number:032x}-{number:016x}-01" for number in range(1, LINKS_MAX + 1)]


@contextmanager
def silent_collector() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow(4)
async def test_silent_collector_costs_bounded_memory_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each span has all of its links; the oldest are dropped. The end takes no longer than it may."""
    with silent_collector() as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
        with open_tracing(group_name="g", replica_name="r") as export:
            longest_s = 0.0
            tracemalloc.start()
            for _ in range(SPAN_COUNT):
                began_at = time.thread_time()
                with process_span(lambda: TracedBatch("kinesis", "stream", LINKS_MAX, lambda: TEXTS)):
                    pass
                longest_s = max(longest_s, time.thread_time() - began_at)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak_bytes < MEMORY_MAX_BYTES
            assert longest_s < 0.1
            began_at = time.monotonic()
            await export.close(within_s=0.2)
            assert time.monotonic() - began_at < 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(20)  # those of the export: it ends once its requests have failed
