from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.databases import PoolMaker
from support.postgres.sql_text import views_of
from support.postgres.tenant_cases import NO_CHECKS, TenantCase, add_tenant, fetch

from simplu_worker.operations.business_types import BusinessType
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES
from simplu_worker.shards.schema.type_files import INDEX_PREFIX, TypeChange, TypeFile, TypesPlan, read_type
from simplu_worker.shards.schema.upgrade import CONNECTIONS, Upgrader, plan_on

VIEWS = {name: views_of(file) for name, file in BUSINESS_TYPES.items()}
VIEW_CASES = [pytest.param(name, *view, id=view[0]) for name, views in VIEWS.items() for view in views]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
    | st.from_regex(
        r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?)?(Z|[+-][0-9:]{2,6})?\Z"
    )
    | st.from_regex(r"\A[+-]?[0-9]{1,30}([.][0-9]{1,5})?([eE][+-]?[0-9]{1,4})?\Z")
    | st.sampled_from(
        ["now", "infinity", "NaN", "2026-02-30", "2024-02-29", "0000-01-01", "true", "٣", "1_000", "0x1F"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=3,
)
CASTS = """
SELECT simplu_timestamptz($1::text::jsonb), simplu_numeric($1::text::jsonb),
    simplu_integer($1::text::jsonb), simplu_boolean($1::text::jsonb)
"""

_numbers = itertools.count(1)


@asynccontextmanager
async def transaction_undone(pool: ShardPool) -> AsyncIterator[Connection]:
    async with pool.connection() as connection:
        await connection.execute("BEGIN")
        try:
            yield connection
        finally:
            await connection.execute("ROLLBACK")


@pytest.mark.parametrize(("name", "view", "singular", "plural"), VIEW_CASES)
async def test_view_shows_its_resources_with_types_and_no_others(
    tenant: TenantCase, name: str, view: str, singular: str, plural: str
) -> None:
    await fetch(tenant.pool, "UPDATE tenants SET business_type = $2 WHERE id = $1", tenant.tenant_id, name)
    await tenant.apply(
        tenant.operation("create", "a", {}, resource_type=singular),
        tenant.operation("create", "b", {}, resource_type=plural),
        tenant.operation("create", "c", {}, resource_type="other"),
    )

    async with tenant.pool.connection() as connection:
        columns = {
            column.name: column.type.name
            for column in (await connection.prepare(f"SELECT * FROM {view}")).get_attributes()
        }
    tenant_column, id_column, *base = list(columns)[:5]
    query = f'SELECT * FROM {view} WHERE {tenant_column} = $1 ORDER BY "{id_column}"'
    rows = await fetch(tenant.pool, query, tenant.tenant_id)

    assert [row[id_column] for row in rows] == ["a", "b"]
    assert base == ["data", "date", "lastUpdated"]
    assert set(list(columns.values())[5:]) <= {"text", "timestamptz", "numeric", "int8", "bool"}
    assert all(value is None for row in rows for value in list(row.values())[5:])
    other = next(one for one in VIEWS if one != name)
    await fetch(tenant.pool, 'UPDATE resources SET "businessType" = $2 WHERE id = $1', tenant.tenant_id, other)
    assert await fetch(tenant.pool, query, tenant.tenant_id) == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('"2026-03-02T10:30:00.123456Z"', [datetime(2026, 3, 2, 10, 30, 0, 123456, UTC), None, None, None]),
        ('"2026-03-02 10:30"', [datetime(2026, 3, 2, 10, 30, tzinfo=UTC), None, None, None]),
        ('"2026-03-02T10:30:00-0530"', [datetime(2026, 3, 2, 16, tzinfo=UTC), None, None, None]),
        ('"2024-02-29"', [datetime(2024, 2, 29, tzinfo=UTC), None, None, None]),
        ('"2026-02-29"', [None] * 4),
        ('"2026-04-31T00:00"', [None] * 4),
        ('"2026-03-02T24:00"', [None] * 4),
        ('"2026-03-02T10:30+15:00"', [None] * 4),
        ('"0000-01-01"', [None] * 4),
        ('"0001-01-01T00:00+14:00"', [datetime(1, 1, 2, tzinfo=UTC), None, None, None]),
        ('"9999-12-31T23:59:59Z"', [datetime(9999, 12, 31, tzinfo=UTC), None, None, None]),
        ('"9999-12-31T23:59:59.999999999-10"', [datetime(9999, 12, 31, tzinfo=UTC), None, None, None]),
        ('"now"', [None] * 4),
        ('"infinity"', [None] * 4),
        ("1.50", [None, Decimal("1.50"), None, None]),
        ("15e-1", [None, Decimal("1.5"), None, None]),
        ('"1.5"', [None, Decimal("1.5"), None, None]),
        ("1.0", [None, Decimal("1.0"), 1, None]),
        ('"-7"', [None, Decimal(-7), -7, None]),
        (str(2**63), [None, Decimal(2**63), None, None]),
        (f'"{10**40}"', [None, Decimal(10**40), None, None]),
        ('"1e9999"', [None] * 4),
        ('"NaN"', [None] * 4),
        ('" 1"', [None] * 4),
        ("true", [None, None, None, True]),
        ('"false"', [None, None, None, False]),
        ('"yes"', [None] * 4),
        ("null", [None] * 4),
        ("[1]", [None] * 4),
        ('{"a": "2026-03-02"}', [None] * 4),
    ],
)
async def test_value_is_null_when_it_is_not_of_the_type(tenant: TenantCase, document: str, expected: list[Any]) -> None:
    async with transaction_undone(tenant.pool) as connection:
        await connection.execute("SET LOCAL timezone = 'Asia/Kolkata'; SET LOCAL datestyle = 'SQL, DMY'")
        row = await connection.fetchrow(CASTS, document)

    assert list(row or ()) == expected


