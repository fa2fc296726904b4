"""A reader of `operations` beside a worker that applies batches sees whole transactions of its own tenant alone."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, writer_of

from simplu_worker.shards.apply.writer import SUCCEEDED
from simplu_worker.shards.postgres.pool import ShardPool

BATCHES = 40
SIZE = 5  # operations of each tenant in a batch
OTHER = ("clinic", "north")
READ = """
SELECT completed_at, count(*) AS count, min(tenant_id) AS first, max(tenant_id) AS last
FROM operations GROUP BY completed_at
"""


@pytest.mark.slow
async def test_reader_sees_whole_transactions_of_its_tenant(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=2)
    cases = [TenantCase(pool, ids) for ids in (TENANT, OTHER)]
    for case in cases:
        await add_tenant(pool, case.ids)
    await execute(address.connection_string, "GRANT SELECT ON operations TO pg_monitor")
    reader = await asyncpg.connect(address.connection_string)
    await reader.execute("SET ROLE pg_monitor")
    await reader.execute("SELECT set_config('simplu.tenant', $1, false)", cases[0].tenant_id)

    async def write() -> None:
        writer = writer_of(pool)
        for number in range(BATCHES):
            batch = [case.operation("create", f"r{number}-{place}", {}) for place in range(SIZE) for case in cases]
            assert await writer.apply(batch) == [SUCCEEDED] * len(batch)

    seen = []
    writing = asyncio.create_task(write())
    while not writing.done():
        rows = await reader.fetch(READ)
        assert {(row["count"], row["first"], row["last"]) for row in rows} <= {(SIZE, *[cases[0].tenant_id] * 2)}
        seen.append(len(rows))
    await writing
    assert seen == sorted(seen)
    assert seen[-1] > 0
    assert len(await reader.fetch(READ)) == BATCHES
    await reader.close()
    await pool.close()
