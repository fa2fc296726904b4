from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from support.postgres.databases import PoolMaker, ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch, operation, writer_of
from support.postgres.upgrades import BAKERY, INDEX, MADE_UP, NEXT, Watcher, indexes, upgrade_pool, upgrader, versions

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.health.assessment import ShardProbe
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.migrations import STEP
from simplu_worker.shards.schema.schema_check import MIGRATIONS, SCHEMA_VERSION, make_schema
from simplu_worker.shards.schema.type_files import read_type
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.transfers import QUERIES


async def test_upgrade_does_what_the_shard_lacks_and_records_it(pool: ShardPool) -> None:
    done = await upgrader(pool).run()

    assert done is not None
    assert [migration.version for migration in done.migrations] == [NEXT]
    assert (await versions(pool))[-1] == (NEXT, SCHEMA_VERSION)
    assert await fetch(pool, "SELECT obj_description('tenants_age'::regclass)") == [{"obj_description": "made"}]
    assert [one["is_valid"] for one in await indexes(pool, "tenants_age")] == [True]
    again = await upgrader(pool).run()
    assert again is not None
    assert not again.is_needed


@pytest.mark.slow(0.3)
async def test_upgraded_shard_is_like_one_that_is_made_today(pool: ShardPool, make_shard: ShardMaker) -> None:
    async with upgrade_pool(await make_shard("shard-2", is_empty=True)) as new:
        async with new.transaction() as connection:
            await make_schema(connection, "shard-2", migrations=[*MIGRATIONS, MADE_UP])

        await upgrader(pool).run()

        assert await catalogue(pool) == await catalogue(new)


async def catalogue(pool: ShardPool) -> list[Any]:
    queries = (
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT proname, prosrc, proparallel::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
        "SELECT tablename, policyname, qual FROM pg_policies",
        "SELECT relname, relrowsecurity, reloptions FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        "SELECT version, name, works_from FROM schema_migrations",
        "SELECT name, default_settings::text, digest FROM business_types",
    )
    return [sorted(map(str, await fetch(pool, query))) for query in queries]


async def test_upgrade_applies_files_of_new_and_changed_types(pool: ShardPool) -> None:
    first = await upgrader(pool, types={"bakery": BAKERY}).run()
    second = await upgrader(pool, types={"bakery": BAKERY}).run()
    third = await upgrader(pool, types={"bakery": read_type(f"{BAKERY.text}\n")}).run()

    assert [None if done is None else list(done.business_types) for done in (first, second, third)] == [
        ["bakery"],
        [],
        ["bakery"],
    ]
    assert await fetch(pool, "SELECT staff_resource_type FROM business_types WHERE name = 'bakery'") == [
        {"staff_resource_type": "baker"}
    ]


async def test_upgrade_goes_on_where_it_stopped_when_a_statement_fails(pool: ShardPool) -> None:
    broken = f"{INDEX}{STEP}CREATE TABLE IF NOT EXISTS notes (a int); SELECT 1 / (SELECT count(*) FROM tenants);"

    with pytest.raises(Exception, match=r"22012|shard-1"):
        await upgrader(pool, broken).run()

    assert len(await versions(pool)) == SCHEMA_VERSION
    assert await fetch(pool, "SELECT to_regclass('notes')::text AS name") == [{"name": None}]
    assert [one["is_valid"] for one in await indexes(pool, "tenants_age")] == [True]
    await add_tenant(pool)
    await upgrader(pool, broken).run()
    assert (await versions(pool))[-1] == (NEXT, None)


@pytest.mark.slow
async def test_upgrade_runs_once_when_two_are_started_at_once(pool: ShardPool) -> None:
    async with upgrade_pool(pool.address) as other, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(upgrader(one).run()) for one in (pool, other)]
    results = [one.result() for one in running]
    assert sorted(upgrade.is_needed for upgrade in results if upgrade is not None) == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE tenants ADD COLUMN IF NOT EXISTS note text;",
        "ALTER TABLE tenants ALTER COLUMN moved_to TYPE varchar(100);",
        "ALTER TABLE stream_positions ADD COLUMN IF NOT EXISTS note text;",
    ],
    ids=["new column", "other type", "positions"],
)
@pytest.mark.slow(0.3)
async def test_workers_go_on_when_their_tables_have_changed(pool: ShardPool, make_pool: PoolMaker, text: str) -> None:
    users = await make_pool(pool.address)
    writer = writer_of(users)
    await add_tenant(users)
    for one in (operation("create", data={}), operation("patch", data={}), operation("read"), operation("list", None)):
        await writer.apply([one])

    await upgrader(pool, text).run()
    later = [operation("patch", data={"a": 2}), operation("read"), operation("list", None), operation("delete")]
    outcomes = [outcome for one in later for outcome in await writer.apply([one])]

    assert [outcome.disposition for outcome in outcomes] == [Disposition.APPLIED] * len(later)
    assert users.is_healthy


