"""Results of lists are compressed by `lz4` on a server that has it, unless the server's own settings choose."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
from support.postgres.databases import execute
from support.postgres.installed import on_installed_servers, running_server
from support.postgres.tenant_cases import fetch

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import ensure_schema

COMPRESSION = """
SELECT attcompression::text AS own
FROM pg_attribute
WHERE attrelid = 'log_outcomes'::regclass AND attname = 'result'
"""
HAS_LZ4 = "SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"


async def compression_of_results(server: PostgresServer) -> str:
    """Return the method of a new shard's results, a letter as in the catalog; empty: the server's default."""
    pool = ShardPool(ShardAddress("shard-1", await server.create_database("compressed")), size=1)
    try:
        await ensure_schema(pool)
        return str((await fetch(pool, COMPRESSION))[0]["own"])
    finally:
        await pool.close()
        await execute(server.url, "DROP DATABASE compressed")


@on_installed_servers
@pytest.mark.slow(2)
async def test_results_are_compressed_by_lz4_where_the_server_has_it(folder: Path) -> None:
    async with running_server(folder, database="choosing") as server:
        connection = await asyncpg.connect(server.url)
        has_lz4 = await connection.fetchval(HAS_LZ4)  # Debian's has
        await connection.close()

        assert await compression_of_results(server) == ("l" if has_lz4 else "")

        await execute(server.url, "ALTER ROLE postgres SET default_toast_compression = pglz")

        assert await compression_of_results(server) == ""
