"""Databases that cannot store each text of a record are refused before one is taken."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from support.postgres.databases import execute
from support.postgres.tenant_cases import operation, writer_of

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.health.assessment import ShardSilence
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
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
