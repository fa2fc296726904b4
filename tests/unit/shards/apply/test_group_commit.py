from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from support.postgres.tenant_cases import operation

from simplu_worker.fairness import CALM_TURN_S, FIRST_COST_S, ShardTime
from simplu_worker.operations.operation import Outcome
from simplu_worker.shards.apply.group_commit import CommitBatch, GroupCommit
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.types import PositionChangedError, PositionClaim, ShardUnavailableError

SIXTH = int(CALM_TURN_S / FIRST_COST_S / 6)  # of the operations that go together where nothing is known of a shard


class Shard:
    def __init__(self, *, second_takes: int) -> None:
        self.second_takes = second_takes  # operations in a second
        self.now = 0.0
        self.transactions: list[int] = []
        self._turn = asyncio.Lock()

    async def apply(self, batch: CommitBatch) -> list[Outcome]:
        async with self._turn:
            batch.close()
            await asyncio.sleep(0)
            self.now += len(batch.operations) / self.second_takes
            self.transactions.append(len(batch.operations))
            return [SUCCEEDED] * len(batch.operations)


@pytest.mark.parametrize(("second_takes", "batches"), [(20_000, 6), (10_000, 6), (5_000, 3), (1_000, 1)])
async def test_as_many_batches_go_together_as_take_a_turn_of_the_shard(second_takes: int, batches: int) -> None:
    shard = Shard(second_takes=second_takes)
    group_commit = GroupCommit(shard.apply, ShardTime(), clock=lambda: shard.now)
    batch = [operation("delete")] * SIXTH

    async def read() -> None:
        for _ in range(10):
            assert await group_commit.apply(batch, None) == [SUCCEEDED] * SIXTH

    await asyncio.gather(*[read() for _ in range(20)])

    assert sum(shard.transactions) == 200 * SIXTH
    assert shard.transactions[0] == 5 * SIXTH
    assert max(shard.transactions[-20:]) in {(batches - 1) * SIXTH, batches * SIXTH}  # no more than 7500


async def test_tenants_have_what_their_batches_took() -> None:
    time, now, is_free = ShardTime(), [0.0], asyncio.Event()

    async def apply(batch: CommitBatch) -> list[Outcome]:
        await is_free.wait()
        batch.close()
        now[0] += 2.0
        if len(batch.operations) == 1:
            raise ShardUnavailableError("down")
        return [SUCCEEDED] * len(batch.operations)

    group_commit = GroupCommit(apply, time, clock=lambda: now[0])
    loud, quiet = ([operation("delete", tenant=("b", letter))] * count for letter, count in (("x", 30), ("y", 10)))
    waiting = [asyncio.create_task(group_commit.apply(batch, None)) for batch in (loud, quiet)]
    await asyncio.sleep(0)
    now[0] = 5.0
    is_free.set()
    await asyncio.gather(*waiting)
    with pytest.raises(ShardUnavailableError):
        await group_commit.apply([operation("delete", tenant=("b", "z"))], None)

    assert time.take() == {"b": {"b-x": pytest.approx(1.5), "b-y": pytest.approx(0.5)}}


async def test_readers_that_are_behind_fail_alone() -> None:
    readers = [PositionClaim("stream", f"shardId-{number}") for number in range(4)]
    behind, sent = readers[:3], list[int]()

    async def apply(batch: CommitBatch) -> list[Outcome]:
        batch.close()
        sent.append(len(batch.claims))
        if late := [claim for claim in batch.claims if claim in behind]:
            raise PositionChangedError("they are others'", claims=late)
        return [SUCCEEDED] * len(batch.operations)

    group_commit = GroupCommit(apply, ShardTime())
    results = await asyncio.gather(
        *[group_commit.apply([operation("delete")], claim) for claim in readers], return_exceptions=True
    )

    assert [type(one) for one in results] == [PositionChangedError] * 3 + [list]
    assert sent == [4, 1]


def test_a_batch_and_its_parts_are_freed_without_the_garbage_collector() -> None:
    batch = CommitBatch([operation("delete")] * 2)
    left = [weakref.ref(batch), weakref.ref(batch.part([0]))]
    gc.disable()
    try:
        del batch
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()
