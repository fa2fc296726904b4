"""`types apply` on a shard: rows and views together, while others read them, and nothing where it is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch

from simplu_worker.operations.business_types import BusinessType
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES
from simplu_worker.shards.schema.type_files import INDEX_PREFIX, TypeChange, TypeFile, TypesPlan, read_type
from simplu_worker.shards.schema.upgrade import CONNECTIONS, Upgrader, plan_on

NAME = {"name": "name", "path": ["name"]}
CITY = {"name": "city", "path": ["address", "city"]}
PRICE = {"name": "price", "path": ["price"], "type": "number"}

_numbers = itertools.count(1)


def file_of(name: str = "bakery", *columns: dict[str, Any], view: str = "bakery_loaves") -> TypeFile:
    resources = [{"name": "loaf", "alsoNamed": ["loaves"], "view": view, "columns": columns}]
    members = {"name": name, "defaultSettings": {"n": 1}, "staffResourceType": "baker", "resourceTypes": resources}
    return read_type(json.dumps(members))


@pytest.fixture
async def pool(make_shard: ShardMaker) -> AsyncIterator[ShardPool]:
    pool = ShardPool(await make_shard(), size=CONNECTIONS, timeouts=ShardTimeouts(lock_s=0.5))
    yield pool
    await pool.close()


async def applied(pool: ShardPool, *files: TypeFile, remove: tuple[str, ...] = ()) -> TypesPlan:
    by_name = {file.type.name: file for file in files}
    plan = await Upgrader(pool, patience_s=0.0, draw=lambda: 0.0).apply_types(by_name, remove=remove)
    assert plan is not None
    return plan


async def rows_of(pool: ShardPool) -> dict[str, dict[str, Any]]:
    rows = await fetch(pool, "SELECT * FROM business_types")
    return {row["name"]: row for row in rows if row["name"] not in BUSINESS_TYPES}


async def test_type_is_written_once_with_its_view(pool: ShardPool) -> None:
    file = file_of("bakery", NAME, CITY, PRICE)
    assert (await plan_on(pool, {"bakery": file}, remove=())) == (await applied(pool, file))

    await add_tenant(pool)
    await fetch(pool, "UPDATE tenants SET business_type = 'bakery'")
    case = TenantCase(pool, ("clinic", "main"))
    loaf = {"name": "Rye", "address": {"city": "Ulm"}, "price": "3.20"}
    await case.apply(case.operation("create", "l1", loaf, resource_type="loaves"))
    assert await fetch(pool, "SELECT name, city, price::text FROM bakery_loaves") == [
        {"name": "Rye", "city": "Ulm", "price": "3.20"}
    ]
    row = (await rows_of(pool))["bakery"]
    assert msgspec.json.decode(row["definition"], type=BusinessType) == file.type
    assert (row["digest"], row["is_applied"], row["staff_resource_type"]) == (file.digest, True, "baker")
    views = "SELECT oid, xmin::text FROM pg_class WHERE relname = 'bakery_loaves'"
    before = await fetch(pool, views)
    assert (await applied(pool, file)).changes == {"bakery": TypeChange.CURRENT}
    assert await fetch(pool, views) == before


FILTERED = """
{"name": "bakery", "defaultSettings": {}, "staffResourceType": "baker", "resourceTypes": [
    {"name": "loaf", "date": "baked.at", "filtered": ["baker.name", "baked.at"]}
]}
"""
USED = "SELECT relid::regclass::text AS t, indexrelname AS name, idx_scan FROM pg_stat_user_indexes WHERE idx_scan > 0"


async def test_filtered_members_have_indexes_that_lists_use(pool: ShardPool) -> None:
    plan = await applied(pool, read_type(FILTERED))
    assert len(plan.index_statements) == 2
    assert (await applied(pool, read_type(FILTERED))).index_statements == []
    await add_tenant(pool)
    await fetch(pool, "UPDATE tenants SET business_type = 'bakery'")
    await fetch(pool, FILL_LOAVES)
    case = TenantCase(pool, ("clinic", "main"))
    lists = [
        case.operation("list", None, resource_type="loaf", filters=filters, pagination={"total": True})
        for filters in ({"baker.name": "Ana7"}, {"date": "2026-03-02"}, {"baker.name": {"from": "Ana98"}})
    ]

    assert await case.apply(*lists) == [SUCCEEDED] * 3

    assert [int((await case.result(one))["total"]) for one in lists] == [300, 100, 600]
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        used = {row["name"] for row in await connection.fetch(USED)}
    assert len([name for name in used if name.startswith(INDEX_PREFIX)]) == 2
    without = read_type(FILTERED.replace('"baker.name", "baked.at"', '"baker.name"'))
    assert [text.split()[0] for text in (await applied(pool, without)).index_statements] == ["DROP"]
    assert len(await fetch(pool, "SELECT FROM pg_class WHERE starts_with(relname, $1)", INDEX_PREFIX)) == 1


# Of 100 bakers, on 300 days.
FILL_LOAVES = """
INSERT INTO resources
SELECT
    'clinic-main', 'bakery', 'loaf', 'l' || number,
    jsonb_build_object(
        'baker', jsonb_build_object('name', 'Ana' || number % 100),
        'baked', jsonb_build_object('at', (date '2026-03-02' + number % 300)::text)
    ),
    now(), now()
FROM generate_series(0, 29999) AS number
"""


async def test_view_that_gets_a_column_keeps_its_readers(pool: ShardPool) -> None:
    role = f"reader_of_loaves_{next(_numbers)}"
    await applied(pool, file_of("bakery", NAME))
    await fetch(pool, f"CREATE ROLE {role}")
    await fetch(pool, f"GRANT SELECT ON bakery_loaves TO {role}")
    state = "SELECT oid, relacl, reloptions FROM pg_class WHERE relname = 'bakery_loaves'"
    before = await fetch(pool, state)

    plan = await applied(pool, file_of("bakery", NAME, PRICE))
    refused = await applied(pool, file_of("bakery", PRICE, NAME), file_of("deli", NAME, view="deli_hams"))

    assert (plan.changes, plan.refusals) == ({"bakery": TypeChange.CHANGED}, [])
    assert await fetch(pool, state) == before
    assert len(refused.refusals) == 1
    assert (await rows_of(pool)).keys() == {"bakery"}
    assert await fetch(pool, "SELECT name, price FROM bakery_loaves") == []

    await fetch(pool, f"DROP OWNED BY {role}")
    await fetch(pool, f"DROP ROLE {role}")


async def test_type_is_removed_with_its_views_when_no_tenant_has_it(pool: ShardPool) -> None:
    await applied(pool, file_of("bakery", NAME))
    await add_tenant(pool)
    await fetch(pool, "UPDATE tenants SET business_type = 'bakery'")
    for state in ("incoming", "ready", "active", "fenced", "destroying"):
        await fetch(pool, "UPDATE tenants SET state = $1", state)
        assert len((await applied(pool, remove=("bakery",))).refusals) == 1
    assert (await rows_of(pool)).keys() == {"bakery"}

    for state in ("moved", "destroyed"):
        await fetch(pool, "UPDATE tenants SET state = $1", state)
        assert (await applied(pool, remove=("bakery",))).changes == {"bakery": TypeChange.REMOVED}
        assert await rows_of(pool) == {}
        assert await fetch(pool, "SELECT to_regclass('bakery_loaves') AS name") == [{"name": None}]
        await applied(pool, file_of("bakery", NAME))
