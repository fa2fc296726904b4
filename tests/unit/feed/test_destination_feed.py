"""What one destination gets of one shard, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from simulation.virtual_time import VirtualLoop
from support.feed.events import feed_event
from support.feed.receiver import Receiver

from simplu_worker.feed.destination_feed import DestinationFeed
from simplu_worker.feed.memory import SentEvents
from simplu_worker.feed.places import Place
from simplu_worker.feed.rows import CursorRow
from simplu_worker.feed.types import Delivered, DestinationTerms, FeedEvent, Incarnation, RetryLater
from simplu_worker.feed.window import RETRY_AFTER_MAX_S

ROW = CursorRow("receiver", Place(0, 0), "", undone_due=False, held=())


@asynccontextmanager
async def running(receiver: Receiver) -> AsyncIterator[DestinationFeed]:
    """Run the feed to *receiver* for the length of the block."""
    terms, changed = DestinationTerms("receiver"), asyncio.Event()
    feed = DestinationFeed("s", terms, receiver, SentEvents(), ROW, Incarnation("one"), changed=changed)

    async def keep_refusal(_: str, __: FeedEvent, ___: str) -> None:
        raise AssertionError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed.run(is_publisher=lambda: True, keep_refusal=keep_refusal))
        yield feed
        feed.end()


@pytest.mark.parametrize(("asked_s", "pause_s"), [(60.0, 60.0), (1e6, RETRY_AFTER_MAX_S)])
def test_destination_that_asks_for_a_pause_gets_nothing_in_it(asked_s: float, pause_s: float) -> None:
    """Not only none of the events that were tried: what is read meanwhile waits as well, an hour at most."""
    receiver = Receiver()
    receiver.answer = lambda _: RetryLater("429", asked_s)

    async def story() -> None:
        async with running(receiver) as feed:
            feed.add_events([feed_event(1, "p-1")])
            await asyncio.sleep(1)
            feed.add_events([feed_event(2, "p-2")])
            await asyncio.sleep(pause_s - 2)
            assert receiver.call_count == 1
            receiver.answer = lambda _: Delivered()
            await asyncio.sleep(2)
            assert [one.resource_id for one in receiver.events] == ["p-1", "p-2"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())
