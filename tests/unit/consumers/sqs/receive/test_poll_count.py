from __future__ import annotations

import pytest

from simplu_worker.consumers.sqs.receive.in_flight import ATTEMPT_MAX_S, PollCount, PollReservations, ReceiveAttempt


@pytest.mark.parametrize(
    ("polls", "expected"),
    [
        ([], 1),
        ([(10, 10)], 2),
        ([(10, 10)] * 9, 4),
        ([(10, 10), (3, 10)], 2),
        ([(10, 10), (10, 10), (0, 10)], 1),
        ([(4, 4)], 1),
        ([(0, 10)], 1),
    ],
)
def test_polls_become_more_when_full_and_one_when_empty(polls: list[tuple[int, int]], expected: int) -> None:
    count = PollCount(4)
    for received, asked in polls:
        count.record_answer(received, asked)
    assert count.wanted_count == expected


@pytest.mark.parametrize("max_count", [0, 1])
def test_polls_are_at_least_one(max_count: int) -> None:
    count = PollCount(max_count)
    for _ in range(3):
        count.record_answer(10, 10)
    assert count.wanted_count == 1


def test_attempt_is_usable_for_less_than_five_minutes() -> None:
    attempt = ReceiveAttempt("x", 10, made_at=100.0)
    assert (attempt.is_usable(100.0 + ATTEMPT_MAX_S - 1), attempt.is_usable(100.0 + ATTEMPT_MAX_S)) == (True, False)


def test_polls_at_one_time_share_the_room() -> None:
    reservations = PollReservations(message_count=15, byte_count=1000)
    assert [reservations.reserve(in_flight_count=0, in_flight_bytes=0) for _ in range(3)] == [10, 5, 0]
    reservations.release(10, [])
    assert reservations.reserve(in_flight_count=2, in_flight_bytes=0) == 8


def test_room_in_bytes_is_counted_by_the_largest_message_of_late() -> None:
    reservations = PollReservations(message_count=100, byte_count=1000)
    reservations.release(reservations.reserve(in_flight_count=0, in_flight_bytes=0), [200, 10])
    assert [reservations.reserve(in_flight_count=1, in_flight_bytes=300) for _ in range(2)] == [3, 0]
    reservations.release(3, [])
    for _ in range(40):
        reservations.release(0, [1])
    assert reservations.reserve(in_flight_count=1, in_flight_bytes=300) == 10


@pytest.mark.parametrize(
    ("in_flight_count", "in_flight_bytes", "expected"),
    [(0, 0, 10), (1, 990, 1), (1, 989, 1), (1, 991, 0), (0, 2000, 1), (1, 2000, 0), (0, 980, 2)],
)
def test_room_is_for_one_message_when_nothing_is_in_flight(
    in_flight_count: int, in_flight_bytes: int, expected: int
) -> None:
    reservations = PollReservations(message_count=100, byte_count=1000)
    reservations.release(reservations.reserve(in_flight_count=0, in_flight_bytes=0), [10])
    count = reservations.reserve(in_flight_count=in_flight_count, in_flight_bytes=in_flight_bytes)
    assert count == expected
    assert reservations.reserve(in_flight_count=0, in_flight_bytes=2000) == (0 if expected else 1)


def test_polls_become_one_when_one_fails() -> None:
    count = PollCount(4)
    count.record_answer(10, 10)
    count.record_failure()
    assert count.wanted_count == 1


def test_sizes_start_unknown_and_are_at_least_a_byte() -> None:
    reservations = PollReservations(message_count=100, byte_count=5)
    assert reservations.reserve(in_flight_count=0, in_flight_bytes=0) == 10
    reservations.release(10, [0])
    assert reservations.reserve(in_flight_count=0, in_flight_bytes=0) == 5
