from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.pipeline.failing import FailingOperations
from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.consumers.pipeline.results import BatchDecided, LaneEmptied, LaneStopError, NextTries, decide
from simplu_worker.errors import RetryableError
from simplu_worker.fairness import ShardTime
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.tries import GiveUp, HoldFor, RetryAfter, RetryRules
from simplu_worker.vocabulary import DeadLetterReason, HoldReason, Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)
APPLIED, NOT_HERE, LOCKED = Outcome(Disposition.APPLIED), Outcome(Disposition.HOLD), Outcome(Disposition.LOCKED)
FAILING, LATE = Outcome(Disposition.FAILING, error="no"), Outcome(Disposition.DUPLICATE, is_late=True)
REFUSED = Outcome(Disposition.DEAD_LETTER, error="no")
OUTCOMES = {"applied": APPLIED, "not here": NOT_HERE, "a dead letter": REFUSED, "an error": FAILING, "locked": LOCKED}
DOWN, RULES = RetryableError("shard-1 is down"), RetryRules((1.0, 5.0), timedelta())


class Entry(msgspec.Struct, eq=False):
    chain: str
    operation: Operation

    def __repr__(self) -> str:
        return f"{self.chain}:{self.operation.tenant_id}"


def entry_of(chain: str, tenant_id: str | None = None) -> Entry:
    return Entry(chain, queued_operation(tenant_id or chain).operation)


class Answering:
    def __init__(self, *answers: Sequence[Outcome] | Outcome | Exception) -> None:
        self.answers = list(answers)
        self.times, self.trials, self.refuses = {"shard-1": ShardTime()}, 0, False
        self.sent: list[list[str]] = []  # the chains of each batch
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def send(self, shard_id: str, entries: Sequence[Entry]) -> list[Outcome]:
        assert shard_id == "shard-1"
        self.sent.append([entry.chain for entry in entries])
        self.is_asked.set()
        await self.may_answer.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(entries) if isinstance(answer, Outcome) else list(answer)

    def last_applied_at(self, _shard_id: str) -> float:
        return 0.0

    async def try_write(self, _shard_id: str) -> None:
        self.trials += 1
        if self.refuses:
            raise DOWN

    def lane(self, entries: Sequence[Entry]) -> Lane[Entry]:
        gateway = cast("Any", self)
        self.failing = FailingOperations(Source.KINESIS, gateway, RULES, lambda: 0.0)
        lane: Lane[Entry] = Lane(
            "shard-1", Source.KINESIS, self, gateway, self.failing, draw=lambda: 0.0, utc=lambda: NOW
        )
        lane.enqueue(entries)
        return lane


async def result_of(lane: Lane[Entry]) -> object:
    async with asyncio.timeout(30):
        return await lane.next_result(asyncio.Event())


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_outcome_of_what_was_taken_in_flight_counts_no_longer(outcome: str) -> None:
    source = Answering(OUTCOMES[outcome])
    first, other, second = entry_of("a-x"), entry_of("b-x"), entry_of("a-x")
    lane = source.lane([first, other])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await source.is_asked.wait()
    lane.enqueue([second])

    assert lane.take_chains({"a-x"}) == [first, second]
    assert (lane.take_chains({"a-x"}), lane.entries(), lane.is_idle) == ([], [other], False)
    source.may_answer.set()
    decided = await flight

    assert isinstance(decided, BatchDecided)
    pairs = [*decided.failing, *decided.refused]
    locked = [one for own, _ in decided.locked for one in own]
    not_here = [one for own in decided.not_here.values() for one in own]
    assert [*decided.applied, *not_here, *locked, *(one for one, _ in pairs)] == [other]
    assert lane.entries() == [other]  # until the next batch is asked for
    assert lane.take_chains({"b-x"}) == []  # being settled


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_what_was_taken_in_flight_is_not_sent_again_and_stays(*, is_stopped: bool) -> None:
    stop = LaneStopError("it is held")
    source = Answering(stop if is_stopped else DOWN, APPLIED)
    entries = [entry_of(chain) for chain in ("a-x", "b-x", "c-x")]
    lane = source.lane(entries[:2])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await source.is_asked.wait()
    lane.enqueue(entries[2:])
    lane.take_chains({"a-x"})
    source.may_answer.set()

    assert await flight == (LaneEmptied("shard-1", entries[1:], stop) if is_stopped else BatchDecided(entries[1:]))
    assert source.sent == [["a-x", "b-x"], ["b-x", "c-x"]][: 1 if is_stopped else 2]


async def test_source_that_stops_a_batch_gets_all_of_the_lane() -> None:
    stop = LaneStopError("its row is behind")
    source = Answering(stop, APPLIED)
    source.may_answer.set()
    entries = [entry_of("a-x"), entry_of("b-x")]
    lane = source.lane(entries)

    assert await result_of(lane) == LaneEmptied("shard-1", entries, stop)
    lane.request_turn()
    assert (await result_of(lane), source.sent) == (BatchDecided([]), [["a-x", "b-x"], []])


