"""Workers beside an upgrade: they go on through it, and hold a shard that it has taken beyond them."""

from __future__ import annotations

import asyncpg
import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch, operation, writer_of
from support.postgres.upgrades import NEXT, OF_NEW_TABLES, upgrade_pool, upgrader

from simplu_worker.operations.operation import Disposition
from simplu_worker.shards.health.assessment import ShardProbe
from simplu_worker.shards.health.prober import inspect_shard
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.migrations import Migration, Upgrade, without_concurrently
from simplu_worker.shards.schema.schema_check import SchemaState, check_schema
from simplu_worker.shards.schema.sql_files import MIGRATIONS, SCHEMA_VERSION
from simplu_worker.shards.schema.upgrade import Upgrader
from simplu_worker.shards.types import ShardUnavailableError


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE tenants ADD COLUMN IF NOT EXISTS note text;",
        "ALTER TABLE operations ALTER COLUMN error TYPE varchar(100);",
        "ALTER TABLE stream_positions ADD COLUMN IF NOT EXISTS note text;",
        "DROP FUNCTION simplu_merge_patch; "
        + next(text for text in MIGRATIONS[0].text.split("\n\n") if "FUNCTION simplu_merge_patch" in text),
    ],
    ids=["new column", "other type", "positions", "function made again"],
)
async def test_workers_go_on_when_what_their_statements_use_has_changed(pool: ShardPool, text: str) -> None:
    """A connection's outdated plan is made again within the batch that met it; nothing is held for it."""
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


async def test_worker_holds_the_shard_when_an_upgrade_has_left_its_version_behind(pool: ShardPool) -> None:
    """Also where it has worked on the shard before; and it goes on when it may again."""
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


async def test_worker_works_before_and_after_the_upgrade_to_its_version(pool: ShardPool) -> None:
    """Its own version and the one before."""
    await fetch(pool, f"DELETE FROM schema_migrations WHERE version = {SCHEMA_VERSION}")
    before = await state_of(pool)
    done: Upgrade | None = await Upgrader(pool).run()

    assert before is SchemaState.READY
    assert done is not None
    assert done.migrations == [MIGRATIONS[-1]]
    assert isinstance(done.migrations[0], Migration)
    assert await state_of(pool) is SchemaState.READY


async def test_every_query_means_something_on_the_schema_before(make_shard: ShardMaker) -> None:
    """What a worker asks of a shard of its own version it may ask of one of the version before."""
    addresses = await make_shard("shard-1"), await make_shard("shard-2", is_empty=True)
    async with upgrade_pool(addresses[0]) as new, upgrade_pool(addresses[1]) as old:
        async with old.transaction() as connection:
            for migration in MIGRATIONS[:-1]:
                await connection.execute(without_concurrently(migration.text))
        known = {name for name in QUERIES if await is_understood(new, name)}
        understood = {name for name in known if await is_understood(old, name)}

    assert len(known) > 50
    assert known - understood == OF_NEW_TABLES


async def is_understood(pool: ShardPool, name: str) -> bool:
    """Return whether a shard can make a plan for a query."""
    async with pool.connection() as connection:
        try:
            await connection.prepare(QUERIES[name])
        except asyncpg.PostgresError:
            return False
    return True


async def state_of(pool: ShardPool) -> SchemaState:
    """Return the result of `check_schema` for a shard."""
    async with pool.connection() as connection:
        return await check_schema(connection, pool.address.shard_id)
