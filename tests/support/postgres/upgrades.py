"""Upgrades of a shard as tests run them: from the schema of today to one that comes after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from support.postgres.databases import execute
from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.migrations import migration_of, without_concurrently
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES, MIGRATIONS, SCHEMA_VERSION
from simplu_worker.shards.schema.upgrade import CONNECTIONS, UPGRADE_TIMEOUTS, ReportActivity, UpgradeActivity, Upgrader
from simplu_worker.transfers.sql_files import QUERIES

NEXT = SCHEMA_VERSION + 1
INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS tenants_age ON tenants (created_at)"
TEXT = f"""
-- works-from: {SCHEMA_VERSION}
ALTER TABLE tenants ADD COLUMN IF NOT EXISTS note text;
CREATE OR REPLACE FUNCTION noted(note text) RETURNS text LANGUAGE sql AS $$ SELECT note; $$;
{INDEX};
COMMENT ON INDEX tenants_age IS 'made';
"""
BAKERY = """
CREATE INDEX CONCURRENTLY IF NOT EXISTS resources_bakery ON resources (id) WHERE "businessType" = 'bakery';
INSERT INTO business_types (name, default_settings, staff_resource_type) VALUES ('bakery', '{}', 'baker')
ON CONFLICT (name) DO NOTHING;
"""
WITHIN_S = 30.0
# About tables and columns that the schema before does not have: a worker asks for these first.
OF_NEW_TABLES = {
    *("count_failures", "forget_failures", "forget_failures_of_tenant", "forget_old_failures"),
    *("note_rejections", "find_rejections", "find_rejection_of_any_tenant"),
    *("mark_gap", "list_gaps", "accept_gaps"),
    *("forget_rejections_of_tenant", "forget_old_rejections"),
    *("find_imports", "make_incoming_tenants", "take_import", "fence_import", "lock_import", "note_import"),
    *("find_open_imports", "delete_import"),
    *("find_tenant_to_move", "lock_tenant_to_move", "take_move_token", "fence_tenant", "end_own_fence"),
    *("end_overdue_fence", "commit_move", "make_incoming", "lock_incoming", "make_ready", "activate_tenant"),
    *("take_incoming", "drop_incoming", "lock_left", "drop_failures", "drop_rejections"),
    *("find_arrival", "open_arrival", "note_arrival", "note_ready", "close_arrival", "forget_move_changes"),
    *("find_restore", "fence_to_restore", "retake_fence", "open_restore", "note_restore"),
    *("set_restore_deadline", "release_restored"),
    *("read_position_merges", "merge_positions"),
    *("rejection_boundary", "failure_boundary", "copy_rejections", "copy_failures", "read_other_changes"),
    *("read_new_rejections", "read_new_failures", "write_rejections", "write_failures"),
    "find_written_since_ready",
    *("checksum_rejections", "checksum_failures", "find_failures", "find_later_rejections", "find_later_failures"),
}


@asynccontextmanager
async def upgrade_pool(address: ShardAddress) -> AsyncIterator[ShardPool]:
    """Open the pool of an upgrade."""
    pool = ShardPool(address, size=CONNECTIONS, timeouts=UPGRADE_TIMEOUTS)
    yield pool
    await pool.close()


def upgrader(
    pool: ShardPool,
    text: str = TEXT,
    *,
    types: dict[str, str] | None = None,
    report: ReportActivity = lambda _: None,
    patience_s: float = 60.0,
) -> Upgrader:
    """Return what takes a shard of today to one with *text*."""
    migrations = [*MIGRATIONS, migration_of(NEXT, "later", text)]
    return Upgrader(
        pool,
        report=report,
        patience_s=patience_s,
        migrations=migrations,
        types=BUSINESS_TYPES | (types or {}),
        draw=lambda: 0.0,
    )


async def make_old_schema(address: ShardAddress) -> None:
    """Make the schema of the version before, as its worker made it."""
    files = [*(migration.text for migration in MIGRATIONS[:-1]), *BUSINESS_TYPES.values()]
    await execute(address.connection_string, ";".join(without_concurrently(text) for text in files))
    for migration in MIGRATIONS[:-1]:
        values = (migration.version, migration.name, migration.works_from)
        await execute(address.connection_string, QUERIES["record_migration"], *values)
    await execute(address.connection_string, QUERIES["record_identity"], address.shard_id)


class Watcher:
    """The recorder of an upgrade's activities, for a test that waits for one."""

    def __init__(self, wanted: Callable[[UpgradeActivity], bool]) -> None:
        self._wanted = wanted
        self.told: list[UpgradeActivity] = []
        self.seen = asyncio.Event()

    def __call__(self, doing: UpgradeActivity) -> None:
        """Take it."""
        self.told.append(doing)
        if self._wanted(doing):
            self.seen.set()

    async def wait(self) -> UpgradeActivity:
        """Return the wanted activity, once it was reported."""
        async with asyncio.timeout(WITHIN_S):
            await self.seen.wait()
        return next(doing for doing in self.told if self._wanted(doing))


async def indexes(pool: ShardPool, name: str) -> list[dict[str, Any]]:
    """Return oid and validity of an index, if there is one."""
    query = "SELECT indexrelid::int AS oid, indisvalid AS is_valid FROM pg_index WHERE indexrelid = to_regclass($1)"
    return await fetch(pool, query, name)


async def versions(pool: ShardPool) -> list[tuple[int, int | None]]:
    """Return the shard's own list of its migrations."""
    rows = await fetch(pool, "SELECT version, works_from FROM schema_migrations ORDER BY version")
    return [(row["version"], row["works_from"]) for row in rows]
