from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.slots import PollPlan, PriorityGate, SlotShare


def plan(poll_count: int = 4, message_count: int = 100, byte_count: int = 1000) -> PollPlan:
    return PollPlan(poll_count=poll_count, message_count=message_count, byte_count=byte_count)


def room(of: PollPlan, count: int = 0, size_bytes: int = 0) -> int:
    return of.reserve(in_flight_count=count, in_flight_bytes=size_bytes)


@pytest.mark.parametrize(
    ("polls", "most", "expected"),
    [
        ([], 4, 1),
        ([(10, 10)], 4, 2),
        ([(10, 10)] * 9, 4, 4),
        ([(10, 10), (3, 10)], 4, 2),
        ([(10, 10), (10, 10), (0, 10)], 4, 1),
        ([(4, 4)], 4, 1),
        ([(10, 10)] * 3, 1, 1),
        ([(10, 10)] * 3, 0, 1),
        ([(10, 10), None], 4, 1),
    ],
)
def test_polls_become_more_when_full_and_one_when_empty(
    polls: list[tuple[int, int] | None], most: int, expected: int
) -> None:
    own = plan(most)
    for poll in polls:
        if poll is None:
            own.record_failure(10)
        else:
            received, asked = poll
            own.record_answer(asked, [1] * received)
    assert own.wanted_count == expected


def test_polls_at_one_time_share_the_room() -> None:
    own = plan(message_count=15)
    assert [room(own) for _ in range(3)] == [10, 5, 0]
    own.record_answer(10, [])
    assert room(own, 2) == 8
    own.record_failure(8)
    assert room(own, 2) == 8


def test_room_in_bytes_is_counted_by_the_largest_message_of_late() -> None:
    own = plan()
    own.record_answer(room(own), [200, 10])
    assert [room(own, 1, 300) for _ in range(2)] == [3, 0]
    own.record_answer(3, [])
    for _ in range(40):
        own.record_answer(0, [1])
    assert room(own, 1, 300) == 10


@pytest.mark.parametrize(
    ("count", "size_bytes", "expected"),
    [(0, 0, 10), (1, 990, 1), (1, 989, 1), (1, 991, 0), (0, 2000, 1), (1, 2000, 0), (0, 980, 2)],
)
def test_room_is_for_one_message_when_nothing_is_in_flight(count: int, size_bytes: int, expected: int) -> None:
    own = plan()
    own.record_answer(room(own), [10])
    assert room(own, count, size_bytes) == expected
    assert room(own, 0, 2000) == (0 if expected else 1)


def test_sizes_start_unknown_and_are_at_least_a_byte() -> None:
    own = plan(byte_count=5)
    assert room(own) == 10
    own.record_answer(10, [0])
    assert room(own) == 5


@pytest.mark.parametrize(
    ("is_busy", "polls", "steps"), [(False, 0, [0, 1, 2]), (True, 0, [20, 40, 60]), (True, 1, [4, 8, 12])]
)
def test_gate_opens_beside_an_idle_queue_after_polls_or_a_second(
    *, is_busy: bool, polls: int, steps: Sequence[int]
) -> None:
    """A step takes 50 ms, in which *polls* of the other queue are answered."""
    step, opened = 0, list[int]()
    gate = PriorityGate(lambda: (is_busy, polls * step))
    for step in range(steps[-1] + 1):
        if gate.lets_pass(step * 0.05 + 1e-6 * step):
            opened.append(step)
            assert gate.lets_pass(step * 0.05 + 1e-6 * step) is not is_busy
    assert opened == steps


SLOTS = 16  # a business that waits may have four, all of them eight


def tenant_of(one: Message) -> tuple[str, str] | None:
    business_id = one.message_id[0]
    return None if business_id == "x" else (business_id.lower(), business_id)


def share(*, is_fifo: bool = False) -> SlotShare:
    return SlotShare(SLOTS, tenant_of, is_fifo=is_fifo)


def some(tenant: str, count: int, *, group: str | None = None, receive_count: int = 1) -> list[Message]:
    start = group or "0"
    return [
        message(f"{tenant}{start}{number}", group=group or f"{tenant}{number}", receive_count=receive_count)
        for number in range(count)
    ]


def ids(messages: Sequence[Message]) -> list[str]:
    return [one.message_id for one in messages]


def over(of: SlotShare, late: Sequence[Message], in_hand: Sequence[Message], *, now: float = 0.0) -> list[str]:
    """Return what is put back of *in_hand*, of which *late* are held."""
    of.note_late(ids(late))
    put_back = of.over_share(in_hand, in_hand, now=now)
    for one in put_back:
        of.put_back_s(one, now=now, draw=0.0)
    return ids(put_back)


IN_HAND = st.lists(st.tuples(st.sampled_from("aAbBcCdefghijkx"), st.booleans(), st.booleans()), max_size=3 * SLOTS)


