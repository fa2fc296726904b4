from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.citrus.cases import routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_worker.errors import InternalError
from simplu_worker.operations.operation import Disposition
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.vocabulary import DeadLetterReason


async def test_operation_that_raises_alone_fails_alone(make_shard: ShardMaker) -> None:
    shard = await make_shard("shard-1")
    async with routed_shards([shard]) as routed:
        pool = routed.pools.ensure_pool(shard)
        case, other = TenantCase(pool, TENANT), TenantCase(pool, (TENANT[0], "other"))
        for one in (case, other):
            await add_tenant(pool, one.ids)
        broken = replace(case.operation("create", "b", data={}), resource_id=7)  # no decoder makes such an operation
        batch = [broken, case.operation("create", "c", data={}), other.operation("create", "a", data={})]

        with pytest.raises(InternalError, match="TypeError"):  # nothing shows yet that any operation can be applied
            await routed.gateway.apply(shard.shard_id, [broken])
        first, failed, *others = await routed.gateway.apply(shard.shard_id, [batch[2], *batch])

    assert (failed.disposition, failed.reason) == (Disposition.FAILING, DeadLetterReason.INTERNAL_ERROR)
    assert [first, *others] == [SUCCEEDED, HOLD, DUPLICATE]
