from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, execute
from support.postgres.decoys import parse_trees, trap
from support.postgres.upgrades import NEXT, upgrader

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import ensure_schema
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS
from simplu_worker.transfers import QUERIES

OURS = """
SELECT array_agg(meant::text) FROM (
    SELECT 'relid=' || oid::text AS meant FROM pg_class
    WHERE relnamespace::regnamespace::text IN ('public', 'simplu_adoption', 'simplu_adoption_log')
    UNION ALL
    SELECT 'funcid=' || oid::text FROM pg_proc
    WHERE pronamespace::regnamespace::text <> 'postgres' AND proname ~ '^simplu_|^document_of$|^fault_of$'
) AS ours
"""
# Policies, views, constraints and defaults that use a decoy.
CAPTURED = """
SELECT pg_describe_object(classid, objid, objsubid) AS captured FROM pg_depend
WHERE refobjid BETWEEN 1000000 AND 2000000
"""
OPEN_FUNCTIONS = """
SELECT proname FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
    AND proname ~ '^simplu_'
    AND prosqlbody IS NULL -- else parsed when the function was made
    AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY(proconfig), false)
"""


async def ask(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    await connection.execute("SET search_path = pg_catalog")
    try:
        return [list(row.values()) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def pool_of(address: ShardAddress) -> AsyncIterator[ShardPool]:
    database = address.connection_string.rpartition("/")[2]
    await execute(address.connection_string, f'ALTER DATABASE {database} SET search_path = public, "$user"')
    pool = ShardPool(address, size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS)
    yield pool
    await pool.close()


async def strangers(address: ShardAddress, *, of_adoption: bool) -> dict[str, set[str]]:
    ((ours,),) = await ask(address.connection_string, OURS)
    async with parse_trees(address.connection_string) as trees:
        return {
            name: odd
            for name, query in QUERIES.items()
            if ("simplu_adoption" in query) == of_adoption and (odd := await trees.strangers(query) - set(ours))
        }


@pytest.fixture
async def trapped(make_shard: ShardMaker, postgres_server: PostgresServer) -> ShardAddress:
    address = await make_shard()
    await trap(postgres_server, address)
    return address


@pytest.mark.slow(0.3)
async def test_decoys_are_what_unqualified_statements_use(trapped: ShardAddress) -> None:
    async with parse_trees(trapped.connection_string) as trees:
        for statement in (
            "SELECT jsonb_path_exists($1::jsonb, '$.*')",
            "SELECT array_length($1::text[], 1) = 1::bigint, unnest($1)",
            "SELECT 1::float8 / 1::bigint",
            "SELECT $1::jsonb #>> '{}'",
            "SELECT FROM tenants",
        ):
            assert [one for one in await trees.strangers(statement) if not one.startswith("opfunc")], statement
        with pytest.raises(asyncpg.WrongObjectTypeError, match="array_agg is not an aggregate"):
            await trees.strangers("SELECT $1::pg_catalog.uuid[]")


@pytest.mark.slow
async def test_every_query_means_what_it_says_beside_decoys(trapped: ShardAddress) -> None:
    assert await strangers(trapped, of_adoption=False) == {}


@pytest.mark.slow(0.3)
async def test_schema_is_made_beside_decoys(make_shard: ShardMaker, postgres_server: PostgresServer) -> None:
    address = await make_shard("shard-3", is_empty=True)
    await trap(postgres_server, address, tables=[])
    async with pool_of(address) as pool:
        await ensure_schema(pool)

    assert await ask(address.connection_string, CAPTURED) == []
    assert await ask(address.connection_string, OPEN_FUNCTIONS) == []


@pytest.mark.slow(0.3)
async def test_upgrade_runs_no_decoy(trapped: ShardAddress) -> None:
    async with pool_of(trapped) as pool:
        done = await upgrader(pool).run()

    assert done is not None
    assert done.version == NEXT
    assert await ask(trapped.connection_string, CAPTURED) == []
    assert await ask(trapped.connection_string, OPEN_FUNCTIONS) == []
