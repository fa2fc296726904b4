"""Poll Citrus for the health and the room of the shards: for people, never for routing.

One request at a time for each question, tried once, so that look-ups of routes do not have to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.health.assessment import usage_of
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.timing.backoff import jittered
from simplu_worker.timing.clock import loop_time

POLL_S: Final = 60.0
TROUBLE_POLL_S: Final = 5.0  # until Citrus names shards again: then work goes on
ASK_PAUSE_S: Final = 1.0  # between two shards; with more than fit into POLL_S, each is asked about less often
SILENCE_MAX: Final = 3  # missing answers in a row
ABSENT_S: Final = 3600.0  # before a Citrus that does not know the question is asked again
JITTER: Final = 0.2  # of each interval, to either side


class CapacityQuestions:
    """The schedule of questions about the shards' capacity.

    While 404 is the only answer, one shard is asked about every `ABSENT_S`: Citrus may not know the question. After any
    other answer a 404 means that Citrus does not know that shard.
    """

    def __init__(self) -> None:
        self._not_before: dict[str, float] = {}
        self._has_answered = False

    def __repr__(self) -> str:
        return f"CapacityQuestions(has_answered={self._has_answered}, absent={len(self._not_before)})"

    def choose(self, shard_ids: Collection[str], *, now: float, draw: float) -> list[str]:
        """Return those of *shard_ids* to ask about now; *draw* is a random number from 0 to 1, excluded."""
        self._not_before = {
            shard_id: at for shard_id, at in self._not_before.items() if shard_id in shard_ids and at > now
        }
        if self._has_answered:
            return [shard_id for shard_id in shard_ids if shard_id not in self._not_before]
        return [] if self._not_before else list(shard_ids)[int(draw * len(shard_ids)) :][:1]

    def note_answer(self) -> None:
        """Note an answer about a shard."""
        self._has_answered = True

    def note_absence(self, shard_id: str, *, now: float) -> None:
        """Note that Citrus does not know a shard, or the question."""
        self._not_before[shard_id] = now + ABSENT_S


class CitrusWatch:
    """The poller of a Citrus, which writes the answers into *registry*."""

    def __init__(
        self,
        citrus: CitrusClient,
        registry: HealthRegistry,
        *,
        poll_s: float = POLL_S,
        trouble_poll_s: float = TROUBLE_POLL_S,
        ask_pause_s: float = ASK_PAUSE_S,
        clock: Callable[[], float] = loop_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._citrus = citrus
        self._registry = registry
        self._poll_s = poll_s
        self._trouble_poll_s = trouble_poll_s
        self._ask_pause_s = ask_pause_s
        self._clock = clock
        self._draw = draw
        self._known: dict[str, ShardAddress] = {}
        self._capacities: dict[str, Capacity] = {}
        self._questions = CapacityQuestions()

    def __repr__(self) -> str:
        return f"CitrusWatch(known={len(self._known)}, capacities={len(self._capacities)})"

    def known_shards(self) -> Collection[ShardAddress]:
        """Return the shards of the last answer."""
        return self._known.values()

    async def run(self) -> None:
        """Poll until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_trouble(), name="citrus:trouble")
            tasks.create_task(self._watch_shards(), name="citrus:shards")
            tasks.create_task(self._watch_capacities(), name="citrus:capacities")

    async def _watch_trouble(self) -> None:
        """Notice that Citrus names shards again, even without other requests; the polls below do not show it."""
        while True:
            await self._sleep(self._trouble_poll_s)
            if self._citrus.inability is not None:
                with contextlib.suppress(RetryableError, PermanentError):
                    await self._citrus.list_shards()

    async def _watch_shards(self) -> None:
        rest_s = self._poll_s
        while True:
            with contextlib.suppress(RetryableError, PermanentError):  # the last answer stays
                known = await self._citrus.fetch_overview()
                rest_s = ABSENT_S if known is None else self._poll_s
                self._note(known or [])
            await self._sleep(rest_s)

    def _note(self, known: Iterable[ShardAddress]) -> None:
        self._known = {shard.shard_id: shard for shard in known}
        self._capacities = {name: one for name, one in self._capacities.items() if name in self._known}
        self._registry.note_usages(
            {name: usage_of(shard, self._capacities.get(name)) for name, shard in self._known.items()}
        )

    async def _watch_capacities(self) -> None:
        while True:
            await self._ask_about(self._questions.choose(self._known.keys(), now=self._clock(), draw=self._draw()))
            await self._sleep(self._poll_s if self._known else min(self._poll_s, 1.0))

    async def _ask_about(self, shard_ids: Sequence[str]) -> None:
        """Ask about each shard in turn; after `SILENCE_MAX` missing answers stop until the next poll."""
        silence = 0
        for shard_id in shard_ids:
            try:
                capacity = await self._citrus.fetch_capacity(shard_id)
            except (RetryableError, PermanentError):
                silence += 1
                if silence == SILENCE_MAX:
                    return
            else:
                silence = 0
                self._learn(shard_id, capacity)
            await self._sleep(self._ask_pause_s)

    async def _sleep(self, interval_s: float) -> None:
        await asyncio.sleep(jittered(interval_s, ratio=JITTER, draw=self._draw()))

    def _learn(self, shard_id: str, capacity: Capacity | None) -> None:
        if capacity is None:
            self._questions.note_absence(shard_id, now=self._clock())
            return
        self._questions.note_answer()
        if (shard := self._known.get(shard_id)) is not None:  # in the newest list
            self._capacities[shard_id] = capacity
            self._registry.note_usage(shard_id, usage_of(shard, capacity))
