from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.aws.sqs_messages import message

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.slot_share import PUT_BACK_MAX_S, SlotShare
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, Verdict

SLOTS = 16  # a tenant that waits may have four, all of them eight
HOLD = RetryHeld(1.0)


def tenant_of(one: Message) -> str | None:
    return None if one.message_id.startswith("x") else one.message_id[0]


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


def bounded(
    of: SlotShare, call: Sequence[Message], in_hand: Sequence[Message], verdict: Verdict = HOLD, *, now: float = 0.0
) -> list[Verdict]:
    return of.bounded(call, [verdict] * len(call), in_hand, now=now, draw=0.0)


def test_share_is_all_slots_for_a_tenant_that_does_not_wait() -> None:
    own, many = share(), some("a", SLOTS)
    assert own.over_share(many, many, now=0.0) == []
    assert bounded(own, many, many, Done()) == [Done()] * SLOTS
    assert bounded(own, many[:1], many) == [HOLD]  # less than a tenth
    assert own.over_share(many, many, now=0.0) == []


def test_share_is_a_quarter_for_a_tenant_that_waits() -> None:
    own, waiting, quiet = share(), some("a", 6), some("b", 6)
    verdicts = bounded(own, waiting[:4], [*waiting, *quiet])
    assert [type(verdict) for verdict in verdicts] == [RetryHeld, RetryHeld, ReturnToQueue, ReturnToQueue]

    fresh = some("a", 3, group="g")
    in_hand = [*waiting[:2], *waiting[4:], *fresh, *quiet]
    assert ids(own.over_share([*fresh, *quiet], in_hand, now=0.0)) == ids(fresh)


def test_tenant_waits_with_messages_that_are_in_hand_for_long() -> None:
    own, many = share(), some("a", SLOTS)
    own.note_late(ids(many[:2]))
    assert ids(own.over_share(many[8:], many, now=0.0)) == ids(many[8:])


def test_share_counts_no_message_without_a_tenant() -> None:
    own, waiting = share(), some("x", SLOTS)
    assert bounded(own, waiting, waiting) == [HOLD] * SLOTS
    assert own.over_share(waiting, waiting, now=0.0) == []


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"a": 16}, {"a": 4}),
        ({"a": 8, "b": 8}, {"a": 4, "b": 4}),
        (dict.fromkeys("abcd", 4), dict.fromkeys("abcd", 2)),
        (dict.fromkeys("abcdefgh", 2), dict.fromkeys("abcdefgh", 1)),
        (dict.fromkeys("abcdefghijkl", 1), dict.fromkeys("abcdefgh", 1)),
        ({"a": 8, "b": 2, "c": 8}, {"a": 3, "b": 2, "c": 3}),  # what another one leaves
        ({"a": 8, "b": 1, "c": 1, "d": 1}, {"a": 4, "b": 1, "c": 1, "d": 1}),
    ],
)
def test_tenants_that_wait_share_half_of_the_slots(counts: dict[str, int], kept: dict[str, int]) -> None:
    in_hand = [one for tenant, count in counts.items() for one in some(tenant, count, group="g")]  # a standard queue
    assert verdicts_by_tenant(in_hand, bounded(share(), in_hand, in_hand), RetryHeld) == kept


def test_group_of_a_fifo_queue_returns_as_a_whole() -> None:
    own = share(is_fifo=True)
    groups = [some("a", 3, group=name) for name in "pqrs"]
    in_hand = [one for group in groups for one in group]
    call = [group[0] for group in groups]
    verdicts = bounded(own, call, in_hand)
    assert [type(verdict) for verdict in verdicts] == [RetryHeld, ReturnToQueue, ReturnToQueue, ReturnToQueue]


def test_message_with_its_last_receive_stays_with_its_group() -> None:
    own = share(is_fifo=True)
    own.max_receive_count = 2
    waiting, last = some("a", 8), some("a", 2, group="g", receive_count=2)
    in_hand = [*waiting, *last]
    assert bounded(own, last[:1], in_hand) == [HOLD]
    assert ids(own.over_share(in_hand, in_hand, now=0.0)) == ids(waiting[2:])


