"""Upgrades of a shard as tests run them: from the schema of today to one that comes after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.migrations import migration_of
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, MIGRATIONS, SCHEMA_VERSION
from simplu_worker.shards.schema.type_files import TypeFile, read_type
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS, ReportActivity, UpgradeActivity, Upgrader

NEXT = SCHEMA_VERSION + 1
MADE_UP = migration_of(NEXT, "made_up", (Path(__file__).parent / "made_up_migration.sql").read_text())
INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS tenants_age ON public.tenants (created_at)"
BAKERY = read_type('{"name": "bakery", "defaultSettings": {}, "staffResourceType": "baker"}')
WITHIN_S = 60.0


@asynccontextmanager
async def upgrade_pool(address: ShardAddress) -> AsyncIterator[ShardPool]:
    pool = ShardPool(address, size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS)
    yield pool
    await pool.close()


def upgrader(
    pool: ShardPool,
    text: str | None = None,
    *,
    types: dict[str, TypeFile] | None = None,
    report: ReportActivity = lambda _: None,
    patience_s: float = 60.0,
) -> Upgrader:
    """Return what takes a shard of today to the made-up next schema, or to one by *text*."""
    migrations = [*MIGRATIONS, MADE_UP if text is None else migration_of(NEXT, "later", text)]
    return Upgrader(
        pool,
        report=report,
        patience_s=patience_s,
        migrations=migrations,
        types=BUSINESS_TYPES | (types or {}),
        draw=lambda: 0.0,
    )


class Watcher:
    """The recorder of an upgrade's activities, for a test that waits for one."""

    def __init__(self, wanted: Callable[[UpgradeActivity], bool]) -> None:
        self._wanted = wanted
        self.told: list[UpgradeActivity] = []
        self.seen = asyncio.Event()

    def __call__(self, doing: UpgradeActivity) -> None:
        self.told.append(doing)
        if self._wanted(doing):
            self.seen.set()

    async def wait(self) -> UpgradeActivity:
        async with asyncio.timeout(WITHIN_S):
            await self.seen.wait()
        return next(doing for doing in self.told if self._wanted(doing))


async def indexes(pool: ShardPool, name: str) -> list[dict[str, Any]]:
    query = "SELECT indexrelid::int AS oid, indisvalid AS is_valid FROM pg_index WHERE indexrelid = to_regclass($1)"
    return await fetch(pool, query, name)


async def versions(pool: ShardPool) -> list[tuple[int, int | None]]:
    rows = await fetch(pool, "SELECT version, works_from FROM schema_migrations ORDER BY version")
    return [(row["version"], row["works_from"]) for row in rows]
