from __future__ import annotations

import itertools
import json
import random
import re
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from support.postgres.databases import PoolMaker, copy_shard, stop_autovacuum
from support.postgres.sql_text import views_of
from support.postgres.tenant_cases import TenantCase, add_tenant, fetch, writer_of
from support.requires import ROOT

from simplu_local.postgres.server import PostgresServer
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.wave_run import RESULT_MAX_BYTES
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.log import id_of_key, key_of_id
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, SEPARATOR
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES

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
async def filled(filled_address: Callable[[], Awaitable[ShardAddress]], make_pool: PoolMaker) -> ShardPool:
    return await make_pool(await filled_address(), size=1)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "grown"),
    [
        pytest.param(0, 0, id="nothing is known"),
        pytest.param(100, 0, id="small, and known"),
        pytest.param(100, 20_000, id="small when last looked at"),  # one row for each tenant
    ],
)
async def test_waves_read_by_keys_whatever_the_statistics_are(shard: ShardPool, known: int, grown: int) -> None:
    plans = {}
    async with shard.connection() as connection:
        if known:
            await connection.execute(GROWING, "other-", True, known)
            await connection.execute("ANALYZE resources")
        await connection.execute(GROWING, "large", False, grown)
    async with shard.transaction(budget=StatementBudget.BATCH) as connection:
        for query in [name for name in QUERIES if name.startswith("apply_")]:
            await connection.execute(f"PREPARE wave AS {QUERIES[query]}")
            count = len(set(re.findall(r"\$\d+", QUERIES[query])))
            rows = await connection.fetch(f"EXPLAIN EXECUTE wave ({', '.join(['NULL'] * count)})")
            await connection.execute("DEALLOCATE wave")
            plans[query] = [row[0] for row in rows]

    for query, plan in plans.items():
        assert not [line for line in plan if "Seq Scan on resources" in line], query
        by_day = [after for line, after in itertools.pairwise(plan) if "resources_by_day" in line]
        assert all("date >= " in condition for condition in by_day), query


@pytest.mark.slow
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
async def test_updates_stay_on_their_page_with_all_our_indexes(make_pool: PoolMaker) -> None:
    pool = await make_pool(size=1)
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


UUID: Final = "0123abcd-89ab-cdef-0123-456789abcdef"
ALPHABETS: Final = ("abc-0123", "ABCDEF-0123456789", "é0-", "ж-", "日本", "😀-a", " %_\\'\"\t\n/")
LENGTHS: Final = (1, 2, 5, 15, 16, 17, 32, 35, 36, 37, 100, 256, 300)
PAGE: Final = ROOT / "docs" / "reading.md"
TENANT_ID: Final = "clinic-main"
REQUESTS: Final = ("00000000-0000-4000-8000-00000001e241", "order:123458")
# The view of each role, as docs/reading.md makes them.
VIEW_OF_ROLE: Final = {"postgres": "operations", "clinic_site": "operations", "main_reports": "main_operations"}
ROLES: Final = f"""
CREATE ROLE clinic_site;
GRANT SELECT ON operations TO clinic_site;
CREATE ROLE main_reports;
CREATE VIEW main_operations WITH (security_barrier) AS SELECT * FROM operations WHERE tenant_id = '{TENANT_ID}';
GRANT SELECT ON main_operations TO main_reports
"""


def ids() -> list[str]:
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
    texts = ids()
    keys = [key_of_id(text) for text in texts]
    rows = await fetch(
        shard,
        "SELECT encode(simplu_key(text), 'hex') AS key, simplu_id(decode(key, 'hex')) AS id,"
        " simplu_id('\\x03'::bytea || decode(key, 'hex') || int8send(-7) || int2send(3::smallint)) AS kept_id,"
        " encode('\\x03'::bytea || decode(key, 'hex') || int8send(-7) || int2send(3::smallint), 'hex') AS kept_key"
        " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (text, key, number) ORDER BY number",
        texts,
        keys,
    )

    assert [row["key"] for row in rows] == keys
    assert [row["id"] for row in rows] == texts
    assert [row["kept_id"] for row in rows] == texts
    assert [id_of_key(row["kept_key"]) for row in rows] == texts
    nothing = "SELECT simplu_key(NULL) AS key, simplu_id(NULL) AS id, simplu_id('\\x04ff') AS other"
    assert await fetch(shard, nothing) == [{"key": None, "id": None, "other": None}]


async def test_view_has_the_ids_as_they_were_sent(tenant: TenantCase) -> None:
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


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", ()) for node in nodes(inner))]


def log_scans(plan: str) -> list[dict[str, Any]]:
    return [node for node in nodes(json.loads(plan)[0]["Plan"]) if node.get("Relation Name") == "log_rows"]


async def plans_of(connection: Connection, query: str, request: str) -> list[str]:
    literals = query.replace("$1", f"'{TENANT_ID}'").replace("$2", f"'{request}'")
    await connection.execute(f"SET LOCAL plan_cache_mode = force_generic_plan; PREPARE asked (text, text) AS {query}")
    statements = (
        f"EXPLAIN (FORMAT JSON) {literals}",
        f"EXPLAIN (FORMAT JSON) EXECUTE asked ('{TENANT_ID}', '{request}')",
    )
    plans = [(await connection.fetch(statement))[0][0] for statement in statements]
    await connection.execute("DEALLOCATE asked")
    return plans


async def test_operation_is_found_by_the_key_as_the_page_says(tenant: TenantCase) -> None:
    (paragraph,) = re.findall(r"(?s)\*\*One operation\*\*.*?\n\n", PAGE.read_text(encoding="utf-8"))
    advice = " ".join(paragraph.split())
    (by_key,) = re.findall(r"`(request_key = simplu_key\()'…'\)`", advice)
    assert "`simplu_operation`" in advice
    assert "`CROSS JOIN LATERAL simplu_operation(…)`" in advice
    assert "`request_id` has no index" in advice
    async with tenant.pool.connection() as connection:
        await connection.execute(
            f"BEGIN; {ROLES}; SET LOCAL simplu.tenant = '{TENANT_ID}'; SET LOCAL enable_seqscan = off"
        )
        try:
            await _check_plans(connection, by_key)
        finally:
            await connection.execute("ROLLBACK")


async def _check_plans(connection: Connection, by_key: str) -> None:
    for role, view in VIEW_OF_ROLE.items():
        await connection.execute(f"SET LOCAL ROLE {role}")
        fast = [f"SELECT * FROM {view} WHERE tenant_id = $1 AND {by_key}$2)"]
        if view == "operations":
            fast.append("SELECT * FROM simplu_operation($1, $2)")
            fast.append("SELECT * FROM unnest(ARRAY[$2, $2]) AS id CROSS JOIN LATERAL simplu_operation($1, id)")
        slow = f"SELECT * FROM {view} WHERE tenant_id = $1 AND request_id = $2"
        for request in REQUESTS:
            for query in fast:
                for plan in await plans_of(connection, query, request):
                    (scan,) = log_scans(plan)
                    assert scan.get("Index Name") == "log_rows_pkey", (role, query)
                    assert {"tenant_no = ", "request = "} <= set(re.findall(r"\w+ = ", scan["Index Cond"])), query
            for plan in await plans_of(connection, slow, request):
                (scan,) = log_scans(plan)
                assert "request" not in scan.get("Index Cond", ""), plan