async def test_source_gets_all_of_the_lane_after_a_crash() -> None:
    source = Answering(ZeroDivisionError("a secret"), APPLIED)
    source.may_answer.set()
    entries = [entry_of(chain) for chain in ("a-x", "b-x", "c-x")]
    lane = source.lane(entries)

    crashed = await result_of(lane)

    assert isinstance(crashed, LaneEmptied)
    assert (crashed.entries, lane.entries(), "secret" in str(crashed.cause)) == (entries, [], False)


async def test_failing_chain_does_not_stop_other_chains_of_its_tenant() -> None:
    entries = [entry_of(chain, "ann-main") for chain in ("bad", "good", "bad", "good", "other")]
    entries[4] = entry_of("other", "bob-main")
    source = Answering([FAILING, NOT_HERE, NOT_HERE, NOT_HERE, APPLIED], APPLIED)
    source.may_answer.set()
    lane = source.lane(entries)

    decided = await result_of(lane)
    assert isinstance(decided, BatchDecided)
    assert (decided.failing, decided.not_here) == ([(entries[0], RetryAfter(1.0))], {"ann-main": [entries[2]]})
    assert (decided.applied, lane.queued) == ([entries[4]], [entries[1], entries[3]])
    assert lane.take_chains({"bad"}) == []
    assert await result_of(lane) == BatchDecided([entries[1], entries[3]])


@pytest.mark.parametrize(("reason", "refuses"), [(None, False), (None, True), (DeadLetterReason.INTERNAL_ERROR, True)])
async def test_operation_is_given_up_after_its_tries_unless_its_shard_refuses_all(
    reason: DeadLetterReason | None, *, refuses: bool
) -> None:
    failing = Outcome(Disposition.FAILING, reason=reason, error="no")
    source, entry = Answering(*[failing] * 3), entry_of("a-x")
    source.refuses = refuses
    source.may_answer.set()
    lane = source.lane([])
    found, refused_count = [], 0
    for _ in range(3):
        lane.enqueue([entry])
        decided = await result_of(lane)
        assert isinstance(decided, BatchDecided)
        found += [following for _, following in (*decided.failing, *decided.refused)]
        refused_count += len(decided.refused)
    if reason is None and refuses:
        assert found == [RetryAfter(1.0), RetryAfter(5.0), RetryAfter(5.0)]
    else:
        given_up = GiveUp(reason or DeadLetterReason.RETRIES_EXHAUSTED, "it failed 3 times: no", 3)
        assert found == [RetryAfter(1.0), RetryAfter(5.0), given_up]
    assert (source.trials, refused_count) == (int(reason is None), int(reason is not None))


async def test_letter_counts_from_when_it_is_stored_until_the_row_is_written() -> None:
    source, entry, other = Answering(*[FAILING] * 5), entry_of("a-x"), entry_of("b-x")
    lane = source.lane([])
    failing = source.failing
    source.may_answer.set()
    for _ in range(2):
        lane.enqueue([entry])
        await result_of(lane)

    source.is_asked.clear()
    source.may_answer.clear()
    lane.enqueue([entry])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await source.is_asked.wait()
    assert lane.take_chains({"a-x"}) == [entry]  # nobody hears that it is given up
    source.may_answer.set()
    dropped = await flight
    assert isinstance(dropped, BatchDecided)
    assert (dropped.failing, failing.has_letter(entry.operation)) == ([], False)

    failing.note_letter(entry.operation)
    assert (failing.has_letter(entry.operation), failing.has_letter(other.operation)) == (True, False)
    lane.enqueue([entry])
    decided = await result_of(lane)
    assert isinstance(decided, BatchDecided)
    ((_, given_up),) = decided.failing
    assert isinstance(given_up, GiveUp)
    failing.note_given_up(entry.operation, FAILING, given_up, shard_id="shard-1", now=NOW)
    assert not failing.has_letter(entry.operation)
    lane.enqueue([entry])
    again = await result_of(lane)
    assert isinstance(again, BatchDecided)
    assert again.failing == [(entry, RetryAfter(1.0))]


def test_batch_is_decided_by_the_outcome_of_each() -> None:
    outcomes = [
        *(APPLIED, LATE, NOT_HERE, LOCKED, FAILING, FAILING, REFUSED),
        Outcome(Disposition.DEAD_LETTER, reason=DeadLetterReason.UNKNOWN_TENANT),
    ]
    entries = [entry_of(f"{number}-x") for number in range(len(outcomes))]
    given_up, again_at = GiveUp(DeadLetterReason.INTERNAL_ERROR, "no"), RetryAfter(1.0)
    wait = HoldFor(2.0, HoldReason.OVER_LIMIT)
    tries = NextTries({id(entries[4]): given_up, id(entries[5]): again_at}, {"3-x": wait})

    refused = [(6, DeadLetterReason.INVALID_MESSAGE, "no"), (7, DeadLetterReason.UNKNOWN_TENANT, "")]
    expected = BatchDecided(
        applied=entries[:2],
        late=[entries[1]],
        refused=[(entries[4], given_up), *((entries[at], GiveUp(reason, text)) for at, reason, text in refused)],
        not_here={"2-x": [entries[2]]},
        locked=[([entries[3]], wait)],
        failing=[(entries[5], again_at)],
    )
    assert decide(list(zip(entries, outcomes, strict=True)), tries) == (expected, [])
