from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.postgres.databases import ShardMaker, copy_shard, stop_autovacuum
from support.postgres.sql_text import views_of
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch, writer_of

from simplu_local.postgres.server import PostgresServer
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.wave_run import RESULT_MAX_BYTES
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, SEPARATOR
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES

pytestmark = pytest.mark.slow


VIEWS = {name: views_of(file) for name, file in BUSINESS_TYPES.items() if name != "shop"}  # orders: the restaurant's
COLUMNS = {view: one.base_columns for file in BUSINESS_TYPES.values() for view, one in file.views.items()}
VIEW_CASES = [pytest.param(view[0], id=view[0]) for views in VIEWS.values() for view in views]

DAY = timedelta(days=1)
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
BIG, SMALL = "clinic-big", "clinic-small"
FILL = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT
    tenant, $1, name, 'r' || lpad(number::text, 6, '0'),
    jsonb_build_object('patientId', number % 100, 'name', 'a person', 'status', 'open', 'note', repeat('x', 100)),
    timestamptz '2026-01-01 00:00+00' + (number * 7919 % 365) * interval '1 day', now()
FROM (VALUES ('clinic-big', 5000), ('clinic-small', 300)) AS tenants (tenant, count)
CROSS JOIN unnest($2::text[]) AS names (name)
CROSS JOIN LATERAL generate_series(1, count) AS number
"""
GROWING = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1::text || CASE WHEN $2::bool THEN number::text ELSE '' END, 'gym', 'member', number::text, '{}', now(), now()
FROM generate_series(1, $3::int) AS number
"""
FILL_TENANTS = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
SELECT format('business-%s-%s', number, place), format('business-%s', number), place, 'gym', 'active', now(), now()
FROM generate_series(1, 1000) AS number, unnest(ARRAY['a', 'b', 'c']) AS place
"""


@pytest.fixture(scope="module")
def filled_address(postgres_server: PostgresServer) -> Callable[[], Awaitable[ShardAddress]]:
    made: list[ShardAddress] = []

    async def address() -> ShardAddress:
        if not made:
            made.append(await copy_shard(postgres_server))
            await stop_autovacuum(made[0].connection_string, "resources", "tenants")
            pool = ShardPool(made[0], size=1)
            for tenant in (BIG, SMALL):
                await add_tenant(pool, tuple(tenant.split("-")))  # type: ignore[arg-type]
            for name, views in VIEWS.items():
                await fetch(pool, FILL, name, [view[1] for view in views])
            await fetch(pool, FILL_TENANTS)
            for table in ("resources", "tenants"):
                await fetch(pool, f"VACUUM ANALYZE {table}")
            await pool.close()
        return made[0]

    return address


@pytest.fixture
async def filled(filled_address: Callable[[], Awaitable[ShardAddress]]) -> AsyncIterator[ShardPool]:
    pool = ShardPool(await filled_address(), size=1)
    yield pool
    await pool.close()


async def explained(connection: Connection, query: str, *arguments: Any) -> dict[str, Any]:
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {query}", *arguments)
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def scans(plan: dict[str, Any], table: str = "resources") -> list[tuple[str, int]]:
    """Return by which index *table* was read, "" for none, and how many rows of it were looked at."""
    mine = []
    if plan.get("Relation Name") == table and plan["Actual Loops"] and plan["Node Type"] != "ModifyTable":
        looked_at = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        index = plan.get("Index Name") or (plan["Plans"][0]["Index Name"] if "Plans" in plan else "")
        mine.append((index, int(looked_at)))
    return mine + [scan for inner in plan.get("Plans", ()) for scan in scans(inner, table)]


def days(first: int, count: int) -> tuple[datetime, datetime]:
    return FIRST_DAY + first * DAY, FIRST_DAY + (first + count) * DAY - timedelta(microseconds=1)


LISTS = [
    # tenant, filters, first and last date, page; the index, and the most rows that may be looked at for 100 items
    pytest.param(BIG, "{}", (None, None), 1, "resources_pkey", 101, id="all"),
    pytest.param(BIG, "{}", (None, None), 3, "resources_pkey", 301, id="a later page"),
    pytest.param(BIG, '{"status": "open"}', (None, None), 1, "resources_pkey", 101, id="what most have"),
    pytest.param(BIG, '{"patientId": 7}', (None, None), 1, "resources_pkey", 5000, id="what few have"),
    pytest.param(BIG, "{}", days(59, 1), 1, "resources_by_day", 14, id="a day"),
    pytest.param(SMALL, "{}", days(59, 1), 1, "resources_by_day", 2, id="a day of few"),
    pytest.param(BIG, "{}", days(31, 31), 1, "resources_by_day", 430, id="a month"),
    pytest.param(BIG, '{"patientId": 7}', days(31, 31), 1, "resources_by_day", 430, id="a month, and what few have"),
    pytest.param(BIG, "{}", (FIRST_DAY + 30 * DAY, None), 1, "resources_pkey", 130, id="from a day on"),
    pytest.param(BIG, "{}", (FIRST_DAY, FIRST_DAY + 365 * DAY), 1, "resources_pkey", 101, id="a year"),
]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(("tenant_id", "filters", "dates", "page", "index", "most"), LISTS)
async def test_list_looks_at_no_more_rows_than_it_must(
    filled: ShardPool,
    mode: str,
    tenant_id: str,
    filters: str,
    dates: tuple[datetime | None, datetime | None],
    page: int,
    index: str,
    most: int,
) -> None:
    async with filled.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        columns = ["0", tenant_id, "list", "appointment", "", "gym", filters.encode(), "2026-01-31T09:00:00Z"]
        made_from, made_to = (date and date.isoformat() for date in dates)
        asked = json.dumps({"page": page, "limit": 100, "madeFrom": made_from, "madeTo": made_to})
        plan = await explained(connection, QUERIES["apply_lists"], SEPARATOR, *columns, asked, RESULT_MAX_BYTES)
        await connection.execute("ROLLBACK")

    ((used, looked_at),) = scans(plan)
    assert (used, looked_at <= most) == (index, True), looked_at


@pytest.mark.parametrize(
    ("known", "grown"),
    [
        pytest.param(0, 0, id="nothing is known"),
        pytest.param(100, 0, id="small, and known"),
        pytest.param(100, 20_000, id="small when last looked at"),  # one row for each tenant
    ],
)
async def test_waves_read_by_keys_whatever_the_statistics_are(make_shard: ShardMaker, known: int, grown: int) -> None:
    pool = ShardPool(await make_shard(), size=1)
    plans = {}
    async with pool.connection() as connection:
        if known:
            await connection.execute(GROWING, "other-", True, known)
            await connection.execute("ANALYZE resources")
        await connection.execute(GROWING, "large", False, grown)
    async with pool.transaction(budget=StatementBudget.BATCH) as connection:
        for query in [name for name in QUERIES if name.startswith("apply_")]:
            await connection.execute(f"PREPARE wave AS {QUERIES[query]}")
            count = len(set(re.findall(r"\$\d+", QUERIES[query])))
            rows = await connection.fetch(f"EXPLAIN EXECUTE wave ({', '.join(['NULL'] * count)})")
            await connection.execute("DEALLOCATE wave")
            plans[query] = [row[0] for row in rows]
    await pool.close()

    for query, plan in plans.items():
        assert not [line for line in plan if "Seq Scan on resources" in line], query
        by_day = [after for line, after in itertools.pairwise(plan) if "resources_by_day" in line]
        assert all("date >= " in condition for condition in by_day), query


@pytest.mark.parametrize("view", VIEW_CASES)
async def test_view_is_read_by_an_index_when_the_tenant_is_named(filled: ShardPool, view: str) -> None:
    tenant, resource_id, *_ = COLUMNS[view]
    by_key = f"SELECT * FROM {view} WHERE {tenant} = $1 AND \"{resource_id}\" = 'r000007'"
    by_day = f"SELECT * FROM {view} WHERE {tenant} = $1 AND date >= $2 AND date < $3 ORDER BY date"
    async with filled.connection() as connection:
        ((key_index, key_rows),) = scans(await explained(connection, by_key, BIG))
        ((day_index, day_rows),) = scans(await explained(connection, by_day, BIG, *days(59, 3)))
        ((all_index, all_rows),) = scans(
            await explained(connection, f"SELECT * FROM {view} WHERE {tenant} = $1", SMALL)
        )

    assert (key_index, key_rows <= 1) == ("resources_pkey", True)
    assert (day_index, day_rows <= 42) == ("resources_by_day", True)
    assert (all_index.startswith("resources_"), all_rows <= 300) == (True, True)


async def updates(pool: ShardPool, batches: list[list[Operation]]) -> tuple[int, int]:
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'resources'"
    (before,) = await fetch(pool, counts)
    writer = writer_of(pool)
    for batch in batches:
        assert await writer.apply(batch) == [SUCCEEDED] * len(batch)
    async with pool.connection() as connection:
        if connection.get_server_version().major >= 15:
            await connection.execute("SELECT pg_stat_force_next_flush()")
    (after,) = await fetch(pool, counts)
    return after["n_tup_upd"] - before["n_tup_upd"], after["n_tup_hot_upd"] - before["n_tup_hot_upd"]


@pytest.mark.slow(0.3)
async def test_updates_stay_on_their_page_with_all_our_indexes(
    make_shard: ShardMaker,
) -> None:
    pool = ShardPool(await make_shard(), size=1)
    await add_tenant(pool)
    case = TenantCase(pool, ("clinic", "main"))
    ids = [f"r{number}" for number in range(300)]
    data = {"name": "someone", "status": "open", "note": "x" * 150}
    await case.apply(*(case.operation("create", one, data, resource_type="appointment") for one in ids))

    def rewritten(times: int) -> list[list[Operation]]:
        return [
            [
                case.operation(
                    kind, one, {**data, "status": kind}, resource_type="appointment", timestamp=f"2026-03-{day}"
                )
                for one in ids[start::20]
            ]
            for day, kind in zip(range(10, 10 + 2 * times), itertools.cycle(["patch", "update"]), strict=False)
            for start in range(20)
        ]

    with_ours = await updates(pool, rewritten(3))
    await fetch(pool, 'CREATE INDEX by_last_updated ON resources ("lastUpdated")')
    with_another = await updates(pool, rewritten(1))

    assert with_ours == (1800, 1800)
    assert with_another == (600, 0)
    await pool.close()
