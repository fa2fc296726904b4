"""Another role makes functions, operators and tables in the search path: no statement of ours uses one of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, execute
from support.postgres.decoys import ATTACKER, parse_trees, trap
from support.postgres.tenant_cases import operation, writer_of
from support.postgres.upgrades import NEXT, upgrader

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import ensure_schema
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS
from simplu_worker.transfers import QUERIES
from simplu_worker.vocabulary import Failure

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
TENANT = """
INSERT INTO {home}.tenants (id, business_id, location_id, business_type, state, control_at, created_at)
VALUES ('clinic-main', 'clinic', 'main', 'dental', 'active', '2026-01-01', '2026-01-01')
"""


def url_as(role: str, address: ShardAddress) -> str:
    return f"postgresql://{role}@{address.connection_string.rpartition('@')[2]}"


async def ask(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    await connection.execute("SET search_path = pg_catalog")
    try:
        return [list(row.values()) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def pool_of(address: ShardAddress) -> AsyncIterator[ShardPool]:
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


async def apply_all_kinds(address: ShardAddress, home: str = "public") -> None:
    await execute(address.connection_string, TENANT.format(home=home))
    document = {"name": "Ana", "address": {"city": "Cluj", "geo": {"lat": 46, "long": 23}}, "tags": [1]}
    patches: list[Any] = [{"name": "Eva"}, {"tags": None}, {"address": {"city": None}}]
    patches += [{"address": {"geo": {"lat": None, "alt": {}}}}]
    async with pool_of(address) as pool:
        writer = writer_of(pool)
        batch = [operation("create", "r1", document), operation("create", "r2", {"n": 1}), operation("delete", "r2")]
        batch += [operation("patch", "r1", patch) for patch in patches]
        batch += [operation("read", "r1", request_id="read"), operation("read", "r2", request_id="gone")]
        batch += [operation("list", None, request_id="list", filters={"name": "Eva"})]
        asked = {"address.geo.long": {"from": 1}, "date": "2026-03-01"}
        paging = {"sort": {"by": "name", "descending": True}, "total": True}
        batch += [operation("list", None, request_id="asked", filters=asked, pagination=paging)]
        outcomes = await writer.apply(batch)
        again = await writer.apply(batch)
        async with pool.connection() as connection:
            rows = await connection.fetch(
                QUERIES["find_operations"], ["clinic-main"] * 3, list(map(key_of_id, ["read", "list", "asked"]))
            )
            assert await connection.fetchval(QUERIES["find_unstorable"], ['{"a": "\\u0000"}']) == 0
    assert [one.failure for one in outcomes] == [None] * 8 + [Failure.NOT_FOUND] + [None] * 2
    assert {one.disposition for one in again} != {one.disposition for one in outcomes}
    results = {row["request_id"]: json.loads(row["result"]) for row in rows}
    expected = {"name": "Eva", "address": {"geo": {"long": 23, "alt": {}}}}
    assert results["read"]["data"] == expected
    assert [item["data"] for item in results["list"]["items"]] == [expected]
    assert [item["data"] for item in results["asked"]["items"]] == [expected]


@pytest.mark.slow(0.4)
async def test_operations_run_no_decoy(trapped: ShardAddress) -> None:
    await apply_all_kinds(trapped)


@pytest.mark.slow(0.3)
async def test_schema_is_made_beside_decoys(make_shard: ShardMaker, postgres_server: PostgresServer) -> None:
    address = await make_shard("shard-3", is_empty=True)
    await trap(postgres_server, address, tables=[])
    async with pool_of(address) as pool:
        await ensure_schema(pool)

    assert await ask(address.connection_string, CAPTURED) == []
    assert await ask(address.connection_string, OPEN_FUNCTIONS) == []
    await apply_all_kinds(address)


@pytest.mark.slow(0.3)
async def test_upgrade_runs_no_decoy(trapped: ShardAddress) -> None:
    async with pool_of(trapped) as pool:
        done = await upgrader(pool).run()

    assert done is not None
    assert done.version == NEXT
    assert await ask(trapped.connection_string, CAPTURED) == []
    assert await ask(trapped.connection_string, OPEN_FUNCTIONS) == []
    await apply_all_kinds(trapped)


@pytest.mark.parametrize("owner", ["worker_role", "owner_role", "postgres"])
async def test_shard_is_found_by_a_role_without_special_rights(make_shard: ShardMaker, owner: str) -> None:
    address = await make_shard()
    made = f"""
        CREATE ROLE worker_role LOGIN; CREATE ROLE owner_role; GRANT owner_role TO worker_role;
        CREATE ROLE {ATTACKER}_role; GRANT SELECT ON shard_meta TO worker_role;
        ALTER TABLE shard_meta OWNER TO {owner};
        CREATE SCHEMA worker_role AUTHORIZATION {ATTACKER}_role; GRANT USAGE ON SCHEMA worker_role TO worker_role;
        CREATE TABLE worker_role.shard_meta (LIKE shard_meta);
        INSERT INTO worker_role.shard_meta VALUES (true, 'shard-1', now(), 0);
        ALTER TABLE worker_role.shard_meta OWNER TO {ATTACKER}_role; GRANT SELECT ON worker_role.shard_meta TO PUBLIC;
    """
    await execute(address.connection_string, made)
    try:
        worker = ShardAddress("shard-1", url_as("worker_role", address))
        async with pool_of(worker) as pool, pool.connection() as connection:
            assert connection.home == "public"
    finally:
        gone = f"worker_role, owner_role, {ATTACKER}_role"
        restored = "DROP SCHEMA worker_role CASCADE; ALTER TABLE shard_meta OWNER TO postgres"
        await execute(address.connection_string, f"{restored}; DROP OWNED BY {gone}; DROP ROLE {gone}")
