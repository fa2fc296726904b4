"""The metrics as text for Prometheus, rendered by a thread, so that the event loop turns meanwhile."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client import generate_latest as generate_text
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from simplu_worker.status.shared_answer import SharedAnswer


class MetricsFormat(Enum):
    """The formats of metrics, each by its content type."""

    TEXT = CONTENT_TYPE_PLAIN_0_0_4
    OPENMETRICS = CONTENT_TYPE_OPENMETRICS


ENCODERS: Final[dict[MetricsFormat, Callable[[CollectorRegistry], bytes]]] = {
    MetricsFormat.TEXT: generate_text,
    MetricsFormat.OPENMETRICS: generate_openmetrics,
}


class MetricsText:
    """The metrics of *registry*; *refresh* sets the gauges that no event sets.

    One rendering runs at a time, and is kept for a moment, compressed too.
    """

    def __init__(self, refresh: Callable[[], None], *, registry: CollectorRegistry = REGISTRY) -> None:
        self._refresh = refresh
        self._registry = registry
        self._rendering = asyncio.Lock()
        self._texts = {one: SharedAnswer(partial(self._render, one)) for one in MetricsFormat}
        self._compressing = asyncio.Lock()
        self._compressed: dict[MetricsFormat, tuple[bytes, bytes]] = {}  # a text, and the same compressed

    async def read(self, wanted: MetricsFormat) -> bytes:
        """Return the metrics in the format *wanted*."""
        return await self._texts[wanted]()

    async def read_compressed(self, wanted: MetricsFormat) -> bytes:
        """Return the same, as gzip."""
        text = await self.read(wanted)
        async with self._compressing:
            known, compressed = self._compressed.get(wanted, (None, b""))
            if known is not text:
                compressed = await asyncio.to_thread(gzip.compress, text, mtime=0)
                self._compressed[wanted] = text, compressed
            return compressed

    async def _render(self, wanted: MetricsFormat) -> bytes:
        async with self._rendering:
            self._refresh()
            return await asyncio.to_thread(ENCODERS[wanted], self._registry)


def accepted_format(accept: str) -> MetricsFormat:
    """Return the format for a request with the header `Accept`; text if it cannot be read."""
    try:
        _, content_type = choose_encoder(accept)
    except TypeError:  # a version that is no number
        return MetricsFormat.TEXT
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    return MetricsFormat.OPENMETRICS if is_openmetrics else MetricsFormat.TEXT
