"""The window of a destination: which events may be sent, and where the cursor is."""

from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.feed.places import Place
from simplu_worker.feed.types import Delivered, Disabled, FeedEvent, FeedTenant, Incarnation, Refused, RetryLater
from simplu_worker.feed.window import RETRY_MAX_S, RefusedForGood, Window, WindowEvent
from simplu_worker.vocabulary import FeedKind

TENANT = FeedTenant("t-1", "t", "1", "gym")


def event(number: int, key: str = "r") -> WindowEvent:
    """Return an event of the batch *number*."""
    made = FeedEvent(
        id=f"e{number}",
        kind=FeedKind.RESOURCE_UPDATED,
        shard_id="s",
        time=datetime(2026, 3, 1, tzinfo=UTC),
        position=f"{number}-0",
        incarnation=Incarnation("i"),
        tenant=TENANT,
        resource_type="patient",
        resource_id=key,
    )
    return WindowEvent(made, Place(number, 0))


def test_cursor_stays_before_the_oldest_event_that_is_not_done() -> None:
    """Delivered events beyond it are not sent again."""
    window, events = Window(Place(0, 9)), [event(1, "a"), event(2, "b"), event(3, "c")]
    window.add(events, Place(3, 0))
    window.settle(events, [RetryLater("x"), Delivered(), Delivered()], tries=3, now=0, draw=0)
    assert window.cursor == Place(1, -1)
    assert window.due(10, now=100) == [events[0]]
    window.settle(events[:1], [Delivered()], tries=3, now=100, draw=0)
    assert (window.cursor, len(window)) == (Place(3, 0), 0)


def test_key_waits_behind_its_first_event_that_waits() -> None:
    """And no other key does."""
    window, events = Window(Place(0, 0)), [event(1, "a"), event(2, "a"), event(3, "b")]
    window.add(events, Place(3, 0))
    assert window.due(10, now=0) == events
    window.settle(events[:1], [RetryLater("x", 5)], tries=3, now=0, draw=0)
    assert window.due(10, now=1) == [events[2]]
    assert window.due(10, now=5) == events
    assert window.next_due_at() == 0
    assert window.due(1, now=5) == events[:1]


def test_refused_event_is_finished_when_its_tries_are_over_and_it_is_kept() -> None:
    """Until then its key waits; the pause between two tries is bounded."""
    window, one = Window(Place(0, 0)), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Refused("no")], tries=2, now=0, draw=0) == []
    assert window.due(1, now=0) == []
    assert window.settle([one], [Refused("no")], tries=2, now=9, draw=0) == [RefusedForGood(one, "no")]
    assert window.cursor == Place(1, -1)
    window.finish(one)
    assert window.cursor == Place(1, 0)


def test_disabled_destination_is_reported_and_keeps_its_event() -> None:
    """A person lets it go on."""
    window, one = Window(Place(0, 0)), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Disabled("410")], tries=2, now=0, draw=0) == [Disabled("410")]
    assert window.cursor == Place(1, -1)


def test_retries_come_after_growing_pauses_up_to_a_bound() -> None:
    """However often the destination is busy."""
    window, one = Window(Place(0, 0)), event(1)
    window.add([one], Place(1, 0))
    for _ in range(50):
        window.settle([one], [RetryLater("x")], tries=2, now=0, draw=1)
    assert one.due_at == RETRY_MAX_S
