"""An upgrade beside other sessions: its blockers, the leftovers of a killed one, and a pooler in between."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from support.postgres.tenant_cases import add_tenant, fetch
from support.postgres.upgrades import NEXT, Watcher, indexes, upgrader, versions

from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import SCHEMA_VERSION
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS
from simplu_worker.shards.types import ShardUnavailableError


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
