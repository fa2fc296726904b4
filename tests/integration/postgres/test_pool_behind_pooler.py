"""Prepared statements that do not hold: behind PgBouncer in transaction mode, and after a change of the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.postgres.databases import ShardMaker, database_of
from support.postgres.pooler import running_pooler
from support.postgres.tenant_cases import TenantCase, add_tenant

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Pools, ShardPool

SETTINGS = {"auth_type": "any", "pool_mode": "transaction", "default_pool_size": 2}


@pytest.fixture
async def pooled(make_shard: ShardMaker, postgres_server: PostgresServer) -> AsyncIterator[ShardAddress]:
    address = await make_shard()
    async with running_pooler(postgres_server, SETTINGS) as port:
        yield ShardAddress(address.shard_id, f"postgresql://guest@{HOST}:{port}/{database_of(address)}")


@pytest.mark.slow
async def test_pools_work_through_a_pooler_in_transaction_mode(pooled: ShardAddress) -> None:
    async with Pools(size=4) as one, Pools(size=4) as other:
        cases = [
            TenantCase(pools.ensure_pool(pooled), (f"clinic-{n}", "main")) for n in range(3) for pools in (one, other)
        ]
        for case in cases[::2]:
            await add_tenant(case.pool, case.ids)

        async def apply(case: TenantCase) -> None:
            for number in range(8):
                name = f"r{number}-{id(case)}"
                operations = [case.operation("create", name, {"n": number}), case.operation("read", name)]
                assert await case.apply(*operations) == [SUCCEEDED, SUCCEEDED]

        async with asyncio.TaskGroup() as tasks:
            for case in cases:
                tasks.create_task(apply(case))
        for pools in (one, other):
            pool = pools.ensure_pool(pooled)
            await pool.probe()
            assert (pool._connector.has_pooler, pool.is_healthy) == (True, True)


@pytest.mark.slow
async def test_pooler_that_is_full_cuts_off_no_shard_with_connections_of_its_own(
    make_shard: ShardMaker, postgres_server: PostgresServer
) -> None:
    address = await make_shard()
    async with running_pooler(postgres_server, SETTINGS | {"max_client_conn": 2}) as port, Pools(size=6) as pools:
        pool = pools.ensure_pool(
            ShardAddress(address.shard_id, f"postgresql://guest@{HOST}:{port}/{database_of(address)}")
        )
        async with pool.connection(), pool.connection():
            pass
        for _ in range(4):
            await pool.probe()

        async def use() -> None:
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_sleep(0.1)")

        for _ in range(3):
            await asyncio.gather(*(use() for _ in range(2)))
        assert pool.is_healthy
        assert pool.counts()["open"] == 2


@pytest.mark.parametrize("change", ["ALTER TABLE things ALTER n TYPE text", "ALTER TABLE things ADD m int"])
async def test_pool_meets_a_change_of_the_schema_once(shard: ShardPool, change: str) -> None:
    async def read() -> int:
        async with shard.transaction() as connection:
            return len(await connection.fetch("SELECT * FROM things"))

    async with shard.connection() as connection:
        await connection.execute("CREATE TABLE things (n int)")
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(read())
    assert shard.counts()["open"] > 1
    async with shard.connection() as connection:
        await connection.execute(change)

    with pytest.raises(LostRaceError, match=r"\(0A000\)"):
        await read()

    assert [await read() for _ in range(8)] == [0] * 8
