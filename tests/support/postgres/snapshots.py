"""A shard that goes back to what it had: a replica without the last commits, or a backup."""

from __future__ import annotations

from typing import Any

from support.postgres.log_rows import LOG_TABLES
from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.pool import ShardPool

TABLES = (*LOG_TABLES, "resources", "stream_positions")
OF_BACKUP = ("tenants", *TABLES)


class ShardSnapshot:
    """The rows of a shard at one moment: a replica with these, and without later commits, is promoted."""

    def __init__(self, pool: ShardPool, rows: dict[str, list[Any]]) -> None:
        self._pool = pool
        self._rows = rows

    @classmethod
    async def take(cls, pool: ShardPool) -> ShardSnapshot:
        return cls(pool, {table: await fetch(pool, f"SELECT * FROM {table}") for table in TABLES})

    async def promote(self) -> None:
        async with self._pool.transaction() as connection:
            for table, rows in self._rows.items():
                await connection.execute(f"DELETE FROM {table}")
                for row in rows:
                    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
                    await connection.execute(f"INSERT INTO {table} VALUES ({places})", *row.values())


async def copy_rows(source: ShardPool, target: ShardPool) -> None:
    for table in OF_BACKUP:
        for row in await fetch(source, f"SELECT * FROM {table}"):
            places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
            await fetch(target, f"INSERT INTO {table} OVERRIDING SYSTEM VALUE VALUES ({places})", *row.values())
