from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from support.clocks import APART, CLOCKS_APART
from support.postgres.databases import PoolMaker, ShardMaker, copy_shard, execute, make_template
from support.postgres.dumps import TAKE_NUMBERS, dumped
from support.postgres.standby_pair import require_postgres
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch, operation, writer_of
from support.postgres.upgrades import MADE_UP, NEXT, upgrade_pool

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.health.assessment import ShardProbe
from simplu_worker.shards.health.prober import inspect_shard, probe_shard
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.shard_query import fetch_from_shard
from simplu_worker.shards.schema.migrations import ShardSchema, tables_of
from simplu_worker.shards.schema.schema_check import (
    BUSINESS_TYPES,
    MIGRATIONS,
    SCHEMA_VERSION,
    check_schema,
    ensure_schema,
    make_schema,
    raise_numbers,
)
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.clock import UtcClock

pytestmark = pytest.mark.slow


STRANGER = "schema_stranger"


async def version_of(pool: ShardPool) -> int | None:
    async with pool.connection() as connection:
        schema = await check_schema(connection, pool.address.shard_id)
    return None if schema is None else schema.version


async def test_ensure_schema_makes_everything_in_an_empty_database(make_shard: ShardMaker) -> None:
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(await make_shard("shard-7", is_empty=True))

        assert await version_of(pool) is None
        await ensure_schema(pool)

        assert await version_of(pool) is not None
        assert await fetch(pool, "SELECT shard_id FROM shard_meta") == [{"shard_id": "shard-7"}]
        versions = [row["version"] for row in await fetch(pool, "SELECT version FROM schema_migrations ORDER BY 1")]
        assert versions == [migration.version for migration in MIGRATIONS]
        rows = await fetch(pool, "SELECT name, digest FROM business_types")
        types = {row["name"] for row in rows}
        assert {row["name"]: row["digest"] for row in rows} == {
            name: file.digest for name, file in BUSINESS_TYPES.items()
        }
        views = {row["viewname"].partition("_")[0] for row in await fetch(pool, "SELECT viewname FROM pg_views")}
        assert types <= views


async def test_ensure_schema_changes_nothing_when_it_is_there(shard: ShardPool) -> None:
    before = await fetch(shard, "SELECT oid FROM pg_class ORDER BY oid")

    await ensure_schema(shard)

    assert await fetch(shard, "SELECT oid FROM pg_class ORDER BY oid") == before


async def test_ensure_schema_makes_it_once_when_many_do_it_at_once(
    make_shard: ShardMaker, make_pool: PoolMaker
) -> None:
    address = await make_shard("shard-7", is_empty=True)
    replicas = [await make_pool(address, size=1, lock_s=60.0, statement_s=60.0) for _ in range(5)]

    async with asyncio.TaskGroup() as tasks:
        for replica in replicas:
            tasks.create_task(ensure_schema(replica))

    assert await fetch(replicas[0], "SELECT count(*) FROM schema_migrations") == [{"count": len(MIGRATIONS)}]


async def test_check_schema_refuses_another_shards_database(make_shard: ShardMaker) -> None:
    address = await make_shard("shard-2")
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(ShardAddress("shard-1", address.connection_string))

        with pytest.raises(ShardUnavailableError, match=r"shard shard-1: .* the database of shard shard-2"):
            await version_of(pool)
        with pytest.raises(ShardUnavailableError, match=r"shard shard-1: .* the database of shard shard-2"):
            await ensure_schema(pool)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE resources (id int)",
        "CREATE VIEW resources AS SELECT 1",
        "CREATE SEQUENCE ids",
        "CREATE TABLE schema_migrations (version text)",  # many frameworks have a table of that name
    ],
)
async def test_check_schema_refuses_another_programs_tables(make_shard: ShardMaker, statement: str) -> None:
    async with Pools(size=1) as pools:
        pool = pools.ensure_pool(await make_shard("shard-7", is_empty=True))
        await fetch(pool, statement)

        with pytest.raises(ShardUnavailableError, match="another program's tables"):
            await ensure_schema(pool)


@pytest.mark.parametrize("version", [SCHEMA_VERSION, NEXT])
async def test_all_tables_and_their_keys_are_checked(make_shard: ShardMaker, version: int) -> None:
    migrations = [*MIGRATIONS, MADE_UP][:version]
    async with upgrade_pool(await make_shard("shard-7", is_empty=True)) as pool:
        async with pool.transaction() as connection:
            await make_schema(connection, "shard-7", migrations=migrations)
            assert await check_schema(connection, "shard-7", migrations=migrations) is not None
        made = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        rows = await fetch(pool, made)

    assert sorted(tables_of(ShardSchema(version), migrations)) == sorted(row["relname"] for row in rows)


