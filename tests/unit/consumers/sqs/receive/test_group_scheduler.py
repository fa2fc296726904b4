from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.group_scheduler import (
    HELD_MAX_S,
    MAY_FOLLOW,
    CallDecision,
    GroupScheduler,
    GroupState,
    SchedulerLimits,
)
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.vocabulary import DeadLetterReason

LIMITS = SchedulerLimits(message_count=100, batch_count=10)
DEAD_LETTER = ToDeadLetter(DeadLetterReason.INVALID_JSON, "no JSON")


def fifo(*names: str) -> GroupScheduler:
    groups = GroupScheduler(is_fifo=True)
    groups.add(message(name, group=name[0]) for name in names)
    return groups


def names(messages: Sequence[Message]) -> list[str]:
    return [one.message_id for one in messages]


def call(groups: GroupScheduler, *, now: float = 0.0, limits: SchedulerLimits = LIMITS) -> list[Message]:
    return groups.take_call(limits, now=now)


def decide(
    groups: GroupScheduler,
    messages: Sequence[Message],
    *verdicts: Verdict,
    now: float = 0.0,
    lost: str = "",
    limits: SchedulerLimits = LIMITS,
    may_hold: bool = True,
) -> CallDecision:
    lost_ids = lost.split()
    return groups.apply_verdicts(
        messages,
        verdicts,
        now=now,
        limits=limits,
        is_ours=lambda one: one.message_id not in lost_ids,
        may_hold=may_hold,
    )


def returned(decision: CallDecision) -> list[tuple[str, float]]:
    return [(one.message_id, delay_s) for one, delay_s in decision.returned]


# Order


def test_group_is_handled_in_order_and_others_beside_it() -> None:
    groups = fifo("a1", "a2", "b1", "a3")
    first = call(groups, limits=SchedulerLimits(batch_count=3))
    assert names(first) == ["a1", "a2", "b1"]
    groups.add([message("b2", group="b"), message("c1", group="c")])
    second = call(groups)
    assert names(second) == ["c1"]
    decide(groups, first, Done(), Done(), Done())
    assert names(call(groups)) == ["a3", "b2"]


def test_ready_messages_are_those_that_a_call_may_take() -> None:
    groups = fifo("a1", "b1", "c1", "c2", "d1", "e1", "e2")
    first = call(groups, limits=SchedulerLimits(batch_count=2))
    decide(groups, first[:1], RetryHeld(5.0))
    groups.add([message("b2", group="b")])
    groups.remove(message("d1", group="d"))
    assert names(groups.ready_messages()) == ["c1", "c2", "e1", "e2"]


def test_standard_queue_has_no_order_whatever_its_group_ids() -> None:
    groups = GroupScheduler(is_fifo=False)
    groups.add([message("a1", group="a"), message("a2", group="a")])
    assert (names(call(groups, limits=SchedulerLimits(batch_count=1))), names(call(groups))) == (["a1"], ["a2"])


def test_t21_later_messages_of_a_failed_group_are_not_started() -> None:
    groups = fifo("a1", "a2", "a3")
    first = call(groups, limits=SchedulerLimits(batch_count=2))
    decision = decide(groups, first, Done(), ReturnToQueue(5))
    assert (names(decision.done), returned(decision)) == (["a1"], [("a3", 0.0), ("a2", 5.0)])
    assert call(groups) == []


