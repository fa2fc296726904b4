"""What is remembered of delivered events."""

from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.feed.events import undone_event
from simplu_worker.feed.memory import EVENTS_MAX, KEPT_S, DeliveredEvents
from simplu_worker.feed.places import Place
from simplu_worker.feed.types import FeedEvent, FeedTenant, Incarnation
from simplu_worker.shards.log.reading_order import BatchRef
from simplu_worker.vocabulary import FeedKind

AT = datetime(2026, 3, 1, tzinfo=UTC)


def event(number: int, name: str = "") -> FeedEvent:
    """Return the event of the request *number*."""
    return FeedEvent(
        id=name or f"e{number}",
        kind=FeedKind.RESOURCE_UPDATED,
        shard_id="s",
        time=AT,
        position=f"{number}-0",
        incarnation=Incarnation("i"),
        tenant=FeedTenant("t-1", "t", "1", "gym"),
        request_id=f"request-{number}",
        data=b"{}",
    )


def test_events_of_lost_batches_are_taken_back_newest_first() -> None:
    """Those behind the cursor whose batch is not there; a change that comes again names the old event."""
    memory = DeliveredEvents()
    memory.known_from = Place(0, 0)
    for number in range(1, 5):
        memory.note(BatchRef(number, f"t{number}"), Place(number, 0), event(number), now=0)
    assert memory.is_complete_behind(Place(1, 0))
    assert [one.batch_id for one in memory.refs_behind(Place(1, 0))] == [2, 3, 4]
    undone = memory.take_undone(Place(1, 0), {"t3"})
    assert [one.id for one in undone] == ["e4", "e2"]
    taken_back = undone_event(undone[0], Incarnation("j"), AT)
    assert (taken_back.id, taken_back.undoes, taken_back.data) == ("e4-undone-j", "e4", None)
    memory.note_undone(undone[0])
    assert memory.reapplied(event(4, "new")) == "e4"
    assert memory.reapplied(event(2, "new")) is None


def test_memory_is_not_complete_behind_what_it_has_forgotten() -> None:
    """By their number, and by their age."""
    memory = DeliveredEvents()
    memory.known_from = Place(0, 0)
    for number in range(EVENTS_MAX + 1):
        memory.note(BatchRef(number, f"t{number}"), Place(number, 1), event(number), now=0)
    assert not memory.is_complete_behind(Place(0, 0))
    assert memory.is_complete_behind(Place(0, 1))
    memory.note(BatchRef(20_000, "t"), Place(20_000, 0), event(1), now=KEPT_S + 1)
    assert not memory.is_complete_behind(Place(EVENTS_MAX, 0))
    assert memory.is_complete_behind(Place(EVENTS_MAX, 1))
