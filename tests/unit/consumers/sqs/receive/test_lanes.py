from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.message_table import HELD_MAX_S, CallDecision, MessageTable, SchedulerLimits
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.vocabulary import DeadLetterReason

DEAD_LETTER = ToDeadLetter(DeadLetterReason.INVALID_JSON, "no JSON")


def table(*messages: Message, is_fifo: bool = True, **limits: Any) -> MessageTable:
    wanted = SchedulerLimits(**{"message_count": 100, "batch_count": 10} | limits)
    made = MessageTable(wanted, is_fifo=is_fifo, visibility_timeout_s=1000)
    made.add(messages, received_at=0.0)
    return made


def named(name: str) -> Message:
    return message(name, group=name[0])


def fifo(names: str, **limits: Any) -> MessageTable:
    return table(*map(named, names.split()), **limits)


def sized(**sizes: int) -> list[Message]:
    return [message(name, group=name[0], body="x" * size) for name, size in sizes.items()]


def names(messages: Sequence[Message]) -> str:
    return " ".join(one.message_id for one in messages)


def add(lanes: MessageTable, *added: str) -> None:
    """Add messages that are new, or have left the table."""
    lanes.remove(map(named, added))
    lanes.add(map(named, added), received_at=0.0)


def decide(
    lanes: MessageTable, call: Sequence[Message], *verdicts: Verdict, now: float = 0.0, lost: str = ""
) -> CallDecision:
    due = [one for batch in lanes.take_due(now + 400) for one in batch]
    lanes.mark_refused([one for one in due if one.message_id in lost.split()])
    return lanes.apply_verdicts(call, verdicts, now=now)


def returned(decision: CallDecision) -> list[tuple[str, float]]:
    return [(one.message_id, delay_s) for one, delay_s in decision.returned]


# Order


def test_group_is_handled_in_order_and_others_beside_it() -> None:
    lanes = fifo("a1 a2 b1 a3", batch_count=3)
    first = lanes.take_call(now=0)
    assert names(first) == "a1 a2 b1"
    add(lanes, "b2", "c1")
    assert names(lanes.take_call(now=0)) == "c1"
    decide(lanes, first, Done(), Done(), Done())
    assert names(lanes.take_call(now=0)) == "a3 b2"


def test_ready_messages_are_those_that_a_call_may_take() -> None:
    lanes = fifo("a1 b1 c1 c2 d1 e1 e2", batch_count=2)
    first = lanes.take_call(now=0)
    decide(lanes, first[:1], RetryHeld(5.0))
    add(lanes, "b2")
    lanes.take_behind(named("d1"))
    assert sorted(names(lanes.ready_messages(0)).split()) == ["c1", "c2", "e1", "e2"]


def test_standard_queue_has_no_order_whatever_its_group_ids() -> None:
    lanes = table(named("a1"), named("a2"), is_fifo=False, batch_count=1)
    assert [names(lanes.take_call(now=0)) for _ in range(2)] == ["a1", "a2"]


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
    lanes = fifo("a1 a2 a3 a4", batch_count=3)
    decision = decide(lanes, lanes.take_call(now=0), *verdicts)
    assert (names(decision.done), returned(decision)) == (done, expected)
    assert (lanes.queued_count, lanes.handling_count, lanes.take_call(now=0)) == (0, 0, [])
    assert decision.retried_count == 1


def test_t23_poison_head_is_buried_before_its_group_goes_on() -> None:
    lanes = fifo("a1 a2 a3", batch_count=2)
    first = lanes.take_call(now=0)
    decision = decide(lanes, first, DEAD_LETTER, RetryHeld(0.0))
    assert (decision.dead_letters, lanes.take_call(now=0)) == ([(first[0], DEAD_LETTER)], [])
    lanes.finish(first[:1])
    assert names(lanes.take_call(now=0)) == "a2 a3"


# Holds


def test_group_waits_for_its_head_and_is_handled_in_order_again() -> None:
    lanes = fifo("a1 a2 a3 b1", batch_count=3)
    decision = decide(lanes, lanes.take_call(now=10), RetryHeld(4.0), ReturnToQueue(0), Done(), now=10.0)
    assert (returned(decision), lanes.next_retry_at(11.0), lanes.take_call(now=13.9)) == ([], 14.0, [])
    assert names(lanes.held_messages(13.9)) == "a1 a2 a3"
    again = lanes.take_call(now=14.0)
    assert (names(again), [one.held_count for one in again]) == ("a1 a2 a3", [1, 0, 0])
    assert lanes.held_messages(14.0) == []
    decide(lanes, again, RetryHeld(1.0), ReturnToQueue(0), ReturnToQueue(0), now=14.0)
    assert (lanes.held_messages(15.0), [one.held_count for one in lanes.take_call(now=15.0)]) == ([], [2, 0, 0])
    assert lanes.next_retry_at(15.0) == float("inf")


