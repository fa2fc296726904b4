from __future__ import annotations

from datetime import timedelta

import msgspec
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.message_table import SEEN_S, MessageTable, SchedulerLimits

A, B = message("a"), message("b")


def table(*messages: Message, timeout_s: int = 30, received_at: float = 0.0) -> MessageTable:
    made = MessageTable(SchedulerLimits(), is_fifo=False, visibility_timeout_s=timeout_s)
    made.add(messages, received_at=received_at)
    return made


def due(of: MessageTable, now: float) -> list[list[str]]:
    return [[one.message_id for one in batch] for batch in of.take_due(now)]


def test_message_is_due_a_third_of_the_timeout_after_its_receive() -> None:
    one = table(A)
    assert (due(one, 9.9), due(one, 10.0)) == ([], [["a"]])
    one.record_extended([A], 30, sent_at=10.0)
    assert (due(one, 19.9), due(one, 20.0)) == ([], [["a"]])


def test_extensions_go_by_tens_the_most_urgent_first() -> None:
    one = table()
    for number in range(14):
        one.add([message(f"{13 - number:02}")], received_at=(13 - number) * 0.1)
    assert due(one, 11.05) == [[f"{number:02}" for number in range(10)], ["10", "11", "12", "13"]]


def test_messages_that_are_due_soon_go_with_one_that_is() -> None:
    one = table(timeout_s=12)  # due after 4 s; soon is within 1 s
    for received_at, name in ((0.0, "due"), (0.0, "due too"), (1.0, "soon"), (1.001, "later")):
        one.add([message(name)], received_at=received_at)
    assert one.next_due_in_s(0.0) == 4.0
    assert (due(one, 3.9), due(one, 4.0), due(one, 4.0)) == ([], [["due", "due too", "soon"]], [])


def test_message_is_due_soon_again_when_its_extension_failed() -> None:
    one = table(A, timeout_s=9)
    due(one, 3.0)
    one.retry_soon([A], now=3.0)
    assert one.next_due_in_s(3.0) == 1.0
    due(one, 8.5)
    one.retry_soon([A], now=8.5)
    assert one.next_due_in_s(8.5) == 0.5  # at its deadline


def test_period_counts_from_before_the_extension_was_sent() -> None:
    one = table(A)
    due(one, 10.0)
    one.record_extended([A], 30, sent_at=10.0)
    assert [one.is_ours(A, now=now) for now in (39.9, 40.0)] == [True, False]


def test_message_is_lost_once_when_no_extension_succeeded() -> None:
    one = table(A)
    due(one, 10.0)
    assert (one.mark_expired(29.9), one.mark_expired(30.0), one.mark_expired(31.0)) == ([], [A], [])
    one.record_extended([A], 30, sent_at=29.0)
    one.retry_soon([A], now=31.0)
    assert (one.is_ours(A, now=31.0), due(one, 99.0), len(one)) == (False, [], 1)


def test_message_is_lost_when_sqs_refuses_an_extension() -> None:
    one = table(A, B)
    due(one, 10.0)
    assert (one.mark_refused([A]), one.mark_refused([A])) == ([A], [])
    assert [one.is_ours(each, now=1.0) for each in (A, B)] == [False, True]
    one.record_extended([A, B], 30, sent_at=10.0)
    assert one.mark_expired(39.9) == []
    assert one.mark_expired(40.0) == [B]


def test_message_received_again_has_its_newer_handle() -> None:
    one, again = table(A), message("a", handle="newer")
    one.mark_expired(30.0)
    assert (one.add([again], received_at=50.0), len(one)) == ([], 1)
    assert (one.newest(A), one.is_ours(A, now=60.0), due(one, 60.0)) == (again, True, [["a"]])
    assert one.mark_refused([A]) == []
    one.record_extended([A], 30, sent_at=70.0)
    assert [one.is_ours(A, now=now) for now in (79.9, 80.0)] == [True, False]


def test_changed_timeout_counts_from_the_next_extension_on() -> None:
    one = table(A)
    one.set_visibility_timeout(300)
    one.add([B], received_at=0.0)
    assert ([one.mark_expired(now) for now in (30.0, 299.0, 300.0)], one.heartbeat_s) == ([[A], [], [B]], 100.0)


def test_timeout_of_zero_does_not_extend_without_end() -> None:
    assert table(A, timeout_s=0).next_due_in_s(0.0) > 0.3


def test_added_are_those_that_were_not_in_flight() -> None:
    one = table()
    small, large = message("a", body="x"), message("a", body="x" * 10, handle="newer")
    assert one.add([small, B], received_at=0.0) == [small, B]
    assert one.byte_count == small.size_bytes + B.size_bytes
    assert one.add([large], received_at=1.0) == []
    assert one.byte_count == large.size_bytes + B.size_bytes
    one.remove([small, B, B])
    assert (one.byte_count, len(one)) == (0, 0)


def test_pause_ends_at_the_next_extension_or_loss() -> None:
    one = table(A)
    assert [one.next_due_in_s(now) for now in (0.0, 9.5, 11.0)] == [10.0, 0.5, 0.0]
    due(one, 10.0)
    assert [one.next_due_in_s(now) for now in (10.0, 29.75)] == [20.0, 0.25]
    one.add([B], received_at=20.0)
    assert one.next_due_in_s(20.0) == 10.0
    due(one, 30.0)
    one.mark_refused([A, B])
    assert one.next_due_in_s(40.0) == 2.5


def test_answer_about_a_message_not_extended_does_not_count() -> None:
    one = table(A)
    one.record_extended([A], 300, sent_at=5.0)
    one.retry_soon([A], now=0.0)
    assert (one.mark_refused([A]), one.next_due_in_s(0.0), one.mark_expired(30.0)) == ([], 10.0, [A])


def test_message_that_is_not_in_flight_is_not_ours() -> None:
    one = table(A)
    assert (one.newest(B), one.is_ours(B, now=0.0)) == (B, False)


def test_messages_are_known_with_the_times_of_sending_and_receive() -> None:
    older = msgspec.structs.replace(B, sent_at=A.sent_at - timedelta(seconds=7))
    one = table(A, received_at=1.0)
    one.add([older], received_at=2.0)
    assert (one.messages(), one.oldest_age_s(10.0), one.oldest_sent_at(999.0)) == ([A, older], 9.0, older.sent_at)
    assert [one.received_before(at) for at in (1.0, 1.5, 3.0)] == [[], ["a"], ["a", "b"]]
    one.add([A], received_at=2.5)
    assert one.received_before(2.2) == ["b"]
    assert (table().oldest_age_s(10.0), table().oldest_sent_at(0.0)) == (0.0, None)


def test_oldest_message_counts_for_two_minutes_after_its_receive() -> None:
    older, oldest = (msgspec.structs.replace(A, sent_at=A.sent_at - timedelta(seconds=age_s)) for age_s in (1, 900))
    one = table()
    for message_, received_at in ((older, 0.0), (oldest, 5.0), (oldest, 10.0), (A, SEEN_S + 9.9)):
        one.add([message_], received_at=received_at)
        one.remove([message_])
    assert [one.oldest_sent_at(SEEN_S + at) for at in (9.9, 10.0)] == [oldest.sent_at, None]
    one.add([A], received_at=SEEN_S + 10.0)
    one.remove([A])
    assert one.oldest_sent_at(SEEN_S + 10.0) == A.sent_at
