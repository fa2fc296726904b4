"""A shard's database comes to a server with lower numbers of transactions, and nothing is applied twice.

By a dump, and by logical replication, which copies no sequence. One command lets the shard go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from support.postgres.databases import copy_shard, execute, make_template
from support.postgres.dumps import TAKE_NUMBERS, dumped
from support.postgres.standby_pair import require_postgres
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import ForeignNumbersError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import raise_numbers

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
            with pytest.raises(ForeignNumbersError, match="shards raise-numbers shard-1 --apply"):
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