@pytest.mark.parametrize("room", [{"message_count": 4}, {"byte_count": 8}])
def test_held_of_earlier_calls_take_room_and_the_first_is_next(room: Any) -> None:
    lanes = fifo("a1 b1 c1", **room, batch_count=1)
    decisions = [decide(lanes, lanes.take_call(now=0), RetryHeld(delay_s)) for delay_s in (4.0, 2.0, 3.0)]
    assert [returned(decision) for decision in decisions] == [[], [], [("c1", 3.0)]]
    assert (lanes.next_retry_at(0.0), names(lanes.queued_messages())) == (2.0, "a1 b1")


def test_wait_goes_back_to_the_queue_after_a_minute_in_hand() -> None:
    lanes, now, waits = fifo("a1 a2"), 0.0, 0
    while not (back := returned(decide(lanes, lanes.take_call(now=now), RetryHeld(8.0), ReturnToQueue(0), now=now))):
        now += 8.0
        waits += 1
    assert (back, waits * 8.0 <= HELD_MAX_S < (waits + 1) * 8.0) == ([("a2", 0.0), ("a1", 8.0)], True)


@pytest.mark.parametrize(
    ("messages", "limits", "delays_s", "expected"),
    [
        ("a1 a2 b1 b2 c1 c2 d1 d2", {"message_count": 8, "batch_count": 4}, [1.0] * 4, "a1 a2 b1 b2"),
        ("a1 b1", {"message_count": 2}, [1.0, 1.0], "a1"),
        ("a1", {"message_count": 1}, [1.0], ""),
        ("a1 b1", {"byte_count": 5}, [1.0, 1.0], "a1"),
        ("a1 a2", {"byte_count": 7}, [1.0, 1.0], ""),
        ("a1 b1", {}, [HELD_MAX_S, HELD_MAX_S + 1], "a1"),
    ],
)
def test_held_are_half_of_the_room_for_a_minute_at_most(
    messages: str, limits: Any, delays_s: list[float], expected: str
) -> None:
    lanes = fifo(messages, **limits)
    decision = decide(lanes, lanes.take_call(now=100.0), *map(RetryHeld, delays_s), now=100.0)
    assert names(lanes.held_messages(100.0)) == expected
    assert len(decision.returned) == len(messages.split()) - len(expected.split())


def test_wait_is_no_retry() -> None:
    lanes = fifo("a1 b1 c1 b2")
    decision = decide(lanes, lanes.take_call(now=0), ReturnToQueue(1), RetryHeld(1.0), ReturnToQueue(0), Done())
    assert (names(lanes.held_messages(0)), decision.retried_count, lanes.queued_count) == ("b1 b2", 1, 2)


def test_wait_goes_back_at_a_stop() -> None:
    lanes = fifo("a1")
    decision = lanes.apply_verdicts(lanes.take_call(now=0), [RetryHeld(1.5)], now=0.0, may_hold=False)
    assert returned(decision) == [("a1", 2.0)]


def test_wait_without_a_delay_takes_no_room_and_wakes_nothing() -> None:
    lanes = fifo("a1", message_count=1)
    assert returned(decide(lanes, lanes.take_call(now=0), RetryHeld(0.0))) == []
    assert (lanes.next_retry_at(0.0), names(lanes.take_call(now=0))) == (float("inf"), "a1")


def test_hold_is_forgotten_when_its_message_leaves() -> None:
    lanes = fifo("a1 a2", batch_count=1)
    decide(lanes, lanes.take_call(now=0), RetryHeld(5.0))
    assert names(lanes.take_behind(named("a1"))) == "a2"
    add(lanes, "a1", "a2")
    assert [(one.message_id, one.held_count) for one in lanes.take_call(now=0)] == [("a1", 0)]


def test_hold_beside_a_dead_letter_ends_at_its_time() -> None:
    lanes = fifo("a1 a2")
    first = lanes.take_call(now=0)
    decide(lanes, first, DEAD_LETTER, RetryHeld(5.0))
    assert lanes.take_call(now=5.0) == []
    lanes.finish(first[:1])
    assert (lanes.take_call(now=4.9), names(lanes.take_call(now=5.0))) == ([], "a2")


def test_hold_behind_a_dead_letter_ends_with_what_was_held() -> None:
    lanes = fifo("a1 a2")
    first = lanes.take_call(now=0)
    decide(lanes, first, DEAD_LETTER, RetryHeld(5.0))
    assert names(lanes.take_behind(first[0])) == "a2"
    add(lanes, "a2")
    lanes.finish(first[:1])
    assert names(lanes.take_call(now=0)) == "a2"


# Lost messages


@pytest.mark.parametrize(
    ("verdicts", "done", "expected", "retried_count"),
    [
        ([Done(), ReturnToQueue(3)], "", [("a3", 0.0), ("a2", 3.0)], 1),
        ([Done(), RetryHeld(3)], "", [("a3", 0.0), ("a2", 3.0)], 1),
        ([Done(), Done()], "a2", [("a3", 0.0)], 0),
    ],
)
def test_lost_message_sends_back_what_is_behind_it(
    verdicts: list[Verdict], done: str, expected: list[tuple[str, float]], retried_count: int
) -> None:
    lanes = fifo("a1 a2 a3", batch_count=2)
    decision = decide(lanes, lanes.take_call(now=0), *verdicts, lost="a1")
    assert (names(decision.lost), names(decision.done), returned(decision)) == ("a1", done, expected)
    assert (decision.retried_count, lanes.queued_count, lanes.handling_count) == (retried_count, 0, 0)


