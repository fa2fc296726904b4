"""No plan of a transaction is compiled, however dear it seems to the server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from simplu_worker.local.postgres.server import SYSTEM_FOLDER, PostgresPrograms, PostgresServer, find_postgres_bin
from simplu_worker.local.processes.watchdog import ProcessGroup
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import ensure_schema

FOLDERS = [find_postgres_bin(), *sorted(SYSTEM_FOLDER.glob("*/bin"))]
# Of a table without an index.
SCAN = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT sum(number) FROM plain"
CAN_COMPILE = "SELECT pg_jit_available() AND current_setting('server_version_num')::int < 180000"


async def is_compiled(connection: Connection) -> bool:
    """Return whether the server compiles the plan of a scan."""
    return '"JIT"' in str(await connection.fetchval(SCAN))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
async def test_plan_with_a_scan_that_is_not_allowed_is_not_compiled(folder: Path) -> None:
    """Before version 18 its cost is that of ten million pages: compiling takes half a second, at each run."""
    with ProcessGroup() as group:
        programs = dataclasses.replace(PostgresPrograms.find(group.directory), folder=folder)
        server = PostgresServer(group, programs, database="compiling")
        await server.start()
        pool = ShardPool(ShardAddress("shard-1", server.url), size=1)
        await ensure_schema(pool)
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE plain (number int)")
        try:
            for budget in StatementBudget:
                async with pool.transaction(budget=budget) as connection:
                    assert not await is_compiled(connection), budget
            async with pool.transaction(budget=StatementBudget.BATCH) as connection:
                await connection.execute("SET LOCAL jit = on")
                assert await is_compiled(connection) == await connection.fetchval(CAN_COMPILE)
        finally:
            await pool.close()
