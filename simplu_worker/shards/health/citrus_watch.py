"""Ask Citrus now and then how the shards fare and how much room they have: for people, never for routing.

One request at a time for each question, tried once, so that whoever needs a route is not kept waiting.
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
from simplu_worker.shards.routing.citrus import Capacity, CitrusClient
from simplu_worker.timing.clock import loop_time

POLL_S: Final = 60.0
DENIED_POLL_S: Final = 5.0  # until a person has mended the key: then work goes on
ASK_PAUSE_S: Final = 1.0  # between two shards; with more than fit into POLL_S each is asked about less often
SILENCE_MAX: Final = 3  # answers that do not come, one after the other
ABSENT_S: Final = 3600.0  # before a Citrus that does not know the question is asked it again
JITTER: Final = 0.2


def jittered(seconds: float, draw: float) -> float:
    """Return *seconds*, a fifth more or less: replicas do not ask in step."""
    return seconds * (1 - JITTER + 2 * JITTER * draw)


class CapacityQuestions:
    """Which shards to ask about next, and whether there is any use in it.

    As long as there was no answer but 404, one shard is asked about, hardly ever: Citrus may not know the question.
    Later a 404 says that it does not know that shard.
    """

    def __init__(self) -> None:
        self._not_before: dict[str, float] = {}
        self._has_answered = False

    def __repr__(self) -> str:
        return f"Questions(has_answered={self._has_answered}, absent={len(self._not_before)})"

    def choose(self, shard_ids: Collection[str], *, now: float, draw: float) -> list[str]:
        """Return those of *shard_ids* to ask about now; *draw* is a random number from 0 to 1, excluded."""
        self._not_before = {
            shard_id: at for shard_id, at in self._not_before.items() if shard_id in shard_ids and at > now
        }
        if self._has_answered:
            return [shard_id for shard_id in shard_ids if shard_id not in self._not_before]
        return [] if self._not_before else list(shard_ids)[int(draw * len(shard_ids)) :][:1]

    def note_answer(self) -> None:
        """There was an answer about a shard."""
        self._has_answered = True

    def note_absence(self, shard_id: str, *, now: float) -> None:
        """Citrus knows nothing of a shard, or does not know the question."""
        self._not_before[shard_id] = now + ABSENT_S


class CitrusWatch:
    """Polls a Citrus, and writes what it says into *book*."""

    def __init__(
        self,
        citrus: CitrusClient,
        registry: HealthRegistry,
        *,
        poll_s: float = POLL_S,
        denied_poll_s: float = DENIED_POLL_S,
        ask_pause_s: float = ASK_PAUSE_S,
        clock: Callable[[], float] = loop_time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._citrus = citrus
        self._registry = registry
        self._poll_s = poll_s
        self._denied_poll_s = denied_poll_s
        self._ask_pause_s = ask_pause_s
        self._clock = clock
        self._draw = draw
        self._known: dict[str, ShardAddress] = {}
        self._capacities: dict[str, Capacity] = {}
        self._questions = CapacityQuestions()

    def __repr__(self) -> str:
        return f"CitrusWatch(known={len(self._known)}, capacities={len(self._capacities)})"

    async def run(self) -> None:
        """Poll until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_denial(), name="citrus:denial")
            tasks.create_task(self._watch_shards(), name="citrus:shards")
            tasks.create_task(self._watch_capacities(), name="citrus:capacities")

    async def _watch_denial(self) -> None:
        """Notice that the key is good again, also when no work asks; what is asked aside says nothing of that."""
        while True:
            await asyncio.sleep(jittered(self._denied_poll_s, self._draw()))
            if self._citrus.is_denied:
                with contextlib.suppress(RetryableError, PermanentError):
                    await self._citrus.list_shards()

    async def _watch_shards(self) -> None:
        rest_s = self._poll_s
        while True:
            with contextlib.suppress(RetryableError, PermanentError):  # what was said before stays
                known = await self._citrus.fetch_overview()
                rest_s = ABSENT_S if known is None else self._poll_s
                self._note(known or [])
            await asyncio.sleep(jittered(rest_s, self._draw()))

    def _note(self, known: Iterable[ShardAddress]) -> None:
        self._known = {shard.shard_id: shard for shard in known}
        self._capacities = {name: one for name, one in self._capacities.items() if name in self._known}
        self._registry.note_usages(
            {name: usage_of(shard, self._capacities.get(name)) for name, shard in self._known.items()}
        )

    async def _watch_capacities(self) -> None:
        while True:
            await self._ask_about(self._questions.choose(self._known.keys(), now=self._clock(), draw=self._draw()))
            await asyncio.sleep(jittered(self._poll_s if self._known else min(self._poll_s, 1.0), self._draw()))

    async def _ask_about(self, shard_ids: Sequence[str]) -> None:
        """Ask about each, one after the other; a Citrus that gives no answer is let alone until the next time."""
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
            await asyncio.sleep(jittered(self._ask_pause_s, self._draw()))

    def _learn(self, shard_id: str, capacity: Capacity | None) -> None:
        if capacity is None:
            self._questions.note_absence(shard_id, now=self._clock())
            return
        self._questions.note_answer()
        if (shard := self._known.get(shard_id)) is not None:  # of the newest list
            self._capacities[shard_id] = capacity
            self._registry.note_usage(shard_id, usage_of(shard, capacity))
