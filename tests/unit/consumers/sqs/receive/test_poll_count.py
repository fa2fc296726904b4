from __future__ import annotations

import pytest

from simplu_worker.consumers.sqs.receive.slot_share import PollPlan


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
        ([(0, 10)], 4, 1),
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
