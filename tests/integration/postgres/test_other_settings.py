"""Databases with other defaults than those of Postgres: the worker makes each setting that it relies on."""

from __future__ import annotations

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.other_settings import WAYS, reached, set_otherwise

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import Isolation

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
