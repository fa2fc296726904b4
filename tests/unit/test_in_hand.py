"""Messages in hand: how many fit, and when each is claimed again."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.in_hand import InHand
from simplu_worker.consumers.sqs.queue import Message


def message(message_id: str, handle: str = "h") -> Message:
    """Return a message."""
    return Message(
        message_id=message_id,
        receipt_handle=handle,
        body="{}",
        attributes={},
        sent_at=datetime(2026, 1, 2, tzinfo=UTC),
        receive_count=1,
        group_id=None,
    )


A, B = message("a"), message("b")


def test_message_is_due_a_third_of_the_timeout_after_its_receive() -> None:
    """The first claim is due at a third, the next a third after it."""
    hand = InHand(limit=5, visibility_timeout_s=30)
    hand.take([A], now=100.0)
    hand.take([B], now=105.0)
    assert (hand.due(109.9), hand.due(110.0), hand.due(120.0)) == ([], [A], [A, B])
    hand.renew([A], now=110.0)
    assert (hand.due(119.0), hand.next_due_in(111.0)) == ([B], 4.0)


def test_message_is_due_soon_again_when_its_claim_failed() -> None:
    """A claim that failed is tried again well before the message is lost."""
    hand = InHand(limit=5, visibility_timeout_s=9)
    hand.take([A], now=0.0)
    hand.retry_soon([A], now=3.0)
    assert hand.next_due_in(3.0) == 1.0


def test_message_that_rests_is_claimed_no_more_but_still_in_hand() -> None:
    """A message on its way back takes its place until it has gone."""
    hand = InHand(limit=2, visibility_timeout_s=30)
    hand.take([A], now=0.0)
    hand.rest([A])
    assert (hand.due(1e9), len(hand), hand.room) == ([], 1, 1)
    hand.drop([A])
    assert (len(hand), hand.room) == (0, 2)


def test_message_received_again_is_the_same_work_under_its_newer_handle() -> None:
    """A redelivery of what is in hand is not handled twice; the newer receipt handle counts."""
    hand, again = InHand(limit=2, visibility_timeout_s=30), message("a", "newer")
    assert (hand.take([A], now=0.0), hand.take([again], now=50.0)) == ([A], [])
    hand.rest([A])
    assert (hand.newest(A), hand.due(60.0), len(hand)) == (again, [again], 1)


def test_timeout_of_zero_does_not_claim_without_end() -> None:
    """A queue whose messages are visible at once gets a pause between claims all the same."""
    hand = InHand(limit=2, visibility_timeout_s=0)
    hand.take([A], now=0.0)
    assert hand.next_due_in(0.0) > 0.3


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "drop", "rest", "renew"]), st.sampled_from("abcdef"), st.floats(0, 100))
    )
)
def test_room_and_hand_add_up_whatever_happens(steps: list[tuple[str, str, float]]) -> None:
    """No mix of events loses a place or makes one."""
    hand, held = InHand(limit=4, visibility_timeout_s=30), set()
    for step, name, now in steps:
        match step:
            case "take":
                hand.take([message(name)], now=now)
                held.add(name)
            case "drop":
                hand.drop([message(name)])
                held.discard(name)
            case "rest":
                hand.rest([message(name)])
            case _:
                hand.renew([message(name)], now=now)
    assert (len(hand), hand.room) == (len(held), max(4 - len(held), 0))