def test_tenant_waits_twice_as_long_as_its_messages_are_hidden() -> None:
    own, many = share(), some("a", 8, receive_count=2)
    own.over_share(many, many, now=0.0)
    own.note_late(ids(many))
    own.over_share([], many, now=0.0)
    first_s = own.put_back_s(many[0], now=5.0, draw=0.9)
    own.put_back_s(many[0], now=0.0, draw=0.9)
    again = some("a", 8, group="g")
    assert len(own.over_share(again, again, now=5.0 + 2 * first_s - 0.01)) == 4
    assert own.over_share(again, again, now=5.0 + 2 * first_s) == []


def test_message_that_is_tried_again_at_once_is_not_held() -> None:
    own, many = share(), some("a", 8)
    assert bounded(own, many, many, RetryHeld(0.0)) == [RetryHeld(0.0)] * 8
    assert own.over_share(many, many, now=0.0) == []

    verdicts: list[Verdict] = [*[HOLD] * 4, *[RetryHeld(0.0)] * 4]
    assert own.bounded(many, verdicts, many, now=0.0, draw=0.0)[4:] == [RetryHeld(0.0)] * 4


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
    bounded(own, many, many)
    assert own.begun(now=0.0) == ["a", "b"]
    bounded(own, many, many, now=1.0)
    assert own.begun(now=100.0) == ()
    later = some("c", 6)
    bounded(own, later, later, now=10_000.0)
    bounded(own, many, many, now=10_000.0)
    assert own.begun(now=10_000.0) == ["a", "b", "c"]
    bounded(own, many, many, now=20_000.0)
    assert own.begun(now=10_029.0) == ()
    assert own.begun(now=10_030.0) == ["a", "b"]


@pytest.mark.parametrize(
    ("receive_count", "expected"), [(1, (5, 10)), (2, (10, 20)), (4, (40, 80)), (6, (120, 240)), (1000, (120, 240))]
)
def test_message_is_put_back_for_longer_each_time(receive_count: int, expected: tuple[int, int]) -> None:
    own, one = share(), message("a", receive_count=receive_count)
    delays_s = [own.put_back_s(one, now=0.0, draw=0.3) for _ in range(100)]
    lowest, highest = expected
    assert lowest <= min(delays_s) < lowest * 1.05
    assert highest * 0.95 < max(delays_s) < highest <= PUT_BACK_MAX_S


def test_hold_that_is_longer_than_the_put_back_stays_as_long() -> None:
    own, waiting = share(), some("a", 8)
    assert ReturnToQueue(60) in bounded(own, waiting, waiting, RetryHeld(59.5))


def verdicts_by_tenant(in_hand: Sequence[Message], verdicts: Sequence[Verdict], kind: type[Verdict]) -> Counter[str]:
    pairs = zip(in_hand, verdicts, strict=True)
    return Counter(one.message_id[0] for one, verdict in pairs if isinstance(verdict, kind))


@given(st.lists(st.sampled_from("abcdefghx"), max_size=60))
def test_share_is_fair_and_no_smaller_than_it_has_to_be(tenants: list[str]) -> None:
    own = share()
    in_hand = [message(f"{tenant}{number}") for number, tenant in enumerate(tenants)]

    verdicts = bounded(own, in_hand, in_hand)

    kept = verdicts_by_tenant(in_hand, verdicts, RetryHeld)
    returned = verdicts_by_tenant(in_hand, verdicts, ReturnToQueue)
    assert "x" not in returned
    del kept["x"]
    assert kept.total() <= SLOTS // 2
    for tenant in returned:
        assert kept[tenant] == max(kept.values()) <= SLOTS // 4
        assert kept[tenant] == SLOTS // 4 or kept.total() + len(returned) > SLOTS // 2
