from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queued_operations import queued_operation

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.order_messages import BEHIND_VERDICT, Chain, OrderMessage
from simplu_worker.consumers.sqs.receive.verdicts import Done, MessageIds, RetryHeld, ToDeadLetter, Verdict
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

MESSAGE = Message("message", "receipt", "{}", {}, datetime(2026, 1, 1, tzinfo=UTC), 1, "g")
INVALID = ToDeadLetter(DeadLetterReason.INVALID_MESSAGE, "no")
UNKNOWN = ToDeadLetter(DeadLetterReason.UNKNOWN_TENANT, "no")
EXHAUSTED = ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, "no", MessageIds(), 3)
HELD = RetryHeld(1.0)


def chain_of(tenants: str) -> Chain:
    chain = Chain()
    origin = queued_operation().operation.origin
    rejected = RejectedRecord(reason=DeadLetterReason.INVALID_MESSAGE, error="no", origin=origin)
    for tenant in tenants:
        decoded = rejected if tenant == "!" else queued_operation(f"{tenant}-x").operation
        verdict = INVALID if tenant == "!" else None
        chain.members.append(OrderMessage(MESSAGE, "g", decoded, chain, verdict=verdict))
    return chain


def places(chain: Chain, messages: Sequence[OrderMessage]) -> list[int]:
    return [chain.members.index(one) for one in messages]


def decide(chain: Chain, verdict: Verdict) -> None:
    for one in chain.undecided():
        one.verdict = verdict


@pytest.mark.parametrize(
    ("tenants", "runs"),
    [
        ("aab", [[0, 1], [2]]),
        ("aba", [[0], [1], [2]]),
        ("a!a", [[0, 2]]),
        ("!b", [[1]]),
        ("!!", []),
        ("", []),
    ],
)
def test_runs_are_of_one_tenant_each_behind_the_one_before(tenants: str, runs: list[list[int]]) -> None:
    chain = chain_of(tenants)
    found = []
    while run := chain.next_run():
        assert not chain.has_decided_run
        found.append(places(chain, run))
        decide(chain, Done())
        assert chain.has_decided_run
    chain.end()
    assert (found, chain.has_ended.is_set()) == (runs, True)
    assert all(one.allows_next for one in chain.members)


@pytest.mark.parametrize(
    ("verdict", "allows"), [(Done(), True), (INVALID, True), (UNKNOWN, False), (EXHAUSTED, False), (HELD, False)]
)
def test_next_run_is_not_sent_behind_what_may_yet_be_applied(verdict: Verdict, allows: bool) -> None:  # noqa: FBT001
    chain = chain_of("ab")
    (first,) = chain.next_run()
    first.verdict = verdict
    assert places(chain, chain.next_run()) == ([1] if allows else [])


def test_messages_behind_one_that_stops_the_chain_are_put_back() -> None:
    chain = chain_of("aaab")
    first, second, third = chain.next_run()
    second.verdict, second.deferral = HELD, "locked"

    assert chain.stop_behind(second) == [third]
    assert (third.verdict, chain.stop_behind(second), chain.undecided()) == (BEHIND_VERDICT, [], [first])
    assert not chain.has_decided_run
    first.verdict = Done()
    assert (chain.has_decided_run, chain.next_run()) == (True, ())
    chain.end()
    assert [one.verdict for one in chain.members] == [Done(), HELD, BEHIND_VERDICT, BEHIND_VERDICT]


def test_messages_behind_a_dead_letter_are_handled_again() -> None:
    chain = chain_of("aa!ab")
    first, second, _ = chain.next_run()
    first.verdict = second.verdict = UNKNOWN
    chain.end()
    again = RetryHeld(0.0)
    assert [one.verdict for one in chain.members] == [UNKNOWN, UNKNOWN, INVALID, again, again]


VERDICTS = st.sampled_from([Done(), INVALID, UNKNOWN, EXHAUSTED, HELD])


@given(st.text("ab!", max_size=8), st.lists(VERDICTS, max_size=8))
def test_nothing_is_sent_behind_what_stops_the_chain(tenants: str, verdicts: list[Verdict]) -> None:
    chain = chain_of(tenants)
    given_verdicts = iter(verdicts)
    sent: list[int] = []
    while run := chain.next_run():
        sent += places(chain, run)
        for one in run:
            if one.verdict is None:
                one.verdict = next(given_verdicts, Done())
                if not one.allows_next:
                    chain.stop_behind(one)
    chain.end()
    stops = [place for place, one in enumerate(chain.members) if not one.allows_next]
    assert sent == sorted(sent)
    assert all(one.verdict is not None for one in chain.members)
    if stops:
        after = chain.members[stops[0] + 1 :]
        assert not any(isinstance(one.verdict, Done) for one in after)
        runs_behind = [place for place in sent if place > stops[0]]
        tenants_of_run = {tenants[place] for place in [stops[0], *runs_behind]}
        assert len(tenants_of_run) == 1