async def test_worker_holds_a_shard_that_left_its_version_behind(pool: ShardPool, make_pool: PoolMaker) -> None:
    users = await make_pool(pool.address)
    writer = writer_of(users)
    await add_tenant(users)
    await writer.apply([operation("create", data={})])
    await upgrader(pool, "SELECT 1;").run()

    seen = await inspect_shard(users)
    with pytest.raises(ShardUnavailableError, match=f"shard-1: .* run a worker of schema version {NEXT} or newer"):
        await writer.apply([operation("delete")])
    with pytest.raises(ShardUnavailableError, match=f"run a worker of schema version {NEXT} or newer"):
        await writer.probe()
    await fetch(pool, "UPDATE schema_migrations SET works_from = 1 WHERE version = $1", NEXT)
    again = await inspect_shard(users)
    (outcome,) = await writer.apply([operation("delete")])

    assert isinstance(seen, ShardProbe)
    assert seen.refusal is not None
    assert isinstance(again, ShardProbe)
    assert again.refusal is None
    assert outcome.disposition is Disposition.APPLIED


@pytest.mark.parametrize("version", range(max(1, SCHEMA_VERSION - 1), NEXT + 1))
@pytest.mark.slow(0.3)
async def test_every_query_works_on_each_schema_of_a_worker(make_shard: ShardMaker, version: int) -> None:
    async with upgrade_pool(await make_shard("shard-1", is_empty=True)) as pool:
        async with pool.transaction() as connection:
            await make_schema(connection, "shard-1", migrations=[*MIGRATIONS, MADE_UP][:version])
        async with pool.connection() as connection:
            for query in QUERIES.values():
                if "simplu_adoption" not in query:
                    await connection.prepare(query)


@pytest.fixture
async def stranger(pool: ShardPool) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(
        pool.address.connection_string, server_settings={"application_name": "nightly-report"}
    )
    yield connection
    connection.terminate()


@pytest.mark.slow
async def test_upgrade_lets_others_pass_and_names_whom_it_waits_for(
    pool: ShardPool, stranger: asyncpg.Connection[Any]
) -> None:
    watcher = Watcher(lambda doing: bool(doing.waits_for))
    async with asyncio.TaskGroup() as tasks:
        transaction = stranger.transaction()
        await transaction.start()
        await stranger.execute("LOCK TABLE tenants IN ROW SHARE MODE")
        running = tasks.create_task(upgrader(pool, report=watcher).run())
        (blocker,) = (await watcher.wait()).waits_for
        await transaction.rollback()
        done = await running

    assert blocker.startswith(f"pid {stranger.get_server_pid()} (nightly-report, of ")
    assert re.search(r"idle in transaction, for \d+ s\b", blocker)
    assert done is not None
    assert (await versions(pool))[-1] == (NEXT, SCHEMA_VERSION)


@pytest.mark.slow
async def test_upgrade_gives_up_when_a_lock_is_not_to_be_had(
    pool: ShardPool, stranger: asyncpg.Connection[Any]
) -> None:
    # Twice 0.5 s, after which it looks for whom it waits; a slow machine may miss one of these.
    hurried = ShardPool(pool.address, size=CONNECTIONS, timeouts=replace(UPGRADE_TIMEOUTS, lock_s=3.0))
    async with stranger.transaction():
        await stranger.execute("LOCK TABLE tenants IN ROW SHARE MODE")
        with pytest.raises(
            ShardUnavailableError,
            match=r"lock within 0 s, got none for: ALTER TABLE public.tenants .*waits for pid \d+ \(nightly-report",
        ):
            await upgrader(hurried, patience_s=0.0).run()
    await hurried.close()
    assert len(await versions(pool)) == SCHEMA_VERSION


async def test_upgrade_builds_a_half_built_index_anew(pool: ShardPool) -> None:
    for location in ("north", "south"):
        await add_tenant(pool, ("clinic", location))
    unique = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS tenants_age ON tenants (created_at)"
    with contextlib.suppress(Exception):
        await fetch(pool, unique)
    (left,) = await indexes(pool, "tenants_age")
    assert not left["is_valid"]

    await upgrader(pool).run()

    (built,) = await indexes(pool, "tenants_age")
    assert built["is_valid"]
    assert built["oid"] != left["oid"]


@pytest.mark.slow
async def test_upgrade_can_be_cancelled_and_run_again(pool: ShardPool, stranger: asyncpg.Connection[Any]) -> None:
    watcher = Watcher(lambda doing: bool(doing.waits_for))
    snapshot = stranger.transaction(isolation="repeatable_read")
    await snapshot.start()
    await stranger.fetch("SELECT count(*) FROM tenants")
    running = asyncio.create_task(upgrader(pool, report=watcher).run())
    await watcher.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await snapshot.rollback()

    done = await upgrader(pool).run()

    assert done is not None
    assert done.is_needed
    assert [one["is_valid"] for one in await indexes(pool, "tenants_age")] == [True]
