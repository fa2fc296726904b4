"""What one destination gets of one shard, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec.structs import replace
from simulation.virtual_time import VirtualLoop
from structlog.testing import capture_logs
from support.feed.events import AT, feed_event
from support.feed.receiver import Receiver

from simplu_worker.feed.destination_feed import TRIES_NOTED, DestinationFeed
from simplu_worker.feed.rows import CursorRow
from simplu_worker.feed.types import (
    Delivered,
    Delivery,
    DestinationTerms,
    EventBounds,
    FeedEvent,
    Place,
    Publication,
    RetryLater,
)
from simplu_worker.feed.window import Budget
from simplu_worker.vocabulary import FeedKind

ROW = CursorRow("receiver", Place(5, 2), "one")


@asynccontextmanager
async def running(receiver: Receiver, incarnation: str = "one") -> AsyncIterator[DestinationFeed]:
    publication, terms = Publication("s", incarnation, "token"), DestinationTerms("receiver")
    feed = DestinationFeed(publication, terms, receiver, ROW, changed=asyncio.Event(), documents=Budget())
    feed.begin(AT)

    async def keep_refusal(_: str, __: FeedEvent, ___: str) -> None:
        raise AssertionError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed.run(is_publisher=lambda: True, keep_refusal=keep_refusal))
        yield feed
        feed.end()


def test_destination_that_asks_for_a_pause_gets_nothing_in_it() -> None:
    receiver = Receiver()
    receiver.answer = lambda _: RetryLater("429", 60.0)

    async def story() -> None:
        async with running(receiver) as feed:
            feed.add_events([feed_event(1, "p-1")])
            await asyncio.sleep(1)
            feed.add_events([feed_event(2, "p-2")])
            await asyncio.sleep(58)
            assert receiver.call_count == 1
            receiver.answer = lambda _: Delivered()
            await asyncio.sleep(2)
            assert [one.resource_id for one in receiver.events] == ["p-1", "p-2"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


def test_event_that_is_not_taken_again_and_again_is_named() -> None:
    receiver = Receiver()
    failing, late, second = (feed_event(number, f"p-{number}") for number in (1, 2, 3))
    untaken = {failing.id, second.id}

    def answer(event: FeedEvent) -> Delivery:
        is_late = event.id == late.id and receiver.call_count <= TRIES_NOTED - 2
        return RetryLater("500") if is_late or event.id in untaken else Delivered()

    receiver.answer = answer

    async def story() -> None:
        async with running(receiver) as feed:
            feed.add_events([failing, late, second])
            await asyncio.sleep(600)
            untaken.remove(failing.id)
            await asyncio.sleep(600)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, capture_logs() as logs:
        runner.run(story())
    named = [(one["event_id"], one["error"]) for one in logs if one["event"] == "feed.event_retried"]
    assert list(dict.fromkeys(named)) == [(failing.id, "500"), (second.id, "500")]
    assert len(named) <= receiver.call_count / TRIES_NOTED


def test_reset_is_at_the_cursor_and_comes_before_all_else() -> None:
    receiver = Receiver()

    async def story() -> None:
        async with running(receiver, "two") as feed:
            assert (feed.is_reading, feed.row()) == (False, replace(ROW, behind_since=AT))
            await asyncio.sleep(1)
            (reset,) = receiver.resets
            found = reset.id, reset.kind, reset.subject, reset.position, reset.incarnation, reset.bounds
            assert found == ("s-reset-two", FeedKind.RESET, "s", "5-2", "two", EventBounds(5))
            assert (feed.is_reading, feed.row()) == (True, replace(ROW, incarnation="two"))
        receiver.resets.clear()
        async with running(receiver) as feed:
            assert feed.is_reading
            await asyncio.sleep(1)
        assert receiver.resets == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())
