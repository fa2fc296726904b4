from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.slot_share import SlotShare

SLOTS = 16  # a tenant that waits may have four, all of them eight


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


def test_share_is_all_slots_for_a_tenant_that_does_not_wait() -> None:
    own, many = share(), some("a", SLOTS)
    assert over(own, [], many) == []
    assert over(own, many[:1], many) == []  # less than a tenth


def test_share_is_a_quarter_for_a_tenant_that_waits() -> None:
    own, waiting, quiet = share(), some("a", 6), some("b", 6)
    assert over(own, waiting[:2], [*waiting, *quiet]) == ids(waiting[4:])
    fresh = some("a", 3, group="g")
    assert over(own, [], [*waiting[:4], *fresh, *quiet]) == ids(fresh)


def test_share_counts_no_message_without_a_tenant() -> None:
    own, waiting = share(), some("x", SLOTS)
    assert over(own, waiting, waiting) == []


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"a": 16}, {"a": 4}),
        ({"a": 8, "b": 8}, {"a": 4, "b": 4}),
        (dict.fromkeys("abcd", 4), dict.fromkeys("abcd", 2)),
        (dict.fromkeys("abcdefgh", 2), dict.fromkeys("abcdefgh", 1)),
        (dict.fromkeys("abcdefghijkl", 1), dict.fromkeys("abcdefgh", 1)),
        ({"a": 8, "b": 1, "c": 8}, {"a": 2, "b": 1, "c": 2}),
        ({"a": 5, "A": 5}, {"a": 2, "A": 2}),  # locations of one business
        ({"a": 8, "A": 8, "b": 8}, {"a": 2, "A": 2, "b": 4}),
        ({"a": 3, "A": 1, "b": 1}, {"a": 3, "A": 1, "b": 1}),
    ],
)
def test_tenants_that_wait_share_half_of_the_slots(counts: dict[str, int], kept: dict[str, int]) -> None:
    in_hand = [one for tenant, count in counts.items() for one in some(tenant, count, group="g")]  # a standard queue
    all_in_hand = [*in_hand, *some("y", 1)]  # y does not wait
    put_back = over(share(), in_hand, all_in_hand)
    assert Counter(one.message_id[0] for one in all_in_hand if one.message_id not in put_back) == kept | {"y": 1}


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


def test_tenant_waits_twice_as_long_as_its_messages_are_hidden() -> None:
    own, many = share(), some("a", 8, receive_count=2)
    own.over_share(many, many, now=0.0)
    own.note_late(ids(many))
    own.over_share([], many, now=0.0)
    first_s = own.put_back_s(many[0], now=5.0, draw=0.9)
    own.put_back_s(many[0], now=0.0, draw=0.9)
    again = some("a", 8, group="g")
    assert [len(own.over_share(again, again, now=5.0 + 2 * first_s - 0.01)) for _ in range(2)] == [4, 4]
    assert own.over_share(again, again, now=5.0 + 2 * first_s) == []


@pytest.mark.parametrize(("late_count", "expected"), [(1, 0), (2, 7)])
def test_tenant_waits_from_a_tenth_of_its_messages_on(late_count: int, expected: int) -> None:
    own, many = share(), some("a", 11)
    own.note_late([*ids(many[:late_count]), *ids(many[:late_count]), "gone"])
    assert len(own.over_share(many, many, now=0.0)) == expected
    assert len(share().over_share(many, many, now=0.0)) == 0

    ten = share()
    ten.note_late(ids(many[:1]))
    assert len(ten.over_share(many[:10], many[:10], now=0.0)) == 6


def test_tenants_with_messages_put_back_are_named_once() -> None:
    own, many = share(), [*some("a", 6), *some("b", 6)]
    over(own, many, many)
    assert sorted(own.take_begun()) == [("a", "a"), ("b", "b")]
    over(own, many, many, now=1.0)
    assert own.take_begun() == []
    over(own, many, many, now=10_000.0)
    assert sorted(own.take_begun()) == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(("receive_count", "base_s"), [(1, 5), (2, 10), (4, 40), (6, 120), (1000, 120)])
def test_message_is_put_back_for_longer_each_time(receive_count: int, base_s: int) -> None:
    own, one = share(), message("a", receive_count=receive_count)
    assert [own.put_back_s(one, now=0.0, draw=draw) for draw in (0.0, 1.0)] == [base_s, 2 * base_s]


@given(st.lists(st.sampled_from("abcdefghx"), max_size=60))
def test_share_is_fair_and_no_smaller_than_it_has_to_be(tenants: list[str]) -> None:
    own = share()
    in_hand = [message(f"{tenant}{number}") for number, tenant in enumerate(tenants)]

    put_back = over(own, in_hand, in_hand)

    returned = Counter(message_id[0] for message_id in put_back)
    kept = Counter(one.message_id[0] for one in in_hand if one.message_id not in put_back)
    assert "x" not in returned
    del kept["x"]
    assert kept.total() <= SLOTS // 2
    for tenant in returned:
        assert kept[tenant] == max(kept.values()) <= SLOTS // 4