def test_groups_of_a_call_are_decided_together() -> None:
    lanes = fifo("a1 b1 c1 d1")
    verdicts: list[Verdict] = [Done(), Done(), ReturnToQueue(1), ReturnToQueue(1)]
    decision = decide(lanes, lanes.take_call(now=0), *verdicts, lost="a1 b1")
    assert (names(decision.lost), decision.retried_count) == ("a1 b1", 2)


def test_lost_queued_message_leaves_with_those_behind_it() -> None:
    lanes = fifo("a1 a2 a3 b1")
    assert lanes.is_queued(named("a2"))
    assert names(lanes.take_behind(named("a2"))) == "a3"
    assert [lanes.is_queued(named(name)) for name in ("a1", "a2", "z1")] == [True, False, False]
    assert names(lanes.take_call(now=0)) == "a1 b1"


def test_lost_message_stays_in_its_lane_while_it_is_handled() -> None:
    lanes = fifo("a1 a2", batch_count=1)
    first = lanes.take_call(now=0)
    assert names(lanes.take_behind(first[0])) == "a2"
    add(lanes, "a2")
    assert lanes.take_call(now=0) == []
    decide(lanes, first, Done(), lost="a1")
    assert lanes.handling_count == 0


def test_held_message_stays_held_when_one_behind_it_is_lost() -> None:
    lanes = fifo("a1 a2 a3")
    decide(lanes, lanes.take_call(now=0), *[RetryHeld(5.0)] * 3)
    assert names(lanes.take_behind(named("a2"))) == "a3"
    assert (lanes.take_call(now=4.0), names(lanes.take_call(now=5.0))) == ([], "a1")


@pytest.mark.parametrize("other", [named("a9"), named("z1")])
def test_message_that_has_left_is_in_no_lane(other: Message) -> None:
    lanes = fifo("a1")
    lanes.finish([other])
    assert (lanes.take_behind(other), lanes.is_queued(other), lanes.queued_count) == ([], False, 1)


# Calls


@pytest.mark.parametrize(
    ("sizes", "limits", "expected"),
    [
        ({"a": 10, "b": 10, "c": 10, "d": 99, "e": 10}, {"batch_count": 3, "batch_bytes": 25}, ["a b", "c", "d", "e"]),
        ({"a": 10, "b": 10, "c": 10}, {"batch_bytes": 20}, ["a b", "c"]),
        ({"a1": 10, "a2": 20, "b1": 5}, {"batch_bytes": 25}, ["a1 b1"]),  # all the first before a second
        ({"a1": 1, "a2": 1, "a3": 1, "b1": 1, "c1": 1, "c2": 1}, {"batch_count": 5}, ["a1 a2 b1 c1 c2"]),
    ],
)
def test_call_keeps_to_its_limits(sizes: dict[str, int], limits: Any, expected: list[str]) -> None:
    lanes = table(*sized(**sizes), **limits)
    assert [names(lanes.take_call(now=0)) for _ in expected] == expected


def test_group_without_room_in_a_call_keeps_its_one_place() -> None:
    lanes = table(*sized(a1=20, b1=20), batch_bytes=25, batch_count=3)
    assert names(lanes.take_call(now=0)) == "a1"
    add(lanes, "c1", "b2", "d1")
    assert names(lanes.take_call(now=0)) == "b1 c1 d1"


def test_messages_without_a_group_do_not_wait_for_each_other() -> None:
    lanes = table(message("a"), message("b"), batch_count=1)
    assert [names(lanes.take_call(now=0)) for _ in range(2)] == ["a", "b"]


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
    lanes = fifo("a1 a2 a3 b1")
    assert returned(decide(lanes, lanes.take_call(now=0), *[RetryHeld(9.0)] * 4)) == []
    taken = lanes.take_unstarted(keep=lambda one: one.message_id in kept.split())
    assert (names(taken), lanes.queued_count) == (unstarted, len(left.split()))
    assert sorted(names(lanes.take_call(now=0)).split()) == left.split()


def test_t24_thousand_groups_over_eight_slots_starve_none() -> None:
    lanes = table(batch_count=1)
    lanes.add((message(f"busy-{number}", group="busy") for number in range(1000)), received_at=0.0)
    for group in range(1000):
        lanes.add((message(f"{group}-{number}", group=str(group)) for number in range(2)), received_at=0.0)
    turns: defaultdict[str, list[int]] = defaultdict(list)
    open_calls: list[list[Message]] = []
    for turn in range(2002):
        if len(open_calls) == 8:
            lanes.apply_verdicts(open_calls.pop(0), [Done()], now=0.0)
        open_calls.append(lanes.take_call(now=0))
        turns[str(open_calls[-1][0].group_id)].append(turn)
    assert {group: len(turns_of) for group, turns_of in turns.items()} == dict.fromkeys(turns, 2)
    assert max(later - earlier for earlier, later in turns.values()) <= 1001 + 8
