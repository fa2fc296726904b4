from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from support.postgres.databases import ShardMaker, database_of, execute
from support.postgres.other_settings import WAYS, reached, set_otherwise
from support.postgres.pooler import running_pooler
from support.postgres.tenant_cases import TenantCase, add_tenant, operation, writer_of

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.health.assessment import ShardSilence
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import Isolation
from simplu_worker.shards.types import ShardUnavailableError


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
async def odd(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> AsyncIterator[ShardAddress]:
    server, encoding = postgres_server.url_of("postgres"), str(request.param)
    name = f"odd_{encoding.lower()}"
    await execute(
        server, f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    yield ShardAddress("shard-1", postgres_server.url_of(name))
    await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def test_database_that_is_not_utf8_is_refused(odd: ShardAddress) -> None:
    reason = r"expected a database with encoding UTF8, got (LATIN1|SQL_ASCII); create one with ENCODING 'UTF8'"
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(odd)
        for _ in range(2):  # without our schema, then with it
            with pytest.raises(ShardUnavailableError, match=reason):
                await writer_of(pool).apply([operation("create", data={"text": "ö"})])
            health = await inspect_shard(pool)
            assert isinstance(health, ShardSilence)
            assert (health.is_refusal, re.match(reason, health.error) is not None) == (True, True)
            await execute(
                odd.connection_string, "CREATE TABLE IF NOT EXISTS shard_meta AS SELECT 'shard-1' AS shard_id"
            )


EXPECTED = {
    "transaction_isolation": "read committed",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
    "extra_float_digits": "3",
    "row_security": "on",
    "client_min_messages": "warning",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "lock_timeout": "5s",
    "statement_timeout": "25s",
    "idle_in_transaction_session_timeout": "30s",
    "transaction_timeout": "0",
}
SHOWN = "SELECT name, pg_catalog.current_setting(name) AS value FROM pg_catalog.unnest($1::text[]) AS name"


@pytest.fixture
async def shards(make_shard: ShardMaker) -> list[ShardAddress]:
    made = [await make_shard(shard_id) for shard_id in ("a", "b")]
    for shard in made:
        await set_otherwise(shard)
    return made


@pytest.mark.parametrize("way", WAYS)
async def test_settings_are_those_of_the_worker_whatever_the_defaults_of_the_database(
    shards: list[ShardAddress], postgres_server: PostgresServer, way: str
) -> None:
    async with reached(way, postgres_server, shards[0]) as (address,):
        pool = ShardPool(address, size=1)
        for _ in range(2):
            async with pool.connection() as connection:
                single = await connection.fetch(SHOWN, [*EXPECTED])
            async with pool.transaction() as connection:
                within = await connection.fetch(SHOWN, [*EXPECTED])
            assert {row["name"]: row["value"] for row in single} == EXPECTED
            assert {row["name"]: row["value"] for row in within} == EXPECTED
        async with pool.transaction(isolation=Isolation.ONE_MOMENT) as connection:
            assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
            assert await connection.fetchval("SHOW transaction_read_only") == "on"
        await pool.close()


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
