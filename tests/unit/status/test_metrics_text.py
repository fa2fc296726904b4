from __future__ import annotations

import asyncio
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from simplu_worker.status import metrics_text
from simplu_worker.status.metrics_text import MetricsFormat, MetricsText, accepted_format
from simplu_worker.timing.sharing import SharedAnswer


async def test_one_rendering_serves_all_scrapers_of_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_text, "SharedAnswer", partial(SharedAnswer, fresh_s=60.0))  # a long moment
    registry = CollectorRegistry()
    many = Counter("many_total", "Many series.", ["name"], registry=registry)
    for number in range(50):
        many.labels(f"é{number}").inc()
    refreshed: list[None] = []
    metrics = MetricsText(lambda: refreshed.append(None), registry=registry)
    texts = await asyncio.gather(*(metrics.read(MetricsFormat.TEXT) for _ in range(50)))
    assert set(texts) == {generate_latest(registry)}
    assert len(refreshed) == 1


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
    assert accepted_format(accept) is wanted