@pytest.mark.parametrize(
    ("verdicts", "done", "expected"),
    [
        ([ReturnToQueue(5), ReturnToQueue(0), ReturnToQueue(0)], "", [("a4", 0), ("a2", 0), ("a3", 0), ("a1", 5)]),
        ([Done(), ReturnToQueue(5), ReturnToQueue(0)], "a1", [("a4", 0), ("a3", 0), ("a2", 5)]),
        ([ReturnToQueue(5), Done(), ReturnToQueue(0)], "a2", [("a4", 0), ("a3", 0), ("a1", 5)]),
        ([Done(), Done(), ReturnToQueue(0)], "a1 a2", [("a4", 0), ("a3", 0)]),
        ([ReturnToQueue(5), RetryHeld(9), Done()], "a3", [("a4", 0), ("a2", 0), ("a1", 5)]),
    ],
)
def test_t22_rest_of_a_failed_group_goes_back_together(
    verdicts: list[Verdict], done: str, expected: list[tuple[str, float]]
) -> None:
    groups = fifo("a1", "a2", "a3", "a4")
    decision = decide(groups, call(groups, limits=SchedulerLimits(batch_count=3)), *verdicts)
    assert (names(decision.done), returned(decision)) == (done.split(), expected)
    assert (groups.queued_count, groups.handling_count, call(groups)) == (0, 0, [])
    assert decision.retried_count == 1


def test_t23_poison_head_is_buried_before_its_group_goes_on() -> None:
    groups = fifo("a1", "a2", "a3")
    first = call(groups, limits=SchedulerLimits(batch_count=2))
    decision = decide(groups, first, DEAD_LETTER, RetryHeld(0.0))
    assert (names([one for one, _ in decision.dead_letters]), call(groups)) == (["a1"], [])
    groups.finish([first[0]])
    assert names(call(groups)) == ["a2", "a3"]


def test_group_waits_for_its_head_and_is_handled_in_order_again() -> None:
    groups = fifo("a1", "a2", "a3", "b1")
    first = call(groups, limits=SchedulerLimits(batch_count=3))
    assert names(first) == ["a1", "a2", "b1"]
    decision = decide(groups, first, RetryHeld(4.0), ReturnToQueue(0), Done(), now=10.0)
    assert (returned(decision), groups.next_retry_in_s(11.0), call(groups, now=13.9)) == ([], 3.0, [])
    again = call(groups, now=14.0)
    assert names(again) == ["a1", "a2", "a3"]
    assert [one.held_count for one in again] == [1, 0, 0]


def held_again() -> GroupScheduler:
    groups = fifo("a1", "a2")
    decide(groups, call(groups), RetryHeld(5), RetryHeld(5))
    groups.take_unstarted(keep=lambda _: True)
    decide(groups, call(groups), RetryHeld(9), RetryHeld(9))
    return groups


def test_hold_that_ended_early_releases_no_later_hold() -> None:
    groups = held_again()
    assert names(groups.held_messages()) == ["a1", "a2"]
    assert (call(groups, now=5), names(call(groups, now=9))) == ([], ["a1", "a2"])


def test_next_retry_is_that_of_the_last_hold() -> None:
    groups = held_again()
    assert [groups.next_retry_in_s(now) for now in (0, 5, 10)] == [9.0, 4.0, 0.0]
    assert GroupScheduler(is_fifo=True).next_retry_in_s(0) is None


def test_wait_goes_back_to_the_queue_after_a_minute_in_hand() -> None:
    groups, now, waits = fifo("a1", "a2"), 0.0, 0
    while not returned(decision := decide(groups, call(groups, now=now), RetryHeld(8.0), ReturnToQueue(0), now=now)):
        now += 8.0
        waits += 1
    assert (returned(decision), waits * 8.0 <= HELD_MAX_S < (waits + 1) * 8.0) == ([("a2", 0.0), ("a1", 8.0)], True)


def test_wait_goes_back_when_half_of_the_hand_waits() -> None:
    groups = fifo(*(f"{letter}{number}" for letter in "abcd" for number in range(2)))
    limits = SchedulerLimits(message_count=8, batch_count=4)
    first = call(groups, limits=limits)
    decision = decide(groups, first, *[RetryHeld(1.0)] * 4, limits=limits)
    assert (len(decision.returned), len(groups.held_messages())) == (4, 4)


