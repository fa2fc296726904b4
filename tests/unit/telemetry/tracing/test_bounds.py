from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from simplu_worker.assembly.worker import open_tracing
from simplu_worker.telemetry.exported_spans import LINKS_MAX
from simplu_worker.telemetry.spans import TracedBatch, process_span

SPAN_COUNT = 700
EXPORT_COUNT = 16
SMALL_QUEUE = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(EXPORT_COUNT)}
MEMORY_MAX_BYTES = 28 * 1024 * 1024  # without a bound these spans would take 56 MiB; a batch is encoded meanwhile
ANSWER_S = 0.5  # for which the export waits
CLOSE_MAX_S = 5.0  # on a busy machine
TEXTS = [f"00-{number:032x}-{number:016x}-01" for number in range(1, LINKS_MAX + 1)]


@contextmanager
def silent_collector() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow(9)
async def test_silent_collector_costs_bounded_memory_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_collector() as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(ANSWER_S))
        with open_tracing(group_name="g", replica_name="r", environ=SMALL_QUEUE) as export:
            times_s = []
            tracemalloc.start()
            for _ in range(SPAN_COUNT):
                began_at = time.monotonic()
                with process_span(lambda: TracedBatch("kinesis", "stream", LINKS_MAX, lambda: TEXTS)):
                    pass
                times_s.append(time.monotonic() - began_at)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak_bytes < MEMORY_MAX_BYTES
            # A busy machine takes its time off a few of them; each request that is awaited would be one more.
            assert sum(took_s >= ANSWER_S for took_s in times_s) < SPAN_COUNT / EXPORT_COUNT / 4
            began_at = time.monotonic()
            await export.close(within_s=0.1)
            assert time.monotonic() - began_at < CLOSE_MAX_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(20)  # those of the export: it ends once its requests have failed
