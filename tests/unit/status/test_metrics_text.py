"""The metrics in slices are the metrics at once."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from simplu_worker.status.metrics_text import (
    ENCODERS,
    SLICE_SAMPLES,
    MetricsFormat,
    MetricsText,
    accepted_format,
    encoded_slices,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return metrics, some of several slices."""
    registry = CollectorRegistry()
    Gauge("empty", "No series.", ["name"], registry=registry)
    Gauge("single", 'One "series" with a \\ and a\nline.', registry=registry).set(1.5)
    many = Counter("many_total", "Some slices.", ["name"], registry=registry)
    whole = Gauge("whole", "Exactly two slices.", ["name"], registry=registry)
    long = Histogram("long_seconds", "A series across slices.", ["name"], registry=registry)
    for number in range(2 * SLICE_SAMPLES):
        many.labels(f"é{number}").inc()
        whole.labels(str(number)).set(number)
    for number in range(50):
        long.labels(str(number)).observe(number)
    return registry


@pytest.mark.parametrize("wanted", list(MetricsFormat))
def test_slices_together_are_the_whole_text(registry: CollectorRegistry, wanted: MetricsFormat) -> None:
    """Byte for byte as the library renders it, and no slice has more lines than allowed."""
    slices = list(encoded_slices(registry.collect(), wanted))
    whole = ENCODERS[wanted](registry)
    assert b"".join(slices) == whole
    assert max(one.count(b"\n") for one in slices) <= SLICE_SAMPLES + 2


async def test_one_rendering_serves_all_scrapers_of_a_moment(registry: CollectorRegistry) -> None:
    """The gauges are refreshed once for each format; the loop turns between the slices."""
    refreshed: list[None] = []
    metrics = MetricsText(lambda: refreshed.append(None), registry=registry)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    texts = await asyncio.gather(*(metrics.read(MetricsFormat.TEXT) for _ in range(50)))
    compressed = await asyncio.gather(*(metrics.read_compressed(MetricsFormat.TEXT) for _ in range(50)))
    counting.cancel()
    assert set(texts) == {generate_latest(registry)}
    assert {gzip.decompress(one) for one in compressed} == set(texts)
    assert len({id(one) for one in compressed}) == 1
    assert len(refreshed) == 1
    assert turns >= 8


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", MetricsFormat.TEXT),
        ("*/*", MetricsFormat.TEXT),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", MetricsFormat.TEXT),
        ("application/openmetrics-text;version=1.0.0;escaping=dots;q=0.6,*/*;q=0.1", MetricsFormat.OPENMETRICS),
        ("application/openmetrics-text;version=1.x", MetricsFormat.TEXT),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4", MetricsFormat.TEXT),
    ],
)
def test_format_follows_the_accept_header(accept: str, wanted: MetricsFormat) -> None:
    """Two formats serve all scrapers, so that at most two renderings are kept."""
    assert accepted_format(accept) is wanted