async def test_check_schema_names_what_is_missing(shard: ShardPool) -> None:
    await execute(shard.address.connection_string, "DROP TABLE rejections, feed_refusals")
    with pytest.raises(ShardUnavailableError, match="without the table feed_refusals, the table rejections; re"):
        await version_of(shard)


NO_KEY = "ALTER TABLE log_rows DROP CONSTRAINT log_rows_pkey"
KEY = "ALTER TABLE log_rows ADD CONSTRAINT log_rows_pkey PRIMARY KEY (tenant_no, request)"


@pytest.mark.parametrize(
    "statements",
    [
        [NO_KEY],
        [NO_KEY, f"{KEY} DEFERRABLE"],
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'log_rows_pkey'::regclass"],
    ],
)
async def test_shard_is_held_until_its_key_is_remade(shard: ShardPool, statements: list[str]) -> None:
    assert await probe_refusal(shard) is None
    for statement in statements:
        await fetch(shard, statement)

    refusal = await probe_refusal(shard)

    assert "may be applied twice: the primary key of log_rows. As" in (refusal or "")
    assert shard.refusal == refusal
    await execute(
        shard.address.connection_string, f"ALTER TABLE log_rows DROP CONSTRAINT IF EXISTS log_rows_pkey; {KEY}"
    )
    assert await probe_refusal(shard) is None


async def test_first_use_after_an_error_checks_the_shard_again(shard: ShardPool) -> None:
    assert await fetch_from_shard(shard, QUERIES["list_tenants"]) == []
    await fetch(shard, NO_KEY)
    with pytest.raises(ShardUnavailableError):
        await fetch(shard, "SELECT 1 FROM pg_no_such_table")

    with pytest.raises(ShardUnavailableError, match="key of log_rows"):
        await fetch_from_shard(shard, QUERIES["list_tenants"])


ONLY = "CREATE POLICY only_main ON resources AS RESTRICTIVE"
BY_TENANT = "USING (id = 'clinic-main')"
WRITER_IS_GONE = "DROP POLICY simplu_writer ON resources"


@pytest.mark.parametrize(
    ("statement", "policy"),
    [
        (f"{ONLY} {BY_TENANT}", "only_main"),
        (f"{ONLY} FOR SELECT {BY_TENANT}", "only_main"),
        (f"{ONLY} FOR DELETE TO {STRANGER} {BY_TENANT}", "only_main"),
        (WRITER_IS_GONE, "simplu_writer"),
        (f"{ONLY} FOR SELECT TO pg_monitor {BY_TENANT}", None),
        (f"{ONLY} FOR INSERT WITH CHECK (id = 'clinic-main')", None),  # its error is loud
        (f"ALTER ROLE {STRANGER} BYPASSRLS; {ONLY} {BY_TENANT}", None),
        (f"ALTER TABLE resources DISABLE ROW LEVEL SECURITY; {ONLY} {BY_TENANT}", None),
    ],
)
async def test_shard_is_held_when_a_policy_may_hide_rows(shard: ShardPool, statement: str, policy: str | None) -> None:
    url = shard.address.connection_string
    await execute(
        url,
        f"CREATE ROLE {STRANGER} LOGIN;"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {STRANGER}",
    )
    other = ShardAddress(shard.address.shard_id, f"postgresql://{STRANGER}@{url.rpartition('@')[2]}")
    try:
        async with Pools(size=1) as pools:
            assert await probe_refusal(pools.ensure_pool(other)) is None
            await execute(url, statement)

            refusal = await probe_refusal(pools.ensure_pool(other))

            expected = None if policy is None else f"missing: {policy} of the table resources. As"
            assert refusal == expected or (expected or "None") in (refusal or "")
            assert await probe_refusal(shard) is None
    finally:
        await execute(url, f"DROP OWNED BY {STRANGER}; DROP ROLE {STRANGER}")


async def probe_refusal(pool: ShardPool) -> str | None:
    probe = await inspect_shard(pool)
    assert isinstance(probe, ShardProbe)
    return probe.refusal


