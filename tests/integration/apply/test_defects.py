"""A batch with an operation at which the worker's own code fails: that one is a dead letter, the others are applied."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from support.citrus.cases import routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_worker.errors import InternalError
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.apply.writer import DUPLICATE, SUCCEEDED
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import PositionClaim
from simplu_worker.vocabulary import DeadLetterReason


async def test_operation_at_which_pure_code_fails_is_a_dead_letter_and_the_others_are_applied(
    make_shard: ShardMaker,
) -> None:
    shard = await make_shard("shard-1")
    async with routed_shards([shard]) as routed:
        pool = routed.pools.ensure_pool(shard)
        await add_tenant(pool, TENANT)
        case = TenantCase(pool, TENANT)
        first, last = case.operation("create", "a", data={}), case.operation("create", "b", data={})
        broken = replace(case.operation("create", "c", data={}), resource_id=7)  # no decoder makes such an operation

        outcomes = await routed.gateway.apply(shard.shard_id, [first, broken, last])
        again = await routed.gateway.apply(shard.shard_id, [first, broken, last])

    assert (outcomes[0], outcomes[1].reason, outcomes[2]) == (SUCCEEDED, DeadLetterReason.INTERNAL_ERROR, SUCCEEDED)
    assert (again[0], again[1].reason, again[2]) == (DUPLICATE, DeadLetterReason.INTERNAL_ERROR, DUPLICATE)


async def test_shard_is_in_trouble_when_no_operation_is_at_fault(make_shard: ShardMaker) -> None:
    class Crashing(ShardGateway):
        async def _apply(
            self, shard_id: str, operations: Sequence[Operation], claim: PositionClaim | None
        ) -> list[Outcome]:
            raise ZeroDivisionError

    shard = await make_shard("shard-1")
    async with routed_shards([shard]) as routed:
        gateway = Crashing(routed.directory, routed.locator, routed.pools, tenant_wait=routed.gateway._tenant_wait)
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await gateway.apply(shard.shard_id, [])
