"""Probing whether a shard can apply operations now: beside the pool, in seconds, once for all callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import QUICK, ShardMaker, copy_shard
from support.postgres.pool_trouble import forget_probes
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_local.postgres.server import PostgresServer
from simplu_worker.network_errors import NO_ANSWER
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.types import ShardUnavailableError

# Its own deadline is far before that of a reply, and far behind the time that a busy machine takes for a probe.
HURRIED = msgspec.structs.replace(QUICK, acquire_s=6.0, statement_s=5.0, reply_s=6.0, probe_s=1.5)


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    async with routed_shards([await make_shard()]) as routed:
        await add_tenant(pool_of(routed))
        routed.register(TENANT, "shard-1")
        await routed.gateway.find("-".join(TENANT))
        yield routed


def pool_of(routed: RoutedShards) -> ShardPool:
    return routed.pools.ensure_pool(ShardAddress("shard-1", routed.citrus.registry.shards["shard-1"].connection_string))


async def test_probe_says_nothing_when_the_shard_works(routed: RoutedShards) -> None:
    pool = pool_of(routed)
    async with pool.connection() as one, pool.connection():
        await routed.gateway.probe("shard-1")
        others = await one.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
        )
    assert others == 1
    assert pool.is_healthy


@pytest.mark.slow(6)
async def test_probe_raises_in_time_when_the_server_is_frozen(breakable_server: PostgresServer) -> None:
    async with Pools(size=1, timeouts=HURRIED) as pools:
        pool = pools.ensure_pool(await copy_shard(breakable_server))
        case = TenantCase(pool, TENANT)
        await add_tenant(pool, TENANT)
        breakable_server.suspend()

        async def stuck() -> None:
            with pytest.raises(ShardUnavailableError):
                await case.apply(case.operation("create", data={}))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stuck())
            await asyncio.sleep(0)
            started = time.monotonic()
            with pytest.raises(ShardUnavailableError, match=NO_ANSWER):
                await pool.probe()
            assert time.monotonic() - started < 4.5
        assert (pool.is_healthy, pool.last_error) == (False, NO_ANSWER)
        breakable_server.resume()

        forget_probes(pool)
        await pool.probe()
        assert (pool.is_healthy, pool.last_error) == (True, None)
        assert await case.apply(case.operation("list", None)) == [SUCCEEDED]
