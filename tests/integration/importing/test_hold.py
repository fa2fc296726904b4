"""Operations of a tenant that is being imported wait for its activation, however long that takes."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import fetch
from support.queued_operations import NOW, queued_operation

from simplu_worker.consumers.kinesis.recovery.reader_progress import QueuedOperation
from simplu_worker.consumers.pipeline.home_lookup import HomeLookup
from simplu_worker.consumers.pipeline.results import Found, Overdue
from simplu_worker.errors import RetryableError
from simplu_worker.transfers.importing.copying import TargetTenant, make_incoming
from simplu_worker.transfers.importing.rules import SourceTenant

TENANT = "b-l"
LONG_AGO = NOW - timedelta(days=30)
TOKEN = "00000000-0000-0000-0000-000000000001"


def lookup_of(routed: RoutedShards) -> HomeLookup[QueuedOperation]:
    lookup: HomeLookup[QueuedOperation] = HomeLookup(
        routed.gateway, lambda _: False, tenant_wait=timedelta(seconds=1), utc=lambda: NOW
    )
    lookup.add(TENANT, [queued_operation(arrived_at=LONG_AGO)])
    return lookup


async def test_operations_of_an_incoming_tenant_are_never_overdue(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1")]) as routed:
        assert isinstance(await lookup_of(routed).look_up(TENANT), Overdue)

        await routed.locator.register("b", "l", "gym")
        named = await routed.locator.locate(TENANT)
        assert named is not None
        pool = routed.pools.ensure_pool(named)
        tenant = SourceTenant("b", "l", business_type="gym")
        await make_incoming(pool, [tenant], source="db", token=TOKEN)
        routed.directory.forget(TENANT)
        assert await lookup_of(routed).look_up(TENANT) is None
        # Its activation may be what the shard has lost, with what was applied behind it.
        assert await routed.gateway.find_resident_tenants(pool.address.shard_id, [TENANT, "b-other"]) == {TENANT}

        target = TargetTenant(pool, TENANT, token=TOKEN)
        _, server = await target.sum_rows()
        other = msgspec.structs.replace(server, timeline="2")
        with pytest.raises(RetryableError, match="the rows of b-l were verified on another server"):
            await target.activate({}, NOW, verified_on=other)
        assert await lookup_of(routed).look_up(TENANT) is None

        await target.activate({}, NOW, verified_on=server)
        found = await lookup_of(routed).look_up(TENANT)
        assert isinstance(found, Found)
        rows = await fetch(pool, 'SELECT "resourceName" AS kind FROM resources WHERE id = $1', TENANT)
        assert [row["kind"] for row in rows] == ["settings"]
