"""The upgrade of a shard: its effects, and that it may be run again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch
from support.postgres.upgrades import BAKERY, INDEX, MADE_UP, NEXT, indexes, upgrade_pool, upgrader, versions

from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.migrations import STEP
from simplu_worker.shards.schema.schema_check import MIGRATIONS, SCHEMA_VERSION, make_schema
from simplu_worker.shards.schema.type_files import read_type
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS


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
async def test_upgrade_runs_once_when_two_are_started_at_once(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools = [ShardPool(address, size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS) for _ in range(2)]

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(upgrader(pool).run()) for pool in pools]

    results = [one.result() for one in running]
    assert sorted(upgrade.is_needed for upgrade in results if upgrade is not None) == [False, True]
    for pool in pools:
        await pool.close()
