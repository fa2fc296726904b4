"""What tenants took of a real shard."""

from __future__ import annotations

import asyncio

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import STREAM, TENANT_WAIT, TenantCase, add_tenant

from simplu_worker.fairness import ShardTime
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import PositionChangedError, PositionClaim, StreamPosition
from simplu_worker.timing.clock import loop_time

LOUD, QUIET = ("clinic", "loud"), ("clinic", "quiet")


async def test_committed_transactions_are_divided_among_their_tenants(make_shard: ShardMaker) -> None:
    pool, time = ShardPool(await make_shard(), size=1), ShardTime()
    cases = [TenantCase(pool, ids) for ids in (LOUD, QUIET)]
    for case in cases:
        await add_tenant(pool, case.ids)
    loud, quiet = cases
    writer = ShardWriter(pool, tenant_wait=TENANT_WAIT, time=time)
    many = [loud.operation("create", f"r{number}", {"text": "x" * 1000}) for number in range(200)]
    few = [quiet.operation("create", "r1", {"n": 1}), quiet.operation("read", "r1")]

    async with pool.connection():  # so that both wait for one transaction
        waiting = [asyncio.create_task(writer.apply(batch)) for batch in (many, few)]
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*waiting)
    claim = PositionClaim(STREAM, "shardId-1", StreamPosition("1/0"), fencing_tokens=["of another reader"])
    with pytest.raises(PositionChangedError):
        await writer.apply([quiet.operation("create", "r2", {})], claim)

    assert outcomes == [[SUCCEEDED] * 200, [SUCCEEDED] * 2]
    use = time.usage.last_minute(loop_time())
    assert {one: (own.operation_count, own.size_bytes) for one, own in use.by_tenant.items()} == {
        case.tenant_id: (len(batch), sum(one.size_bytes for one in batch))
        for case, batch in ((loud, many), (quiet, few))
    }
    assert use.largest() == [loud.tenant_id, quiet.tenant_id]
    assert use.total_s == pytest.approx(sum(own.took_s for own in use.by_tenant.values()))
    assert all(own.waited_s > 0 for own in use.by_tenant.values())
    await pool.close()