@given(IN_HAND)
def test_businesses_that_wait_have_equal_parts_of_half_of_the_slots(drawn: list[tuple[str, bool, bool]]) -> None:
    """Each message is of a location, perhaps held, and perhaps with the handler."""
    own = share()
    in_hand = [message(f"{one}{number}") for number, (one, _, _) in enumerate(drawn)]
    held = {f"{one}{number}" for number, (one, is_held, _) in enumerate(drawn) if is_held}
    started = {f"{one}{number}" for number, (one, _, is_started) in enumerate(drawn) if is_started}
    own.note_late(held)

    put_back = set(ids(own.over_share([one for one in in_hand if one.message_id not in started], in_hand, now=0.0)))

    had, late = Counter(one[0].lower() for one, _, _ in drawn), Counter(one[0].lower() for one in held)
    waiting = {one for one in had if one != "x" and 10 * late[one] >= had[one]}
    part = max(SLOTS // 2 // max(len(waiting), 2), 1)
    kept = [one for one in ids(in_hand) if one not in put_back]
    of_businesses, of_locations = Counter(one[0].lower() for one in kept), Counter(one[0] for one in kept)
    assert {one[0].lower() for one in put_back} <= waiting
    assert not put_back & started
    is_crowded = len(waiting) > SLOTS // 2  # not each of them can have one
    total = sum(of_businesses[one] for one in waiting)
    assert total <= SLOTS // 2 or not is_crowded or {one for one in kept if one[0].lower() in waiting} <= started
    for business_id in waiting:
        locations = {one for one, _, _ in drawn if one.lower() == business_id}
        unstarted = Counter(one[0] for one in kept if one[0] in locations and one not in started)
        if of_businesses[business_id] > part:  # what else it has is with the handler, or of its quiet locations
            assert all(of_locations[one] <= part // len(locations) for one in unstarted)
        for one in {one[0] for one in put_back} & locations:
            assert is_crowded or (of_businesses[business_id] >= part and of_locations[one] >= part // len(locations))
    assert total >= SLOTS // 2 or not is_crowded or not put_back


@given(st.lists(st.sampled_from("aAbBcdefghijklmno"), max_size=8 * SLOTS))
def test_message_behind_any_backlog_finds_a_free_slot(backlog: list[str]) -> None:
    own, in_hand = share(), list[Message]()
    queue = [message(f"{one}{number}", group=one) for number, one in enumerate([*backlog, "q"])]
    while not any(one.message_id.startswith("q") for one in in_hand):
        room = SLOTS - len(in_hand)
        assert room >= SLOTS // 2
        in_hand, queue = in_hand + queue[:room], queue[room:]
        put_back = over(own, [one for one in in_hand if one.group_id != "q"], in_hand)
        in_hand = [one for one in in_hand if one.message_id not in put_back]


def test_share_is_a_quarter_for_a_business_that_waits() -> None:
    own, waiting, quiet = share(), [*some("a", 3), *some("A", 3)], some("b", 6)
    assert over(own, waiting[:2], [*waiting, *quiet]) == ["a02", "A02"]
    fresh = some("A", 3, group="g")
    assert over(own, [], [*waiting[:2], *waiting[3:5], *fresh, *quiet]) == ids(fresh)


def test_last_messages_of_the_last_groups_are_put_back_first() -> None:
    own = share(is_fifo=True)
    groups = [some("a", 3, group=name) for name in "pqrs"]
    in_hand = [one for group in groups for one in group]
    assert over(own, [group[0] for group in groups], in_hand) == ids(in_hand[4:])


@pytest.mark.parametrize(("is_fifo", "stays"), [(True, ["ag0", "ag1", "x"]), (False, ["ag0", "x"])])
def test_message_with_its_last_receive_stays_with_its_group(*, is_fifo: bool, stays: list[str]) -> None:
    own = share(is_fifo=is_fifo)
    own.max_receive_count = 2
    waiting, last = some("a", 8), [*some("a", 1, group="g", receive_count=2), some("a", 2, group="g")[1]]
    alone = message("x", group=None, receive_count=2)
    in_hand = [*waiting, *last, alone]
    put_back = over(own, last[:1], in_hand)
    assert [one for one in ids([*last, alone]) if one not in put_back] == stays
    assert len(put_back) == 6


def test_business_waits_twice_as_long_as_its_messages_are_hidden() -> None:
    own, many = share(), some("a", 8, receive_count=2)
    own.over_share(many, many, now=0.0)
    own.note_late(ids(many))
    own.over_share([], many, now=0.0)
    first_s = own.put_back_s(many[0], now=5.0, draw=0.9)
    own.put_back_s(many[0], now=0.0, draw=0.9)
    again = some("A", 8, group="g")
    assert [len(own.over_share(again, again, now=5.0 + 2 * first_s - 0.01)) for _ in range(2)] == [4, 4]
    assert own.over_share(again, again, now=5.0 + 2 * first_s) == []


@pytest.mark.parametrize(("late_count", "expected"), [(1, 0), (2, 7)])
def test_business_waits_from_a_tenth_of_its_messages_on(late_count: int, expected: int) -> None:
    own, many = share(), some("a", 11)
    own.note_late([*ids(many[:late_count]), *ids(many[:late_count]), "gone"])
    assert len(own.over_share(many, many, now=0.0)) == expected
    assert len(share().over_share(many, many, now=0.0)) == 0

    ten = share()
    ten.note_late(ids(many[:1]))
    assert len(ten.over_share(many[:10], many[:10], now=0.0)) == 6


def test_businesses_with_messages_put_back_are_named_once() -> None:
    own, many = share(), [*some("a", 6), *some("b", 6)]
    over(own, many, many)
    assert sorted(own.take_begun()) == ["a", "b"]
    over(own, many, many, now=1.0)
    assert own.take_begun() == []
    over(own, many, many, now=10_000.0)
    assert sorted(own.take_begun()) == ["a", "b"]


@pytest.mark.parametrize(("receive_count", "base_s"), [(1, 5), (2, 10), (4, 40), (6, 120), (1000, 120)])
def test_message_is_put_back_for_longer_each_time(receive_count: int, base_s: int) -> None:
    own, one = share(), message("a", receive_count=receive_count)
    assert [own.put_back_s(one, now=0.0, draw=draw) for draw in (0.0, 1.0)] == [base_s, 2 * base_s]
