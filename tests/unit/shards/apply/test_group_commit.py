"""How many operations go together in a transaction, by how long the last one took."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.postgres.tenant_cases import operation

from simplu_worker.operations.operation import Outcome
from simplu_worker.shards.apply.group_commit import (
    GROUP_LEAST_COUNT,
    GROUP_MAX_COUNT,
    GROUP_MAX_S,
    CommitBatch,
    GroupCommit,
    max_group_count,
)
from simplu_worker.shards.apply.writer import SUCCEEDED
from simplu_worker.shards.types import PositionChangedError, PositionClaim

HALF = 2500  # operations: two such go together only where more may than on a slow shard


@pytest.mark.parametrize(
    ("count", "took_s", "expected"),
    [
        (9000, 0.5, GROUP_MAX_COUNT),
        (1, 0.001, GROUP_LEAST_COUNT),
        (4000, 0.5, 6000),
        (4000, 10.0, GROUP_LEAST_COUNT),
        (4000, 0.0, GROUP_MAX_COUNT),
    ],
    ids=["fast", "one operation proves little", "in between", "slow", "no time passed"],
)
def test_as_many_go_together_as_a_shard_takes_in_time(count: int, took_s: float, expected: int) -> None:
    """But never fewer than on the slowest, nor more than on the fastest."""
    assert max_group_count(count, took_s) == expected


@given(st.integers(1, 20_000), st.floats(0, 1000))
def test_group_takes_no_longer_than_it_should_unless_the_shard_is_slow(count: int, took_s: float) -> None:
    """Where an operation takes as long as in the last one."""
    most = max_group_count(count, took_s)
    assert GROUP_LEAST_COUNT <= most <= GROUP_MAX_COUNT
    assert most == GROUP_LEAST_COUNT or most * took_s / count <= GROUP_MAX_S * 1.001


class Shard:
    """A shard that runs one transaction at a time, each of a given length, by its own clock."""

    def __init__(self, *, second_takes: int) -> None:
        self.second_takes = second_takes  # operations in a second
        self.now = 0.0
        self.transactions: list[int] = []
        self._turn = asyncio.Lock()

    async def apply(self, batch: CommitBatch) -> list[Outcome]:
        """Apply a batch."""
        async with self._turn:
            batch.close()
            await asyncio.sleep(0)
            self.now += len(batch.operations) / self.second_takes
            self.transactions.append(len(batch.operations))
            return [SUCCEEDED] * len(batch.operations)


@pytest.mark.parametrize(("second_takes", "is_fast"), [(20_000, True), (4000, False)], ids=["fast", "slow"])
async def test_more_go_together_on_a_shard_that_is_fast(second_takes: int, *, is_fast: bool) -> None:
    """The first transactions are small: nothing is known of it."""
    shard = Shard(second_takes=second_takes)
    group_commit = GroupCommit(shard.apply, clock=lambda: shard.now)
    batches = [[operation("delete")] * HALF for _ in range(6)]

    outcomes = await asyncio.gather(*[group_commit.apply(batch, None) for batch in batches])

    assert outcomes == [[SUCCEEDED] * HALF] * len(batches)
    assert sum(shard.transactions) == len(batches) * HALF
    assert shard.transactions[0] == HALF
    assert (max(shard.transactions) > GROUP_LEAST_COUNT) is is_fast


async def test_readers_that_are_behind_fail_at_once_and_the_others_go_alone() -> None:
    """A move changes the rows of all readers: no one of them is to be asked once more."""
    readers = [PositionClaim("stream", f"shardId-{number}") for number in range(4)]
    behind, sent = readers[:3], list[int]()

    async def apply(batch: CommitBatch) -> list[Outcome]:
        batch.close()
        sent.append(len(batch.claims))
        if late := [claim for claim in batch.claims if claim in behind]:
            raise PositionChangedError("they are others'", claims=late)
        return [SUCCEEDED] * len(batch.operations)

    group_commit = GroupCommit(apply)
    results = await asyncio.gather(
        *[group_commit.apply([operation("delete")], claim) for claim in readers], return_exceptions=True
    )

    assert [type(one) for one in results] == [PositionChangedError] * 3 + [list]
    assert sent == [4, 1]
