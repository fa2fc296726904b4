from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from support.postgres.databases import PoolMaker
from support.postgres.log_rows import LOG_TABLES
from support.postgres.tenant_cases import TenantCase, add_tenant, failed, fetch, operation, writer_of
from support.requires import ROOT

from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


PAGE = ROOT / "docs" / "reading.md"
TENANTS = (("clinic", "main"), ("smile", "center"))
DATA = {
    ("clinic-main", "appointment", "a1"): """
        {"patientName": "Ana", "appointmentTime": "2026-03-02T10:30:00+01:00", "durationMinutes": 30}""",
    ("clinic-main", "appointment", "a2"): """
        {"patientName": "Ana", "appointmentTime": "tomorrow", "durationMinutes": "long"}""",
    ("clinic-main", "settings", "default"): "{}",
    ("smile-center", "patient", "p1"): '{"name": "Ben"}',
    ("smile-center", "patient", "p2"): '{"name": "Cleo"}',
}
TABLES = "resources, operations, tenants, transfers, stream_positions, rejections, dental_patients"

RoleMaker = Callable[..., Awaitable[str]]  # (*statements with {role}) -> the role's connection string

_numbers = itertools.count(1)


def url_as(role: str, address: ShardAddress) -> str:
    parts = urlsplit(address.connection_string)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}"))


@pytest.fixture
async def shard(shard: ShardPool) -> ShardPool:
    """Give a shard with the two tenants of the page, and an operation and a journal row of each."""
    first = operation("create", "p1", {"name": "Ana"}, tenant=TENANTS[0], request_id="make-ana")
    for tenant, one in zip(TENANTS, (first, operation("read", "nobody", tenant=TENANTS[1])), strict=True):
        await add_tenant(shard, tenant)
        await writer_of(shard).apply([one])
        rejection = "INSERT INTO rejections VALUES ($1, 'r', 'too_large', 'e', 'q', 's', '1', NULL, now())"
        await fetch(shard, rejection, "-".join(tenant))
        journal = "INSERT INTO transfers VALUES ($1, 'departure', 'elsewhere', '1', 'open')"
        await fetch(shard, journal, "-".join(tenant))
    for key, data in DATA.items():
        await fetch(
            shard,
            'INSERT INTO resources (id, "resourceName", "resourceId", data, "businessType", date, "lastUpdated")'
            " VALUES ($1, $2, $3, $4::text::jsonb, 'dental', now(), now())",
            *key,
            data,
        )
    return shard


@pytest.fixture
async def make_role(shard: ShardPool) -> AsyncIterator[RoleMaker]:
    made: list[str] = []

    async def make(*statements: str) -> str:
        role = f"role_{next(_numbers)}"
        await fetch(shard, f"CREATE ROLE {role} LOGIN")
        made.append(role)
        for statement in statements:
            await fetch(shard, statement.format(role=role))
        return url_as(role, shard.address)

    yield make
    await drop_roles(shard, made)


async def drop_roles(shard: ShardPool, roles: Sequence[str]) -> None:
    for role in roles:
        await fetch(shard, f"DROP OWNED BY {role}")
        await fetch(shard, f"DROP ROLE {role}")


async def seen(url: str, query: str, *, tenant: str | None = None) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        if tenant is not None:
            await connection.execute("SELECT set_config('simplu.tenant', $1, false)", tenant)
        return sorted(row[0] for row in await connection.fetch(query))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT id FROM resources", ["clinic-main"] * 4),
        ("SELECT id FROM resources WHERE id = 'smile-center'", []),
        ("SELECT id FROM resources WHERE id = 'smile-center' OR true", ["clinic-main"] * 4),
        ("SELECT tenant_id FROM operations", ["clinic-main"]),
        ("SELECT id FROM tenants", ["clinic-main"]),
        ("SELECT id FROM dental_patients", ["clinic-main"]),
        ("SELECT other.id FROM tenants JOIN resources AS other ON other.id <> tenants.id", []),
        ("SELECT tenant_id FROM transfers", []),
        ("SELECT stream FROM stream_positions", []),
        ("SELECT tenant_id FROM rejections", []),
    ],
)
async def test_reader_sees_one_tenant_when_it_names_that(
    shard: ShardPool, make_role: RoleMaker, query: str, expected: list[str]
) -> None:
    reader = await make_role(f"GRANT SELECT ON {TABLES} TO {{role}}")

    assert await seen(reader, query, tenant="clinic-main") == expected
    assert await seen(reader, query, tenant="") == []
    assert await seen(reader, query) == []


