"""Ids as keys of the log: the same in SQL as in Python, back again, and looked up by the primary key."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest
from support.postgres.databases import copy_shard, execute, stop_autovacuum
from support.postgres.log_rows import made_up_rows
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.apply.writer import DUPLICATE, SUCCEEDED
from simplu_worker.shards.log.keys import key_of_id
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES

UUID: Final = "0123abcd-89ab-cdef-0123-456789abcdef"
ALPHABETS: Final = ("abc-0123", "ABCDEF-0123456789", "é0-", "ж-", "日本", "😀-a", " %_\\'\"\t\n/")
LENGTHS: Final = (1, 2, 5, 15, 16, 17, 32, 35, 36, 37, 100, 256, 300)
ROW_COUNT: Final = 200_000  # of one tenant
ROWS_A_BATCH: Final = 1000
LOG: Final = made_up_rows(
    "generate_series(1, $2::integer) AS number",
    tenant_id="$1",
    request_id="md5(number::text)::uuid::text",
    resource_id="'p' || number % 1000",
    batch=f"number / {ROWS_A_BATCH}",
)


def ids() -> list[str]:
    """Return ids of all shapes."""
    draw = random.Random(1)
    uuids = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(200)]
    odd = [UUID.replace(one, other, 1) for one in "0-ce" for other in "g-_A é٠"]
    odd += [
        UUID.replace("-", ""),
        f"{{{UUID}}}",
        f"{UUID}\n",
        f"{UUID} ",
        UUID[:-1],
        "-" * 36,
        "\\x01",
        "\\x",
        "order:1",
    ]
    texts = [
        "".join(draw.choices(alphabet, k=length)) for alphabet in ALPHABETS for length in LENGTHS for _ in range(3)
    ]
    return [*uuids, *(one.upper() for one in uuids), *(one.title() for one in uuids), *odd, *texts]


async def test_keys_are_the_same_in_sql_and_come_back_as_ids(shard: ShardPool) -> None:
    """`simplu_key` is `key_of_id`, and `simplu_id` the way back; also of a key that a row has kept."""
    texts = ids()
    keys = [key_of_id(text) for text in texts]
    rows = await fetch(
        shard,
        "SELECT encode(simplu_key(text), 'hex') AS key, simplu_id(decode(key, 'hex')) AS id,"
        " simplu_id('\\x03'::bytea || decode(key, 'hex') || int8send(-7) || int2send(3::smallint)) AS kept_id"
        " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (text, key, number) ORDER BY number",
        texts,
        keys,
    )

    assert [row["key"] for row in rows] == keys
    assert [row["id"] for row in rows] == texts
    assert [row["kept_id"] for row in rows] == texts
    nothing = "SELECT simplu_key(NULL) AS key, simplu_id(NULL) AS id, simplu_id('\\x04ff') AS other"
    assert await fetch(shard, nothing) == [{"key": None, "id": None, "other": None}]


async def test_view_has_the_ids_as_they_were_sent(tenant: TenantCase) -> None:
    """Those of requests and of resources, in any shape; each operation is found by its own."""
    texts = list(dict.fromkeys(text for text in ids()[::3] if text.isprintable() and len(text) <= 128))
    sent = [tenant.operation("create", text, {}, request_id=text) for text in texts]

    assert await tenant.apply(*sent) == [SUCCEEDED] * len(sent)

    query = "SELECT request_id, resource_id FROM operations WHERE tenant_id = $1 ORDER BY position"
    rows = await fetch(tenant.pool, query, tenant.tenant_id)
    assert [(row["request_id"], row["resource_id"]) for row in rows] == [(text, text) for text in texts]
    found = await fetch(
        tenant.pool,
        "SELECT single.resource_id FROM unnest($2::text[]) WITH ORDINALITY AS sent (text, number)"
        " CROSS JOIN LATERAL simplu_operation($1, text) AS single ORDER BY number",
        tenant.tenant_id,
        texts,
    )
    assert [row["resource_id"] for row in found] == texts
    assert await tenant.apply(*sent) == [DUPLICATE] * len(sent)


@pytest.fixture(scope="module")
def large_address(postgres_server: PostgresServer) -> Callable[[], Awaitable[ShardAddress]]:
    """Give what returns the address of a shard with a tenant of very many operations, made once."""
    made: list[ShardAddress] = []

    async def address() -> ShardAddress:
        if not made:
            made.append(await copy_shard(postgres_server))
            await stop_autovacuum(made[0].connection_string, "log_rows", "log_batches", "tenants")
            pool = ShardPool(made[0], size=1)
            for location in ("main", "new", "small"):
                await add_tenant(pool, ("clinic", location))
            await pool.close()
            for tenant_id, count in (("clinic-main", ROW_COUNT), ("clinic-small", ROW_COUNT // 100)):
                await execute(made[0].connection_string, LOG, tenant_id, count)
            for table in ("log_rows", "log_batches", "tenants"):
                await execute(made[0].connection_string, f"VACUUM ANALYZE {table}")
        return made[0]

    return address


@pytest.fixture(params=["postgres", "pg_read_all_data"])  # the second one has no right to write
async def large(
    request: pytest.FixtureRequest, large_address: Callable[[], Awaitable[ShardAddress]]
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Give a connection to that shard, as a role; a test changes nothing there."""
    connection = await asyncpg.connect((await large_address()).connection_string)
    await connection.execute(f"SET ROLE {request.param}; SET simplu.tenant = 'clinic-main'")
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of a plan."""
    return [plan, *(node for inner in plan.get("Plans", ()) for node in nodes(inner))]


async def log_scan(connection: asyncpg.Connection[Any], query: str, *arguments: str) -> dict[str, Any]:
    """Run *query*, and return how its plan reads `log_rows`."""
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}", *arguments)
    (scan,) = [node for node in nodes(json.loads(text)[0]["Plan"]) if node.get("Relation Name") == "log_rows"]
    return scan


@pytest.mark.slow(10)
async def test_one_operation_of_a_large_log_is_found_by_both_columns_of_the_key(
    large: asyncpg.Connection[Any],
) -> None:
    """Whichever way the key is given; by the text of the request id all of the tenant's rows are looked at."""
    request = await large.fetchval("SELECT md5('4711')::uuid::text")
    ways = {
        "SELECT * FROM simplu_operation($1, $2)": request,
        "SELECT * FROM operations WHERE tenant_id = $1 AND request_key = simplu_key($2)": request,
        "SELECT * FROM operations WHERE tenant_id = $1 AND request_key = decode($2, 'hex')": key_of_id(request),
    }
    for query, argument in ways.items():
        scan = await log_scan(large, query, "clinic-main", argument)
        assert (scan["Index Name"], scan["Actual Rows"]) == ("log_rows_pkey", 1), query
        assert {"tenant_no = ", "request = "} <= set(re.findall(r"\w+ = ", scan["Index Cond"])), query

    by_text = await log_scan(
        large, "SELECT * FROM operations WHERE tenant_id = $1 AND request_id = $2", "clinic-main", request
    )
    assert (by_text["Rows Removed by Filter"] + 1) * by_text["Actual Loops"] >= ROW_COUNT