@pytest.mark.slow(0.4)
@settings(max_examples=30, suppress_health_check=NO_CHECKS)
@given(values=st.lists(JSON_VALUES, min_size=1, max_size=40))
async def test_views_never_fail_whatever_the_documents_hold(tenant: TenantCase, values: list[Any]) -> None:
    members = {
        member
        for file in BUSINESS_TYPES.values()
        for resource in file.type.resource_types
        for column in resource.columns
        for member in column.path
    }
    documents = [json.dumps(dict.fromkeys(members, value)) for value in values]
    async with transaction_undone(tenant.pool) as connection:
        for name, views in VIEWS.items():
            for view, singular, _ in views:
                await connection.execute("DELETE FROM resources WHERE id = $1", tenant.tenant_id)
                await connection.execute(
                    "INSERT INTO resources SELECT $1, $2, $3, place::text, document::jsonb, now(), now()"
                    " FROM unnest($4::text[]) WITH ORDINALITY AS sent (document, place)",
                    tenant.tenant_id,
                    name,
                    singular,
                    documents,
                )
                own = BUSINESS_TYPES[name].views[view].tenant_column
                rows = await connection.fetch(f"SELECT * FROM {view} WHERE {own} = $1", tenant.tenant_id)
                assert len(rows) == len(values)


NAME = {"name": "name", "path": ["name"]}
CITY = {"name": "city", "path": ["address", "city"]}
PRICE = {"name": "price", "path": ["price"], "type": "number"}


def file_of(name: str = "bakery", *columns: dict[str, Any], view: str = "bakery_loaves") -> TypeFile:
    resources = [{"name": "loaf", "alsoNamed": ["loaves"], "view": view, "columns": columns}]
    members = {"name": name, "defaultSettings": {"n": 1}, "staffResourceType": "baker", "resourceTypes": resources}
    return read_type(json.dumps(members))


@pytest.fixture
async def pool(make_pool: PoolMaker) -> ShardPool:
    return await make_pool(size=CONNECTIONS, lock_s=0.5)


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
