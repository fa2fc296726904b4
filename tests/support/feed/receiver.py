"""A destination in the process of the test: remembers what came, and answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from simplu_worker.feed.feed import ConfiguredDestination
from simplu_worker.feed.types import Delivered, Delivery, DestinationTerms, FeedEvent, RetryLater
from simplu_worker.vocabulary import FeedBeginning, FeedKind

PATIENCE_S = 60.0


class Receiver:
    """A receiver that keeps everything in the order in which it came; *answer* decides about each event."""

    def __init__(self, name: str = "receiver", *, max_events: int = 500) -> None:
        self.name = name
        self.max_events = max_events
        self.events: list[FeedEvent] = []
        self.resets: list[FeedEvent] = []
        self.answer: Callable[[FeedEvent], Delivery] = lambda _: Delivered()
        self.hangs = False
        self.call_count = 0
        self._came = asyncio.Condition()

    def __repr__(self) -> str:
        return f"Receiver({self.name}, {len(self.events)} events)"

    async def publish(self, events: Sequence[FeedEvent]) -> Sequence[Delivery]:
        self.call_count += 1
        if self.hangs:
            await asyncio.Event().wait()
        answers: list[Delivery] = []
        blocked: set[str] = set()
        async with self._came:
            for event in events:
                answer = RetryLater("waits") if event.subject in blocked else self.answer(event)
                if event.kind is FeedKind.RESET:
                    answer = Delivered()
                    self.resets.append(event)
                elif isinstance(answer, Delivered):
                    self.events.append(event)
                else:
                    blocked.add(event.subject)
                answers.append(answer)
            self._came.notify_all()
        return answers

    async def until(self, condition: Callable[[Sequence[FeedEvent]], bool], within_s: float = PATIENCE_S) -> None:
        try:
            async with self._came, asyncio.timeout(within_s):
                await self._came.wait_for(lambda: condition(self.events))
        except TimeoutError:
            raise AssertionError([(one.kind.value, one.subject, one.id, one.position) for one in self.events]) from None

    async def until_count(self, count: int, within_s: float = PATIENCE_S) -> None:
        await self.until(lambda events: len({one.id for one in events}) >= count, within_s)

    def told(self) -> list[tuple[str, str]]:
        first = {one.id: one for one in reversed(self.events)}
        seen = sorted(first.values(), key=self.events.index)
        return [(one.kind.value, one.subject) for one in seen]

    def configured(
        self, *, begin: FeedBeginning = FeedBeginning.NOW, terms: DestinationTerms | None = None
    ) -> ConfiguredDestination:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Receiver]:
            yield self

        return ConfiguredDestination(terms or DestinationTerms(self.name, begin=begin), opened)
