"""Ask Citrus for its list of shards and how full they are: for people and the prober, never for routing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection
from typing import Final

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.health.assessment import usage_of
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.timing.backoff import jittered
from simplu_worker.timing.clock import loop_time

POLL_S: Final = 60.0
TROUBLE_POLL_S: Final = 5.0  # while Citrus names no shards: work goes on once it does
JITTER: Final = 0.2  # of each interval, to either side


class CitrusWatch:
    """The poller of a Citrus, which writes the answers into *registry*."""

    def __init__(
        self,
        citrus: CitrusClient,
        registry: HealthRegistry,
        *,
        poll_s: float = POLL_S,
        trouble_poll_s: float = TROUBLE_POLL_S,
        clock: Callable[[], float] = loop_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._citrus = citrus
        self._registry = registry
        self._poll_s = poll_s
        self._trouble_poll_s = trouble_poll_s
        self._clock = clock
        self._draw = draw
        self._asked_at = float("-inf")
        self._known: list[ShardAddress] = []

    def known_shards(self) -> Collection[ShardAddress]:
        """Return the shards of the last answer."""
        return self._known

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            if self._citrus.inability is not None or self._clock() >= self._asked_at + self._poll_s:
                self._asked_at = self._clock()
                with contextlib.suppress(RetryableError, PermanentError):  # the last answer stays
                    await self._ask()
            await asyncio.sleep(jittered(self._trouble_poll_s, ratio=JITTER, draw=self._draw()))

    async def _ask(self) -> None:
        in_trouble = self._citrus.inability is not None
        self._known = (await (self._citrus.list_shards() if in_trouble else self._citrus.fetch_overview())) or []
        self._registry.note_usages({shard.shard_id: usage_of(shard) for shard in self._known})
