"""The window of a destination: which events may be sent, and where the cursor is."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from support.feed.events import feed_event

from simplu_worker.feed.types import Delivered, Delivery, Disabled, Place, Refused, RetryLater
from simplu_worker.feed.window import (
    DOCUMENTS_MAX_BYTES,
    DOCUMENTS_MIN_BYTES,
    EVENTS_MAX,
    TOTAL_DOCUMENT_BYTES,
    Budget,
    RefusedForGood,
    Window,
    WindowEvent,
)
from simplu_worker.operations.tries import RetryRules

RULES = RetryRules((1.0, 5.0), timedelta(), (1.0, 60.0))


def event(number: int, key: str = "r") -> WindowEvent:
    return WindowEvent(feed_event(number, key), Place(number, 0))


def window_from(position: int = 0) -> Window:
    """Return a window that has the memory for documents alone; it begins in batch 0."""
    return Window(Place(0, position), Budget())


def test_cursor_stays_before_the_oldest_event_that_is_not_done() -> None:
    window, events = window_from(9), [event(1, "a"), event(2, "b"), event(3, "c")]
    assert (window.cursor, window.behind_since, window.next_due_at()) == (Place(0, 9), None, None)
    window.add(events, Place(3, 0))
    assert window.settle(events, [RetryLater("x"), Delivered(), Delivered()], rules=RULES, now=0, draw=0) == events[1:]
    assert (window.cursor, window.behind_since) == (Place(1, -1), events[0].event.time)
    assert window.due(10, now=100) == [events[0]]
    window.settle(events[:1], [Delivered()], rules=RULES, now=100, draw=0)
    assert (window.cursor, len(window)) == (Place(3, 0), 0)


def test_key_waits_behind_its_first_event_that_is_not_done() -> None:
    window, events = window_from(), [event(1, "a"), event(2, "a"), event(3, "b"), event(4, "c")]
    window.add(events, Place(4, 0))
    assert window.due(10, now=0) == [events[0], events[2], events[3]]
    assert window.due(1, now=0) == events[:1]
    window.settle([events[0], events[2]], [RetryLater("x"), Delivered()], rules=RULES, now=0, draw=0)
    assert (window.due(10, now=0.4), window.next_due_at()) == ([events[3]], 0)
    window.settle([events[3]], [RetryLater("x")], rules=RULES, now=0.25, draw=0)
    assert (window.due(10, now=0.4), window.next_due_at()) == ([], 0.5)
    window.settle([events[0]], [Delivered()], rules=RULES, now=0.5, draw=0)
    assert window.due(10, now=0.5) == [events[1]]


def test_window_has_room_until_it_is_half_full() -> None:
    window = window_from()
    window.add([event(number) for number in range(EVENTS_MAX // 2)], Place(1, 0))
    assert window.has_room
    window.add([event(0)], Place(1, 0))
    assert not window.has_room


def test_refused_event_is_finished_when_its_tries_are_over_and_it_is_kept() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    for now, delay_s in ((0, 1.0), (9, 5.0)):
        assert window.settle([one], [Refused("no")], rules=RULES, now=now, draw=0) == []
        assert window.next_due_at() == now + delay_s
        assert window.settle([one], [RetryLater("500")], rules=RULES, now=now, draw=0) == []  # is no try of its own
    assert window.settle([one], [Refused("no")], rules=RULES, now=20, draw=0) == [RefusedForGood(one, "no")]
    assert (window.cursor, window.next_due_at()) == (Place(1, -1), 80)
    window.finish(one)
    assert window.cursor == Place(1, 0)


@pytest.mark.parametrize("failure", [RetryLater("503"), Refused("400")])
def test_event_that_a_person_passes_is_finished_by_its_next_failure(failure: RetryLater | Refused) -> None:
    window, one = window_from(), event(1)
    one.is_passed = True
    window.add([one], Place(1, 0))
    assert window.settle([one], [failure], rules=RULES, now=99, draw=0) == [RefusedForGood(one, failure.error)]
    assert window.due(1, now=99) == []  # until it is kept
    window.finish(one)
    assert window.cursor == Place(1, 0)


def test_disabled_destination_is_reported_and_keeps_its_event() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    assert window.settle([one], [Disabled("410")], rules=RULES, now=0, draw=0) == [Disabled("410")]
    assert window.cursor == Place(1, -1)


def test_window_is_full_when_its_documents_are() -> None:
    window = window_from()
    large = [event(number) for number in (1, 2, 3)]
    for one in large:
        one.event = msgspec.structs.replace(one.event, data=b"x" * (DOCUMENTS_MAX_BYTES // 4))
    window.add([*large[:2], event(9)], Place(9, 0))
    had_room = [window.has_room]
    window.add(large[2:], Place(10, 0))
    had_room.append(window.has_room)
    window.settle(large[:1], [Delivered()], rules=RULES, now=0, draw=0)
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
        while events := window.due(EVENTS_MAX, now=0):
            window.settle(events, [Delivered()] * len(events), rules=RULES, now=0, draw=0)
    assert windows[0].has_room
    assert budget.part == DOCUMENTS_MAX_BYTES


def test_event_that_is_not_taken_is_due_later_each_time() -> None:
    window, one = window_from(), event(1)
    window.add([one], Place(1, 0))
    waits_s = []
    for _ in range(3):
        assert window.settle([one], [RetryLater("x", 60.0)], rules=RULES, now=100, draw=0) == []
        waits_s.append(one.due_at - 100)
    assert waits_s == [0.5, 1.0, 2.0]


def test_all_that_is_finished_is_returned_in_order() -> None:
    window, events = window_from(), [event(number, str(number)) for number in range(4)]
    window.add(events, Place(4, 0))
    rules = RetryRules((), timedelta(), (1.0, 60.0))
    events[2].is_passed = True
    deliveries: list[Delivery] = [Delivered(), Refused("400"), RetryLater("503"), Delivered()]
    finished = window.settle(events, deliveries, rules=rules, now=0, draw=0)
    assert finished == [events[0], RefusedForGood(events[1], "400"), RefusedForGood(events[2], "503"), events[3]]