async def test_reader_sees_nothing_of_the_log_but_its_view(shard: ShardPool, make_role: RoleMaker) -> None:
    reader = await make_role("GRANT SELECT ON operations TO {role}")
    misled = await make_role(f"GRANT SELECT ON operations, {', '.join(LOG_TABLES)} TO {{role}}")

    for table in LOG_TABLES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await seen(reader, f"SELECT FROM {table}", tenant="clinic-main")
        assert await seen(misled, f"SELECT 1 FROM {table}", tenant="clinic-main") == []
    for one in (reader, misled):
        assert await seen(one, "SELECT tenant_id FROM operations", tenant="clinic-main") == ["clinic-main"]


async def test_every_table_and_view_with_tenants_rows_is_bounded(shard: ShardPool) -> None:
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    views = "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
    async with shard.connection() as connection:
        is_old = connection.get_server_version().major < 15

    open_tables = {row["relname"] for row in await fetch(shard, f"{tables} AND NOT relrowsecurity")}
    closed_tables = {row["relname"] for row in await fetch(shard, tables)} - open_tables
    policies = "SELECT tablename, coalesce(qual, '') AS qual FROM pg_policies WHERE policyname = $1"
    writers = {row["tablename"]: row["qual"] for row in await fetch(shard, policies, "simplu_writer")}
    readers = {row["tablename"]: row["qual"] for row in await fetch(shard, policies, "simplu_reader")}
    barriers = await fetch(shard, f"{views} AND 'security_barrier=true' = ANY(reloptions)")
    open_views = await fetch(shard, f"{views} AND NOT coalesce('security_invoker=true' = ANY(reloptions), false)")

    assert open_tables == {"business_types", "schema_migrations", "shard_meta", "history_names", "history_types"}
    assert writers.keys() == closed_tables
    assert all(f"has_table_privilege(('{table}'::regclass)" in qual for table, qual in writers.items()), writers
    assert readers == dict.fromkeys(("resources", "tenants"), "(id = current_setting('simplu.tenant'::text, true))")
    with_conditions = {"operations", "resource_histories", "resource_history"}  # of their own
    assert {row["relname"] for row in barriers} == with_conditions
    assert open_views == barriers or is_old


async def test_worker_does_all_when_it_owns_no_table(
    shard: ShardPool, make_role: RoleMaker, make_pool: PoolMaker
) -> None:
    url = await make_role("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    pool = await make_pool(ShardAddress(shard.address.shard_id, url))

    for ids, others in zip(TENANTS, ([], ["p2"]), strict=True):
        tenant = TenantCase(pool, ids)
        listing = tenant.operation("list", None, resource_type="patient")
        outcomes = await tenant.apply(
            tenant.operation("create", "p9", {"a": 1}),
            tenant.operation("create", "p1", {}),
            tenant.operation("patch", "p9", {"b": 2}),
            tenant.operation("delete", "p1"),
            listing,
        )

        assert outcomes == [SUCCEEDED, failed(Failure.ALREADY_EXISTS), *[SUCCEEDED] * 3]
        assert [item["resourceId"] for item in (await tenant.result(listing))["items"]] == [*others, "p9"]
    assert await seen(url, "SELECT tenant_id FROM transfers") == ["clinic-main", "smile-center"]


def as_table(rows: Sequence[asyncpg.Record]) -> str:
    texts = [["" if value is None else str(value) for value in row.values()] for row in rows]
    names = list(rows[0].keys())
    widths = [max(len(text) for text in column) for column in zip(names, *texts, strict=True)]
    lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in [names, *texts]]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


async def run(connection: asyncpg.Connection[Any], block: str) -> str:
    shown = ""
    for statement in filter(None, map(str.strip, block.split(";"))):
        if statement.startswith("SELECT"):
            shown = as_table(await connection.fetch(statement))
        else:
            await connection.execute(statement)
    return shown


async def test_page_for_readers_is_true(shard: ShardPool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```sql\n-- as (\w+)\n(.*?)^```\n(?:\n```text\n(.*?)\n```)?", page)
    roles = {role for _, block, _ in blocks for role in re.findall(r"CREATE ROLE (\w+)", block)}
    try:
        for role, block, expected in blocks:
            connection = await asyncpg.connect(url_as(role, shard.address))
            try:
                assert await run(connection, block) == expected
            finally:
                await connection.close()
    finally:
        await drop_roles(shard, sorted(roles))

    assert len(blocks) == page.count("```sql") >= 10
    assert roles == {"clinic_site", "main_reports", "reporting"}
