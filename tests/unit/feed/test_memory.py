"""What is remembered of delivered events."""

from __future__ import annotations

import msgspec
from support.feed.events import AT, feed_event

from simplu_worker.feed.events import undone_event
from simplu_worker.feed.types import BatchRef, FeedEvent, FeedFilter, Incarnation, Place
from simplu_worker.feed.window import EVENTS_MIN, KEPT_S, TOTAL_EVENTS, SentEvents, event_budget
from simplu_worker.feed.window import PROCESS_EVENTS_MAX as EVENTS_MAX


def event(number: int, name: str = "") -> FeedEvent:
    return feed_event(number, id=name or f"e{number}", data=b"{}")


def test_events_of_lost_batches_are_taken_back_newest_first() -> None:
    memory = SentEvents(event_budget())
    memory.known_from = Place(0, 0)
    for number in range(1, 5):
        memory.note(BatchRef(number, f"t{number}"), Place(number, 0), event(number), now=0)
    assert memory.is_complete_behind(Place(1, 0))
    assert [one.batch_id for one in memory.refs_behind(Place(1, 0))] == [2, 3, 4]
    undone = memory.take_undone(Place(1, 0), {"t3"})
    assert [(one.id, one.data) for one in undone] == [("e4", None), ("e2", None)]  # no memory for data
    assert [one.batch_id for one in memory.refs_behind(Place(0, 0))] == [1]
    taken_back = undone_event(undone[0], Incarnation("j"), AT)
    assert (taken_back.id, taken_back.undoes, taken_back.data) == ("e4-undone-j", "e4", None)
    memory.note_undone(undone[0])
    assert memory.reapplied(event(4, "new")) == "e4"
    assert memory.reapplied(event(2, "new")) is None


def test_memory_whose_events_are_all_undone_leaves_its_part_to_others() -> None:
    budget = event_budget()
    memory = SentEvents(budget)
    memory.note(BatchRef(1, "t1"), Place(1, 0), event(1), now=0)
    assert list(budget.users) == [memory]
    memory.take_undone(Place(0, 0), ())
    assert list(budget.users) == []
    memory.note(BatchRef(1, "t2"), Place(1, 0), event(2), now=0)
    assert list(budget.users) == [memory]


def test_change_that_comes_again_is_that_of_its_tenant_and_request() -> None:
    memory, of_shard = SentEvents(event_budget()), msgspec.structs.replace(event(1), tenant=None)
    without_request = msgspec.structs.replace(event(1), request_id=None)
    for one in (of_shard, without_request):
        assert memory.reapplied(one) is None
        memory.note_undone(one)
        memory.note_undone(event(1))
        assert memory.reapplied(one) is None
    for number in range(2, EVENTS_MAX + 1):
        memory.note_undone(event(number))
    assert memory.reapplied(event(1, "new")) == "e1"
    memory.note_undone(event(EVENTS_MAX + 1))
    again = [memory.reapplied(event(number, "new")) for number in (1, 2, EVENTS_MAX + 1)]
    assert again == [None, "e2", f"e{EVENTS_MAX + 1}"]


def test_events_are_remembered_as_long_as_a_standby_may_lag() -> None:
    memory = SentEvents(event_budget())
    assert not memory.is_complete_behind(Place(9, 9))
    memory.note(BatchRef(1, "t1"), Place(1, 0), event(1), now=0)
    memory.note(BatchRef(2, "t2"), Place(2, 0), event(2), now=KEPT_S)
    assert (len(memory.refs_behind(Place(0, 0))), memory.known_from) == (2, None)
    memory.note(BatchRef(3, "t3"), Place(3, 0), event(3), now=KEPT_S + 1)
    assert not memory.is_complete_behind(Place(9, 9))
    memory.note_whole(Place(0, 5))
    assert memory.known_from == Place(1, 0)
    memory.note_whole(Place(2, 5))
    memory.note(BatchRef(4, "t4"), Place(4, 0), event(4), now=2 * KEPT_S + 1)
    assert (len(memory.refs_behind(Place(0, 0))), memory.known_from) == (2, Place(2, 5))


def test_memory_is_not_complete_behind_what_it_has_forgotten() -> None:
    memory = SentEvents(event_budget())
    memory.known_from = Place(0, 0)
    for number in range(EVENTS_MAX + 1):
        memory.note(BatchRef(number, f"t{number}"), Place(number, 1), event(number), now=0)
    assert not memory.is_complete_behind(Place(0, 0))
    assert memory.is_complete_behind(Place(0, 1))
    memory.note(BatchRef(20_000, "t"), Place(20_000, 0), event(1), now=KEPT_S + 1)
    assert not memory.is_complete_behind(Place(EVENTS_MAX, 0))
    assert memory.is_complete_behind(Place(EVENTS_MAX, 1))


def test_memories_of_a_process_share_one_budget() -> None:
    budget = event_budget()
    memories = [SentEvents(budget) for _ in range(50 * 2)]
    noted = [(BatchRef(number, ""), Place(number, 1), event(number)) for number in range(4 * EVENTS_MIN)]
    for memory in memories:
        memory.known_from = Place(0, 0)
        for ref, place, one in noted:
            memory.note(ref, place, one, now=0)
    kept = [len(memory.refs_behind(Place(0, 0))) for memory in memories]
    assert (sum(kept), set(kept)) == (TOTAL_EVENTS, {EVENTS_MIN})
    assert {memory.known_from for memory in memories} == {Place(3 * EVENTS_MIN - 1, 1)}


def test_memory_without_new_events_is_empty_in_the_end() -> None:
    budget = event_budget()
    idle, busy = SentEvents(budget), SentEvents(budget)
    for memory in (idle, busy):
        memory.note(BatchRef(1, "t1"), Place(1, 0), event(1), now=0)
    idle.forget_old(KEPT_S)
    assert (len(idle.refs_behind(Place(0, 0))), set(budget.users)) == (1, {idle, busy})
    idle.forget_old(KEPT_S + 1)
    assert (idle.refs_behind(Place(0, 0)), set(budget.users)) == ([], {busy})


def test_memory_is_whole_under_one_filter() -> None:
    memory = SentEvents(event_budget())
    memory.note_whole(Place(1, 0))
    memory.note_filter(FeedFilter())
    assert memory.is_complete_behind(Place(1, 0))
    memory.note_filter(FeedFilter(tenants=frozenset({"t-1"})))
    assert not memory.is_complete_behind(Place(9, 0))
    memory.note_whole(Place(2, 0))
    memory.note_filter(FeedFilter(tenants=frozenset({"t-1"})))
    assert memory.is_complete_behind(Place(2, 0))