# Queries with arguments as SQL, for tenants with very many operations and with none.
LOOKUPS: Final = {
    "find_operation": ("'s', '{a}', 'clinic-main', :key", 1),
    "find_operation_of_any_tenant": ("'s', '{a}', :key", 1),  # 4711 is no number of the small one
    "find_operations": ("'{clinic-main,clinic-new}', ARRAY[:key, :key]", 1),
    "logged_operations": ("'{1,2}', ARRAY[:key, :key]", 1),
    "find_home_candidates": ("'{clinic-new}'", 0),
}


@pytest.mark.slow(2)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", LOOKUPS)
async def test_query_looks_at_no_row_of_a_large_log_but_its_own(
    large_address: Callable[[], Awaitable[ShardAddress]], name: str, mode: str
) -> None:
    """A search for the first of many, which statistics recommend, would read the whole table for a new tenant."""
    connection = await asyncpg.connect((await large_address()).connection_string)
    arguments, count = LOOKUPS[name]
    key = key_of_id(await connection.fetchval("SELECT md5('4711')::uuid::text"))
    await connection.execute(f"SET plan_cache_mode = {mode}; PREPARE asked AS {QUERIES[name]}")
    explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE asked ({arguments.replace(':key', repr(key))})"
    ((text,),) = await connection.fetch(explain)
    await connection.close()

    scans = [node for node in nodes(json.loads(text)[0]["Plan"]) if node.get("Relation Name") == "log_rows"]
    looked_at = [(one["Actual Rows"] + one.get("Rows Removed by Filter", 0)) * one["Actual Loops"] for one in scans]
    assert scans
    assert round(sum(looked_at)) == count, scans
