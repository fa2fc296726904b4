"""No plan of a transaction is compiled, however dear it seems to the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres.installed import on_installed_servers, running_server

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import ensure_schema

SCAN = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT sum(number) FROM plain"
CAN_COMPILE = "SELECT pg_jit_available() AND current_setting('server_version_num')::int < 180000"


async def is_compiled(connection: Connection) -> bool:
    """Return whether the server compiles the plan of a scan."""
    return '"JIT"' in str(await connection.fetchval(SCAN))


@on_installed_servers
@pytest.mark.slow(1)
async def test_plan_with_a_scan_that_is_not_allowed_is_not_compiled(folder: Path) -> None:
    async with running_server(folder, database="compiling") as server:
        pool = ShardPool(ShardAddress("shard-1", server.url), size=1)
        try:
            await ensure_schema(pool)
            async with pool.connection() as connection:
                await connection.execute("CREATE TABLE plain (number int)")
            for budget in StatementBudget:
                async with pool.transaction(budget=budget) as connection:
                    assert not await is_compiled(connection), budget
            async with pool.transaction(budget=StatementBudget.BATCH) as connection:
                await connection.execute("SET LOCAL jit = on")
                assert await is_compiled(connection) == await connection.fetchval(CAN_COMPILE)
        finally:
            await pool.close()
