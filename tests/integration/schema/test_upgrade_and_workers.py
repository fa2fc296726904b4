"""Workers beside an upgrade: they go on through it, and hold a shard that it has taken beyond them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch, operation, writer_of
from support.postgres.upgrades import MADE_UP, NEXT, upgrade_pool, upgrader

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.health.assessment import ShardProbe
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.migrations import Migration
from simplu_worker.shards.schema.schema_check import MIGRATIONS, SCHEMA_VERSION, check_schema, make_schema
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.transfers import QUERIES


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
async def test_workers_go_on_when_their_tables_have_changed(pool: ShardPool, text: str) -> None:
    users = ShardPool(pool.address, size=2, timeouts=ShardTimeouts())
    writer = writer_of(users)
    await add_tenant(users)
    for one in (operation("create", data={}), operation("patch", data={}), operation("read"), operation("list", None)):
        await writer.apply([one])

    await upgrader(pool, text).run()
    later = [operation("patch", data={"a": 2}), operation("read"), operation("list", None), operation("delete")]
    outcomes = [outcome for one in later for outcome in await writer.apply([one])]

    assert [outcome.disposition for outcome in outcomes] == [Disposition.APPLIED] * len(later)
    assert users.is_healthy
    await users.close()


async def test_worker_holds_a_shard_that_left_its_version_behind(pool: ShardPool) -> None:
    users = ShardPool(pool.address, size=2)
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
    await users.close()


async def test_two_versions_work_before_and_after_the_upgrade(pool: ShardPool) -> None:
    both = MIGRATIONS, [*MIGRATIONS, MADE_UP]
    before = [await version_for(pool, migrations) for migrations in both]

    await upgrader(pool).run()

    assert before == [SCHEMA_VERSION] * 2
    assert [await version_for(pool, migrations) for migrations in both] == [NEXT] * 2


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


async def version_for(pool: ShardPool, migrations: Sequence[Migration]) -> int | None:
    async with pool.connection() as connection:
        schema = await check_schema(connection, pool.address.shard_id, migrations=migrations)
    return None if schema is None else schema.version
