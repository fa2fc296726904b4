from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.pipeline.lane import Lane
from simplu_worker.consumers.pipeline.results import BatchCrashed, BatchDecided, LaneEmptied, LaneStopError
from simplu_worker.errors import RetryableError
from simplu_worker.fairness import ShardTime
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.vocabulary import Source

NOW = datetime(2026, 1, 1, tzinfo=UTC)
APPLIED, NOT_HERE, LOCKED = Outcome(Disposition.APPLIED), Outcome(Disposition.HOLD), Outcome(Disposition.LOCKED)
FAILING, LATE = Outcome(Disposition.UNEXPECTED, error="no"), Outcome(Disposition.DUPLICATE, is_late=True)
REFUSED = Outcome(Disposition.DEAD_LETTER, error="no")
OUTCOMES = {"applied": APPLIED, "not here": NOT_HERE, "a dead letter": REFUSED, "an error": FAILING, "locked": LOCKED}
DOWN = RetryableError("shard-1 is down")


class Entry(msgspec.Struct, eq=False):
    chain: str
    operation: Operation

    def __repr__(self) -> str:
        return f"{self.chain}:{self.operation.tenant_id}"


def entry_of(chain: str, tenant_id: str | None = None) -> Entry:
    return Entry(chain, queued_operation(tenant_id or chain).operation)


class Answering:
    def __init__(self, *answers: Sequence[Outcome] | Outcome | Exception) -> None:
        self.answers, self.held = list(answers), False
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

    def is_held(self, _shard_id: str) -> bool:
        return self.held

    def expect_merge(self, _shard_id: str) -> None: ...

    def lane(self, entries: Sequence[Entry], *, held: bool = False, time: ShardTime | None = None) -> Lane[Entry]:
        self.held = held
        lane: Lane[Entry] = Lane(
            "shard-1",
            Source.KINESIS,
            self,
            last_applied_at=lambda _: 0.0,
            time=time or ShardTime(),
            draw=lambda: 0.0,
            utc=lambda: NOW,
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
    by_chain = {**decided.not_here, **decided.locked}
    pairs = [*decided.failing, *decided.refused]
    found = [*decided.applied, *by_chain.get("b-x", []), *(one for one, _ in pairs)]
    assert (found, "a-x" in by_chain) == ([other], False)
    assert lane.entries() == [other]  # until the next batch is asked for
    assert lane.take_chains({"b-x"}) == []  # being settled


async def test_what_was_taken_in_flight_is_not_sent_again() -> None:
    source = Answering(DOWN, APPLIED)
    entries = [entry_of(chain) for chain in ("a-x", "b-x", "c-x")]
    lane = source.lane(entries[:2])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await source.is_asked.wait()
    lane.enqueue(entries[2:])
    lane.take_chains({"a-x"})
    source.may_answer.set()

    assert await flight == BatchDecided(entries[1:])
    assert source.sent == [["a-x", "b-x"], ["b-x", "c-x"]]


async def test_what_was_taken_in_flight_does_not_leave_with_the_others() -> None:
    source = Answering(DOWN)
    entries = [entry_of("a-x"), entry_of("b-x")]
    lane = source.lane(entries, held=True)
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await source.is_asked.wait()
    lane.take_chains({"a-x"})
    source.may_answer.set()

    assert (await flight, len(lane)) == (LaneEmptied(entries[1:], DOWN), 0)


async def test_source_that_stops_a_batch_gets_all_of_the_lane() -> None:
    stop = LaneStopError("its row is behind")
    source = Answering(stop, APPLIED)
    source.may_answer.set()
    entries = [entry_of("a-x"), entry_of("b-x")]
    lane = source.lane(entries)

    assert await result_of(lane) == LaneEmptied(entries, stop)
    lane.request_turn()
    assert (await result_of(lane), source.sent) == (BatchDecided([]), [["a-x", "b-x"], []])


async def test_crash_keeps_its_batch_in_the_lane() -> None:
    source = Answering(ZeroDivisionError("a secret"), APPLIED)
    source.may_answer.set()
    entries = [entry_of(chain) for chain in ("a-x", "b-x", "c-x")]
    lane = source.lane(entries)

    crashed = await result_of(lane)

    assert isinstance(crashed, BatchCrashed)
    assert (crashed.entries, lane.entries(), "secret" in str(crashed.error)) == (entries, entries, False)


async def test_failing_chain_does_not_stop_other_chains_of_its_tenant() -> None:
    entries = [entry_of(chain, "ann-main") for chain in ("bad", "good", "bad", "good", "other")]
    entries[4] = entry_of("other", "bob-main")
    source = Answering([FAILING, NOT_HERE, NOT_HERE, NOT_HERE, APPLIED], APPLIED)
    source.may_answer.set()
    lane = source.lane(entries)

    decided = await result_of(lane)
    assert isinstance(decided, BatchDecided)
    assert (decided.failing, decided.not_here) == ([(entries[0], "no")], {"ann-main": [entries[2]]})
    assert (decided.applied, lane.queued) == ([entries[4]], [entries[1], entries[3]])
    assert lane.take_chains({"bad"}) == []
    assert await result_of(lane) == BatchDecided([entries[1], entries[3]])