async def test_shard_is_refused_until_the_role_has_the_rights(shard: ShardPool) -> None:
    url = shard.address.connection_string
    await execute(
        url,
        f"CREATE ROLE {STRANGER} LOGIN;"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {STRANGER};"
        f" REVOKE INSERT, UPDATE, DELETE ON schema_migrations, shard_meta, business_types FROM {STRANGER};"
        f" REVOKE DELETE ON rejections FROM {STRANGER}; REVOKE SELECT ON business_types FROM {STRANGER}",
    )
    async with Pools(size=2) as pools:
        pool = pools.ensure_pool(
            ShardAddress(shard.address.shard_id, f"postgresql://{STRANGER}@{url.rpartition('@')[2]}")
        )
        try:
            refused = "got one without the right to SELECT on business_types, the right to DELETE on rejections; as the"
            with pytest.raises(ShardUnavailableError, match=refused):
                await fetch_from_shard(pool, QUERIES["list_tenants"])
            assert refused in (await probe_refusal(pool) or "")
            with pytest.raises(ShardUnavailableError, match=refused):
                await writer_of(pool).apply([operation("create", data={})])

            await execute(
                url, f"GRANT SELECT ON business_types TO {STRANGER}; GRANT DELETE ON rejections TO {STRANGER}"
            )
            assert await probe_refusal(pool) is None
            assert await fetch_from_shard(pool, QUERIES["list_tenants"]) == []

            await execute(url, f"REVOKE SELECT ON shard_meta FROM {STRANGER}")
            with pytest.raises(ShardUnavailableError, match="may not read shard_meta in the schema public"):
                async with ShardPool(pool.address, size=1).fresh_connection():
                    pass
        finally:
            await execute(url, f"DROP OWNED BY {STRANGER}; DROP ROLE {STRANGER}")


@pytest.mark.parametrize("clock", CLOCKS_APART.values(), ids=CLOCKS_APART)
async def test_shard_is_held_while_the_clocks_are_apart(shard: ShardPool, clock: UtcClock) -> None:
    right, shard.clock = shard.clock, clock
    writer = writer_of(shard)
    with pytest.raises(ShardUnavailableError, match=APART):
        await writer.apply([operation("create", "r1", {})])
    assert APART in ((await probe_shard(shard)).refusal or "")
    shard.clock = right
    assert await writer.apply([operation("create", "r1", {})]) == [HOLD]  # no tenant is there
    assert (await probe_shard(shard)).refusal is None


OTHER = ("clinic", "north")


@pytest.fixture(scope="module")
def old_server() -> Iterator[PostgresServer]:
    require_postgres()
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="old")
        asyncio.run(_set_up(server))
        yield server


async def _set_up(server: PostgresServer) -> None:
    await server.start()
    await execute(server.url, "ALTER SYSTEM SET wal_level = logical")
    await server.stop()
    await server.start()
    await make_template(server)
    await execute(server.url, TAKE_NUMBERS)


@asynccontextmanager
async def new_server() -> AsyncIterator[PostgresServer]:
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="new")
        await server.start()
        yield server
        await server.stop()


async def replicated(old: str, new: str) -> None:
    await dumped(old, new, "--schema-only")
    await execute(old, "CREATE PUBLICATION everything FOR ALL TABLES")
    await execute(new, f"CREATE SUBSCRIPTION everything CONNECTION '{old}' PUBLICATION everything")
    connection = await asyncpg.connect(new)

    async def is_copied() -> bool:
        return not await connection.fetch("SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r'")

    assert await poll_until(is_copied, within_s=60)
    await connection.close()
    await execute(new, "DROP SUBSCRIPTION everything")


@pytest.mark.slow(8)
@pytest.mark.parametrize("bring", [dumped, replicated])
async def test_shard_is_held_until_its_numbers_are_raised(old_server: PostgresServer, bring: object) -> None:
    old = await copy_shard(old_server)
    pool = ShardPool(old, size=2)
    await add_tenant(pool)
    case = TenantCase(pool, TENANT)
    before = [case.operation("create", f"r{number}", {}) for number in range(3)]
    assert await case.apply_each(*before) == [SUCCEEDED] * 3
    resources = await case.resources()
    ((newest,),) = [row.values() for row in await fetch(pool, "SELECT max(batch_id) FROM log_batches")]
    await pool.close()

    async with new_server() as server:
        url = await server.create_database("shard", template="template0")
        assert callable(bring)
        await bring(old.connection_string, url)
        moved = ShardPool(ShardAddress(old.shard_id, url), size=2)
        case = TenantCase(moved, TENANT)
        after = case.operation("create", "after", {})
        for _ in range(2):
            with pytest.raises(ShardUnavailableError, match="shards raise-numbers shard-1 --apply"):
                await case.apply(*before, after)
        assert await case.resources() == resources

        assert (await raise_numbers(moved, apply=False)).is_behind
        assert (await raise_numbers(moved, apply=True)).is_behind
        assert not (await raise_numbers(moved, apply=True)).is_behind

        assert await case.apply(*before, after) == [*[DUPLICATE] * 3, SUCCEEDED]
        await add_tenant(moved, OTHER)
        assert await TenantCase(moved, OTHER).apply(after) != [SUCCEEDED]  # of another tenant
        rows = await fetch(moved, "SELECT request_id FROM operations WHERE batch_id > $1", newest)
        assert [row["request_id"] for row in rows] == [after.request_id]
        await moved.close()
