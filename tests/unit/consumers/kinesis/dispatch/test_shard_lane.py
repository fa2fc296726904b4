"""A lane: what is taken out of it while it is in flight counts no longer, whatever its outcome is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from support.queued_operations import queued_operation

from simplu_worker.consumers.kinesis.dispatch.queued_operation import QueuedOperation
from simplu_worker.consumers.kinesis.dispatch.results import BatchDecided, NoAnswer
from simplu_worker.consumers.kinesis.dispatch.shard_lane import ShardLane
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.ownership import Ownership
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OUTCOMES = {
    "applied": Outcome(Disposition.APPLIED),
    "not here": Outcome(Disposition.HOLD),
    "a dead letter": Outcome(Disposition.DEAD_LETTER, error="no"),
    "an error": Outcome(Disposition.UNEXPECTED, error="no"),
}


class Answering:
    """A gateway that answers when it is told to, each batch with the next of its answers."""

    def __init__(self, *answers: Outcome | None) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []  # the tenants of each batch
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def apply(self, shard_id: str, operations: Sequence[Operation]) -> list[Outcome]:
        """Answer with one outcome for all; None is a failure."""
        self.asked.append([operation.tenant_id for operation in operations])
        self.is_asked.set()
        await self.may_answer.wait()
        outcome = self.answers.pop(0)
        if outcome is None:
            raise RetryableError(f"{shard_id} is down")
        return [outcome] * len(operations)

    def last_applied_at(self, _shard_id: str) -> float:
        """Report no batch of another reader."""
        return 0.0


def make_lane(gateway: Answering, entries: Sequence[QueuedOperation], *, held: bool = False) -> ShardLane:
    """Return a lane with *entries*; its shard may be held."""
    ownership = Ownership(CheckpointTracker())
    if held:
        ownership.open_shard_hold("shard-1", NOW, now=0.0)
    lane = ShardLane("shard-1", cast("Any", gateway), ownership, shard_positions=None, draw=lambda: 0.0)
    lane.enqueue(entries)
    return lane


@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_outcome_of_what_was_taken_in_flight_counts_no_longer(outcome: str) -> None:
    """That of the others in the batch does. What was queued behind is taken too, and never sent."""
    gateway = Answering(OUTCOMES[outcome])
    first, other, second = queued_operation("a-x"), queued_operation("b-x"), queued_operation("a-x")
    lane = make_lane(gateway, [first, other])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await gateway.is_asked.wait()
    lane.enqueue([second])

    assert lane.take_tenants({"a-x"}) == [first, second]
    assert (lane.take_tenants({"a-x"}), lane.entries(), lane.is_idle) == ([], [other], False)
    gateway.may_answer.set()
    decided = await flight

    assert isinstance(decided, BatchDecided)
    found = [*decided.finished, *decided.not_here.get("b-x", []), *(one for one, _ in decided.failing)]
    assert (found, "a-x" in decided.not_here) == ([other], False)
    assert [letter.origin for letter in decided.letters] == [other.operation.origin] * (outcome == "a dead letter")
    assert lane.entries() == [other]  # until the next batch is asked for
    assert lane.take_tenants({"b-x"}) == []  # being settled


async def test_what_was_taken_in_flight_is_not_sent_again_after_a_failure() -> None:
    """The rest of the batch is, before what is queued behind it."""
    gateway = Answering(None, OUTCOMES["applied"])
    entries = [queued_operation(tenant) for tenant in ("a-x", "b-x", "c-x")]
    lane = make_lane(gateway, entries[:2])
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await gateway.is_asked.wait()
    lane.enqueue(entries[2:])
    lane.take_tenants({"a-x"})
    gateway.may_answer.set()

    assert await flight == BatchDecided(entries[1:])
    assert gateway.asked == [["a-x", "b-x"], ["b-x", "c-x"]]


async def test_what_was_taken_in_flight_is_not_held_with_the_shard() -> None:
    """Another hold reads it again."""
    gateway = Answering(None)
    entries = [queued_operation("a-x"), queued_operation("b-x")]
    lane = make_lane(gateway, entries, held=True)
    flight = asyncio.create_task(lane.next_result(asyncio.Event()))
    await gateway.is_asked.wait()
    lane.take_tenants({"a-x"})
    gateway.may_answer.set()

    assert (await flight, len(lane)) == (NoAnswer(entries[1:]), 0)
