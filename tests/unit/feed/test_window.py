"""The window of a destination: which events may be sent, and where the cursor is."""

from __future__ import annotations

import msgspec
import pytest
from support.feed.events import feed_event

from simplu_worker.feed.types import Delivered, Disabled, Place, Refused, RetryLater
from simplu_worker.feed.window import (
    DOCUMENTS_MAX_BYTES,
    DOCUMENTS_MIN_BYTES,
    EVENTS_MAX,
    RETRY_MAX_S,
    TOTAL_DOCUMENT_BYTES,
    Budget,
    RefusedForGood,
    Window,
    WindowEvent,
)


def event(number: int, key: str = "r") -> WindowEvent:
    return WindowEvent(feed_event(number, key), Place(number, 0))


def window_from(position: int = 0) -> Window:
    """Return a window that has the memory for documents alone; it begins in batch 0."""
    return Window(Place(0, position), Budget())


def test_cursor_stays_before_the_oldest_event_that_is_not_done() -> None:
    window, events = window_from(9), [event(1, "a"), event(2, "b"), event(3, "c")]
    assert (window.cursor, window.behind_since, window.next_due_at()) == (Place(0, 9), None, None)
    window.add(events, Place(3, 0))
    assert window.settle(events, [RetryLater("x"), Delivered(), Delivered()], tries=3, now=0, draw=0) == events[1:]
    assert (window.cursor, window.behind_since) == (Place(1, -1), events[0].event.time)
    assert window.due(10, now=100) == [events[0]]
    window.settle(events[:1], [Delivered()], tries=3, now=100, draw=0)
    assert (window.cursor, len(window)) == (Place(3, 0), 0)


def test_key_waits_behind_its_first_event_that_waits() -> None:
    window, events = window_from(), [event(1, "a"), event(2, "a"), event(3, "b"), event(4, "c")]
    window.add(events, Place(4, 0))
    assert window.due(10, now=0) == events
    window.settle(events[:1], [RetryLater("x", 5)], tries=3, now=0, draw=0)
    window.settle(events[2:3], [Delivered()], tries=3, now=0, draw=0)
    assert window.due(10, now=1) == [events[3]]
    assert window.due(10, now=5) == [events[0], events[1], events[3]]
    assert window.next_due_at() == 0
    assert window.due(1, now=5) == events[:1]


def test_next_event_is_due_when_the_first_of_a_key_is() -> None:
    window, events = window_from(), [event(1, "a"), event(2, "a"), event(3, "b"), event(4, "c")]
    window.add(events, Place(4, 0))
    sent = [events[0], events[2], events[3]]
    window.settle(sent, [RetryLater("x", 5), RetryLater("x", 7), Delivered()], tries=3, now=0, draw=0)
    assert (window.due(10, now=4.9), window.next_due_at()) == ([], 5)


def test_event_behind_one_that_fails_is_due_as_soon_as_that_one_is_delivered() -> None:
    window, events = window_from(), [event(number) for number in range(1, 4)]
    window.add(events, Place(3, 0))
    for failure in (RetryLater("500"), Refused("400")):
        for attempt in range(1, 9):
            window.settle(events, [failure, RetryLater("behind"), RetryLater("behind")], tries=9, now=attempt, draw=0)
    window.settle(events, [Delivered(), RetryLater("500"), RetryLater("behind")], tries=9, now=100, draw=0)
    assert window.next_due_at() == 100.1
    assert window.due(10, now=100.1) == events[1:]


def test_window_has_room_until_it_is_half_full() -> None:
    window = window_from()
    window.add([event(number) for number in range(EVENTS_MAX // 2)], Place(1, 0))
    assert window.has_room
    window.add([event(0)], Place(1, 0))
    assert not window.has_room


def test_refused_event_is_finished_when_its_tries_are_over_and_it_is_kept() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Refused("no")], tries=2, now=0, draw=0) == []
    assert (window.due(1, now=0.09), window.due(1, now=0.1)) == ([], [one])
    assert window.settle([one], [Refused("no")], tries=2, now=9, draw=0) == [RefusedForGood(one, "no")]
    assert (window.cursor, window.next_due_at()) == (Place(1, -1), 9.2)
    window.finish(one)
    assert window.cursor == Place(1, 0)


@pytest.mark.parametrize("failure", [RetryLater("503"), RetryLater("429", 60.0)])
def test_event_that_a_person_passes_is_finished_by_its_next_failure(failure: RetryLater) -> None:
    window, events = window_from(), [event(1), event(2)]
    events[1].is_passed = True
    window.add(events, Place(2, 0))
    assert window.settle(events, [failure, RetryLater("behind")], tries=9, now=0, draw=0) == []
    assert window.settle(events[:1], [Delivered()], tries=9, now=99, draw=0) == events[:1]
    refused = RefusedForGood(events[1], failure.error)
    assert window.settle(events[1:], [failure], tries=9, now=99, draw=0) == [refused]
    assert window.due(1, now=99) == []  # until it is kept
    window.finish(events[1])
    assert window.cursor == Place(2, 0)


def test_disabled_destination_is_reported_and_keeps_its_event() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Disabled("410")], tries=2, now=0, draw=0) == [Disabled("410")]
    assert window.cursor == Place(1, -1)


def test_retries_come_after_growing_pauses_up_to_a_bound() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    waits_s = []
    for after_s in (None, None, 5.0, 0.1):  # as it asks for, but not less than the pause
        window.settle([one], [RetryLater("x", after_s)], tries=2, now=100, draw=0)
        waits_s.append(one.due_at - 100)
    assert waits_s == pytest.approx([0.1, 0.2, 5.0, 0.8])
    for _ in range(50):
        window.settle([one], [RetryLater("x")], tries=2, now=0, draw=1)
    assert one.due_at == RETRY_MAX_S


def test_window_is_full_when_its_documents_are() -> None:
    window = window_from()
    large = [event(number) for number in (1, 2, 3)]
    for one in large:
        one.event = msgspec.structs.replace(one.event, data=b"x" * (DOCUMENTS_MAX_BYTES // 4))
    window.add([*large[:2], event(9)], Place(9, 0))
    had_room = [window.has_room]
    window.add(large[2:], Place(10, 0))
    had_room.append(window.has_room)
    window.settle(large[:1], [Delivered()], tries=3, now=0, draw=0)
    assert [*had_room, window.has_room] == [True, False, True]


def test_documents_in_the_windows_of_a_process_share_one_budget() -> None:
    budget = Budget()
    windows = [Window(Place(0, 0), budget) for _ in range(4 * TOTAL_DOCUMENT_BYTES // DOCUMENTS_MAX_BYTES)]
    small = event(1)
    small.event = msgspec.structs.replace(small.event, data=b"x" * (DOCUMENTS_MIN_BYTES // 2))
    assert all(window.has_room for window in windows)
    while with_room := [window for window in windows if window.has_room]:
        for window in with_room:
            window.add([msgspec.structs.replace(small)], Place(1, 0))
    held = [len(window) * DOCUMENTS_MIN_BYTES // 2 for window in windows]
    assert TOTAL_DOCUMENT_BYTES // 2 < sum(held) <= TOTAL_DOCUMENT_BYTES
    for window in windows[1:]:
        events = window.due(EVENTS_MAX, now=0)
        window.settle(events, [Delivered()] * len(events), tries=3, now=0, draw=0)
    assert windows[0].has_room
    assert budget.part == DOCUMENTS_MAX_BYTES