def test_wait_goes_back_at_a_stop() -> None:
    groups = fifo("a1")
    assert returned(decide(groups, call(groups), RetryHeld(1.5), may_hold=False)) == [("a1", 2.0)]


def test_wait_takes_half_of_the_bytes_and_no_more() -> None:
    groups = GroupScheduler(is_fifo=False)
    groups.add([message("a", body="x" * 60), message("b", body="x")])
    decision = groups.apply_verdicts(
        call(groups),
        [RetryHeld(1.0), RetryHeld(1.0)],
        now=0.0,
        limits=SchedulerLimits(byte_count=120),
        is_ours=lambda _: True,
    )
    assert (returned(decision), names(groups.held_messages())) == ([("b", 1.0)], ["a"])


def test_wait_without_a_delay_takes_no_room_and_wakes_nothing() -> None:
    groups = fifo("a1")
    decision = decide(groups, call(groups), RetryHeld(0.0), limits=SchedulerLimits(message_count=1))
    assert (returned(decision), groups.next_retry_in_s(0.0), names(call(groups))) == ([], None, ["a1"])


@pytest.mark.parametrize(("delay_s", "expected"), [(HELD_MAX_S, []), (HELD_MAX_S + 1, [("a1", HELD_MAX_S + 1)])])
def test_wait_is_at_most_a_minute_at_any_time(delay_s: float, expected: list[tuple[str, float]]) -> None:
    groups = fifo("a1")
    assert returned(decide(groups, call(groups), RetryHeld(delay_s), now=100.0)) == expected


def test_wait_is_no_retry() -> None:
    groups = fifo("a1", "b1", "c1", "b2")
    decision = decide(groups, call(groups), ReturnToQueue(1), RetryHeld(1.0), ReturnToQueue(0), Done())
    assert (names(groups.held_messages()), decision.retried_count, groups.queued_count) == (["b1", "b2"], 1, 2)
    assert [groups.is_queued(message(name, group=name[0])) for name in ("b2", "a1")] == [True, False]


def test_wait_goes_back_when_a_message_before_it_is_lost() -> None:
    groups = fifo("a1", "a2")
    assert returned(decide(groups, call(groups), Done(), RetryHeld(1.0), lost="a1")) == [("a2", 1.0)]


def test_next_retry_is_none_when_the_hold_ended_early() -> None:
    groups = fifo("a1")
    decide(groups, call(groups), RetryHeld(5))
    groups.take_unstarted()
    assert groups.next_retry_in_s(0) is None


def test_hold_of_a_message_is_forgotten_when_it_leaves() -> None:
    groups, one = fifo("a1", "a2"), SchedulerLimits(batch_count=1)
    decide(groups, call(groups, limits=one), RetryHeld(1.0))
    decide(groups, call(groups, limits=one, now=1.0), Done())
    groups.add([message("a1", group="a")])
    assert [(again.message_id, again.held_count) for again in call(groups)] == [("a2", 0), ("a1", 0)]


def held_behind_a_dead_letter() -> GroupScheduler:
    groups = fifo("a1", "a2", "b1")
    first = call(groups)
    decide(groups, first, DEAD_LETTER, RetryHeld(5.0), RetryHeld(3.0))
    assert names(groups.remove(first[0])) == ["a2"]
    groups.add([message("a2", group="a")])
    groups.finish(first[:1])
    return groups


def test_message_that_is_received_again_is_not_held() -> None:
    groups = held_behind_a_dead_letter()
    assert [(one.message_id, one.held_count) for one in call(groups)] == [("a2", 0)]


def test_hold_that_ended_with_its_message_releases_no_later_hold() -> None:
    groups = held_behind_a_dead_letter()
    decide(groups, call(groups), RetryHeld(9.0))
    assert names(groups.held_messages()) == ["b1", "a2"]
    assert (names(call(groups, now=5.0)), names(call(groups, now=9.0))) == (["b1"], ["a2"])


# Lost messages


