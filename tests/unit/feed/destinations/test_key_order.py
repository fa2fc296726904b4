"""Which of a call's events may be sent next."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.feed.events import feed_event

from simplu_worker.feed.destinations import BEHIND, KeyOrder
from simplu_worker.feed.types import Delivered, Delivery, Disabled, Refused, RetryLater

LATER = RetryLater("throttled", 3.0)


def order_of(keys: str) -> KeyOrder:
    """Return the order of events, one a letter, each of the resource of that letter."""
    return KeyOrder([feed_event(number, key) for number, key in enumerate(keys)])


def test_round_has_the_next_event_of_each_key() -> None:
    order = order_of("abacab")
    rounds = []
    while found := order.next_round():
        rounds.append(found)
        for index in found:
            order.note(index, Delivered())
    assert rounds == [[0, 1, 3], [2, 5], [4]]
    assert order.deliveries() == [Delivered()] * 6


@pytest.mark.parametrize(
    ("failed", "behind"),
    [(LATER, RetryLater(BEHIND, 3.0)), (Refused("bad"), RetryLater(BEHIND)), (Disabled("gone"), RetryLater(BEHIND))],
)
def test_events_behind_one_that_was_not_delivered_wait(failed: Delivery, behind: Delivery) -> None:
    order = order_of("abab")
    order.note(0, failed)
    order.note(1, Delivered())
    assert order.next_round() == [3]
    order.note(3, Delivered())
    assert (order.next_round(), order.deliveries()) == ([], [failed, Delivered(), behind, Delivered()])


def test_lanes_have_the_events_of_each_key_in_order() -> None:
    assert order_of("abacab").lanes() == [[0, 2, 4], [1, 5], [3]]


def test_giving_up_leaves_what_was_sent() -> None:
    order = order_of("aab")
    order.note(0, Delivered())
    order.give_up(LATER)
    assert (order.next_round(), order.deliveries()) == ([], [Delivered(), LATER, LATER])


def test_noting_another_event_than_the_next_of_its_key_is_a_defect() -> None:
    with pytest.raises(ValueError, match="before another one of its key"):
        order_of("aa").note(1, Delivered())


OUTCOMES = st.sampled_from([Delivered(), LATER, Refused("bad")])


@given(keys=st.text("abc", max_size=30), data=st.data())
def test_no_event_is_sent_before_those_of_its_key_were_delivered(keys: str, data: st.DataObject) -> None:
    order = order_of(keys)
    sent: dict[int, Any] = {}
    while found := order.next_round():
        assert len({keys[index] for index in found}) == len(found)
        for index in found:
            before = [place for place in range(index) if keys[place] == keys[index]]
            assert index not in sent
            assert [sent.get(place) for place in before] == [Delivered()] * len(before)
            sent[index] = data.draw(OUTCOMES)
            order.note(index, sent[index])
    for index, delivery in enumerate(order.deliveries()):
        assert sent.get(index, delivery) == delivery
        assert index in sent or isinstance(delivery, RetryLater)