def test_lost_message_sends_back_what_is_behind_it() -> None:
    groups = fifo("a1", "a2", "a3")
    decision = decide(groups, call(groups, limits=SchedulerLimits(batch_count=2)), Done(), ReturnToQueue(3), lost="a1")
    assert (names(decision.lost), decision.done, returned(decision)) == (["a1"], [], [("a3", 0.0), ("a2", 3.0)])


def test_lost_queued_message_leaves_with_those_behind_it() -> None:
    groups = fifo("a1", "a2", "a3", "b1")
    assert names(groups.remove(message("a2", group="a"))) == ["a3"]
    assert names(call(groups)) == ["a1", "b1"]


def test_lost_message_stays_in_its_lane_while_it_is_handled() -> None:
    groups = fifo("a1", "a2")
    first = call(groups, limits=SchedulerLimits(batch_count=1))
    assert names(groups.remove(first[0])) == ["a2"]
    groups.add([message("a2", group="a", handle="newer")])
    assert call(groups) == []
    decide(groups, first, Done(), lost="a1")
    assert groups.handling_count == 0


def test_held_message_stays_held_when_one_behind_it_is_lost() -> None:
    groups = fifo("a1", "a2", "a3")
    decide(groups, call(groups), RetryHeld(5.0), RetryHeld(5.0), RetryHeld(5.0))
    assert names(groups.remove(message("a2", group="a"))) == ["a3"]
    assert (call(groups, now=4.0), names(call(groups, now=5.0))) == ([], ["a1"])


def test_queued_messages_go_back_when_the_one_handled_is_lost() -> None:
    groups = fifo("a1", "a2")
    decision = decide(groups, call(groups, limits=SchedulerLimits(batch_count=1)), Done(), lost="a1")
    assert (returned(decision), decision.retried_count, groups.queued_count) == ([("a2", 0.0)], 0, 0)


@pytest.mark.parametrize("other", [message("a9", group="a"), message("z1", group="z")])
def test_message_that_has_left_is_in_no_lane(other: Message) -> None:
    groups = fifo("a1")
    groups.finish([other])
    assert (groups.remove(other), groups.is_queued(other), groups.queued_count) == ([], False, 1)


# Calls


def test_call_keeps_to_its_limits() -> None:
    groups = GroupScheduler(is_fifo=False)
    groups.add(message(str(number), body="x" * size) for number, size in enumerate((10, 10, 10, 99, 10)))
    limits = SchedulerLimits(batch_count=3, batch_bytes=25)
    assert [names(call(groups, limits=limits)) for _ in range(4)] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_call_takes_as_many_bytes_as_it_may() -> None:
    groups = GroupScheduler(is_fifo=False)
    groups.add(message(str(number), body="x" * 10) for number in range(3))
    assert names(call(groups, limits=SchedulerLimits(batch_bytes=20))) == ["0", "1"]


def test_call_without_room_for_a_second_has_all_the_first() -> None:
    groups = GroupScheduler(is_fifo=True)
    sizes = {"a1": 10, "a2": 20, "b1": 5}
    groups.add(message(name, group=name[0], body="x" * size) for name, size in sizes.items())
    assert names(call(groups, limits=SchedulerLimits(batch_bytes=25))) == ["a1", "b1"]


def test_group_without_room_in_a_call_keeps_its_one_place() -> None:
    groups = GroupScheduler(is_fifo=True)
    groups.add(message(name, group=name[0], body="x" * 20) for name in ("a1", "b1"))
    assert names(call(groups, limits=SchedulerLimits(batch_bytes=25))) == ["a1"]
    groups.add(message(name, group=name[0]) for name in ("c1", "b2", "d1"))
    assert names(call(groups, limits=SchedulerLimits(batch_count=3))) == ["b1", "c1", "d1"]


def test_messages_without_a_group_do_not_wait_for_each_other() -> None:
    groups = GroupScheduler(is_fifo=True)
    groups.add([message("a"), message("b")])
    assert [names(call(groups, limits=SchedulerLimits(batch_count=1))) for _ in range(2)] == [["a"], ["b"]]


def test_call_takes_one_of_each_group_before_a_second() -> None:
    groups = fifo("a1", "a2", "a3", "b1", "c1", "c2")
    assert names(call(groups, limits=SchedulerLimits(batch_count=5))) == ["a1", "a2", "b1", "c1", "c2"]


@pytest.mark.parametrize(
    ("kept", "unstarted", "left"),
    [
        ("", "a1 a2 a3 b1", ""),
        ("a1", "a2 a3 b1", "a1"),
        ("a1 a2", "a3 b1", "a1 a2"),
        ("a3", "b1", "a1 a2 a3"),
        ("a2 b1", "a3", "a1 a2 b1"),
    ],
)
def test_unstarted_leave_from_behind_the_last_that_is_kept(kept: str, unstarted: str, left: str) -> None:
    groups = fifo("a1", "a2", "a3", "b1")
    taken = groups.take_unstarted(keep=lambda one: one.message_id in kept.split())

    assert (names(taken), groups.queued_count) == (unstarted.split(), len(left.split()))
    assert sorted(names(call(groups))) == left.split()


def test_t24_thousand_groups_over_eight_slots_starve_none() -> None:
    groups = GroupScheduler(is_fifo=True)
    limits = SchedulerLimits(batch_count=1, call_count=8)
    groups.add(message(f"busy-{number}", group="busy") for number in range(1000))
    for group in range(1000):
        groups.add(message(f"{group}-{number}", group=str(group)) for number in range(2))
    turns: defaultdict[str, list[int]] = defaultdict(list)
    open_calls: list[list[Message]] = []
    for turn in range(2002):
        while len(open_calls) == limits.call_count:
            ended = open_calls.pop(0)
            decide(groups, ended, *[Done()] * len(ended))
        open_calls.append(call(groups, limits=limits))
        turns[str(open_calls[-1][0].group_id)].append(turn)
    assert {group: len(turns_of) for group, turns_of in turns.items()} == dict.fromkeys(turns, 2)
    waits = [later - earlier for earlier, later in turns.values()]
    assert max(waits) <= 1001 + limits.call_count


# States


def lane_state(groups: GroupScheduler) -> GroupState:
    return groups._lanes["group:a"].state


def test_lane_goes_through_its_states() -> None:
    groups = fifo("a1", "a2")
    assert lane_state(groups) is GroupState.READY
    first = call(groups)
    assert lane_state(groups) is GroupState.BUSY
    decide(groups, first, DEAD_LETTER, RetryHeld(5.0))
    assert lane_state(groups) is GroupState.BUSY_AND_HELD
    groups.finish(first[:1])
    assert lane_state(groups) is GroupState.HELD
    decide(groups, call(groups, now=5.0), RetryHeld(0.0))
    assert lane_state(groups) is GroupState.READY
    decide(groups, call(groups, now=5.0), Done())
    assert groups._lanes == {}


def test_hold_beside_a_dead_letter_ends_at_its_time() -> None:
    groups = fifo("a1", "a2")
    first = call(groups)
    decide(groups, first, DEAD_LETTER, RetryHeld(5.0))
    assert (call(groups, now=5.0), lane_state(groups)) == ([], GroupState.BUSY)
    groups.finish(first[:1])
    assert names(call(groups, now=5.0)) == ["a2"]


def test_state_that_may_not_follow_is_refused() -> None:
    assert MAY_FOLLOW.keys() == {state for after in MAY_FOLLOW.values() for state in after} == set(GroupState)
    groups = fifo("a1")
    with pytest.raises(AssertionError, match=r"HELD does not follow GroupState\.READY"):
        groups._update(groups._lanes["group:a"], is_held=True)
