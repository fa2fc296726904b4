"""Databases for tests, as copies of one template that the worker's own code has made.

A copy takes most of a second on a slow disk, so a copy that a test has left as it was but for rows is used again.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import asyncpg

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.schema.schema_check import ensure_schema

SHARD_ID = "shard-1"
TEMPLATE = "template_shard"
# For servers that will not answer: short enough not to be waited for, long enough for a busy machine.
QUICK = ShardTimeouts(connect_s=1.0, acquire_s=2.0, lock_s=0.5, statement_s=1.0, reply_s=1.5, close_s=0.5)

ShardMaker = Callable[..., Awaitable[ShardAddress]]  # (shard_id, *, is_empty=False)
PoolMaker = Callable[..., Awaitable[ShardPool]]  # (address=None, *, size=4, **timeouts)

_numbers = itertools.count(1)


async def make_template(server: PostgresServer) -> None:
    pool = ShardPool(ShardAddress(SHARD_ID, await server.create_database(TEMPLATE)), size=1)
    await ensure_schema(pool)
    await pool.close()


async def copy_shard(server: PostgresServer, shard_id: str = SHARD_ID, *, is_empty: bool = False) -> ShardAddress:
    """Make a database on *server* and return its address: a shard with our schema and no tenant, or nothing at all."""
    name = f"shard_{next(_numbers)}"
    url = await server.create_database(name, template="template1" if is_empty else TEMPLATE)
    if shard_id != SHARD_ID and not is_empty:
        await execute(url, SET_SHARD_ID, shard_id)
    return ShardAddress(shard_id=shard_id, connection_string=url)


async def execute(url: str, statement: str, *arguments: Any) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def stop_autovacuum(url: str, *tables: str) -> None:
    """Leave tables to the vacuums of a test alone.

    A vacuum removes nothing, and marks no page as all-visible, that an analysis beside it may still see: then plans,
    and the pages that they read, are others.
    """
    for table in tables:
        await execute(url, f"ALTER TABLE {table} SET (autovacuum_enabled = false)")


# Everything a test may have changed that is not a row of the tables below. Objects of Postgres have smaller ids.
FINGERPRINT = """
SELECT md5(concat_ws(' ',
    (SELECT string_agg(attrelid::text || attname || atttypid::text, ',' ORDER BY attrelid, attnum)
     FROM pg_attribute WHERE attnum > 0 AND attrelid >= 16384),
    (SELECT string_agg(concat_ws(' ', oid, relowner, relrowsecurity, reloptions), ',' ORDER BY oid)
     FROM pg_class WHERE oid >= 16384),
    (SELECT string_agg(concat_ws(' ', oid, polroles, md5(polqual::text)), ',' ORDER BY oid) FROM pg_policy),
    (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_rewrite WHERE oid >= 16384),
    (SELECT string_agg(concat_ws(' ', oid, md5(prosrc)), ',' ORDER BY oid) FROM pg_proc WHERE oid >= 16384),
    (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_constraint WHERE oid >= 16384),
    (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_trigger),
    (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_type WHERE oid >= 16384),
    (SELECT string_agg(concat(nspname, nspacl), ',' ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_'),
    (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase IN (0, (
        SELECT oid FROM pg_database WHERE datname = current_database()))),
    {rows}
))
"""
ROWS = """
    (SELECT string_agg(version::text, ',') FROM schema_migrations),
    (SELECT string_agg(concat(name, digest, definition, is_applied), ',' ORDER BY name) FROM business_types),
    (SELECT count(*) FROM shard_meta)
"""
SET_SHARD_ID = """
UPDATE shard_meta SET shard_id = $1, batch_offset = 0, drained_at = NULL
WHERE shard_id <> $1 OR batch_offset <> 0 OR drained_at IS NOT NULL
"""
EMPTYING = "".join(
    f"DELETE FROM {table};"
    for table in (
        "tenants",
        "business_controls",
        "limit_buckets",
        "resources",
        "log_batches",
        "log_rows",
        "log_outcomes",
        "stream_positions",
        "transfers",
        "rejections",
        "position_merges",
        "feed_shards",
        "feed_cursors",
        "feed_refusals",
        "log_forgotten",
        "usage",
        "usage_progress",
        "resource_versions",
        "history_names",
        "history_types",
    )
)
EMPTY_SCHEMA = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC
"""
OTHERS_END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
NEWEST = """
SELECT max(oid) FROM (
    SELECT oid FROM pg_class UNION ALL SELECT oid FROM pg_proc UNION ALL SELECT oid FROM pg_type
    UNION ALL SELECT oid FROM pg_trigger UNION ALL SELECT oid FROM pg_namespace
) objects
"""
# The statements that remove what is newer than $1: what a test has created. Oids are the same in every copy.
REMOVALS = """
SELECT string_agg(statement, '; ') FROM (
    SELECT format('DROP TRIGGER IF EXISTS %I ON %s', tgname, tgrelid::regclass) AS statement
    FROM pg_trigger WHERE oid > $1 AND NOT tgisinternal
    UNION ALL SELECT format('DROP SCHEMA IF EXISTS %I CASCADE', nspname)
    FROM pg_namespace WHERE oid > $1 AND nspname !~ '^(pg_|public$)'
    UNION ALL SELECT format('DROP TABLE IF EXISTS %s CASCADE', oid::regclass)
    FROM pg_class WHERE oid > $1 AND relkind = 'r'
    UNION ALL SELECT format('DROP INDEX IF EXISTS %s', oid::regclass)
    FROM pg_class WHERE oid > $1 AND relkind = 'i' AND relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', oid::regprocedure) FROM pg_proc WHERE oid > $1
    UNION ALL SELECT format('ALTER DATABASE %I RESET ALL', current_database())
) statements
"""


class Fresh(NamedTuple):
    """What a copy is like that no test had yet: its fingerprint, and the newest object in it."""

    fingerprint: str
    newest_oid: int


class Shelf:
    """Copies of the template, and empty databases, that can be used again."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._shelved: dict[bool, list[ShardAddress]] = {False: [], True: []}  # by whether it is empty
        self._fresh: dict[bool, Fresh] = {}

    async def take(self, shard_id: str, *, is_empty: bool) -> ShardAddress:
        shelved = self._shelved[is_empty]
        if not shelved:
            address = await copy_shard(self._server, shard_id, is_empty=is_empty)
            if is_empty not in self._fresh:
                self._fresh[is_empty] = await self._look(address.connection_string, is_empty=is_empty)
            return address
        # One that has this shard id already needs no connection.
        shelved.sort(key=lambda address: address.shard_id == shard_id)
        address = shelved.pop()
        if not is_empty and address.shard_id != shard_id:
            await execute(address.connection_string, SET_SHARD_ID, shard_id)
        return ShardAddress(shard_id=shard_id, connection_string=address.connection_string)

    async def give_back(self, address: ShardAddress, *, is_empty: bool) -> None:
        """Empty a database and keep it, or drop it when a test has changed or removed objects of it."""
        try:
            is_as_it_was = await self._reset(address, is_empty=is_empty)
        except asyncpg.PostgresError:
            is_as_it_was = False
        if is_as_it_was:
            self._shelved[is_empty].append(address)
        else:
            await execute(self._server.url_of("postgres"), f"DROP DATABASE {database_of(address)} WITH (FORCE)")

    async def _look(self, url: str, *, is_empty: bool) -> Fresh:
        connection = await asyncpg.connect(url)
        try:
            return Fresh(await _fingerprint(connection, is_empty=is_empty), await connection.fetchval(NEWEST))
        finally:
            await connection.close()

    async def _reset(self, address: ShardAddress, *, is_empty: bool) -> bool:
        """Remove what a test has left; return whether the database is like a fresh one then."""
        fresh = self._fresh[is_empty]
        connection = await asyncpg.connect(address.connection_string)
        try:
            await connection.execute(OTHERS_END)
            if is_empty:
                await connection.execute(EMPTY_SCHEMA)
            else:
                await connection.execute(EMPTYING)
                await connection.execute(SET_SHARD_ID, address.shard_id)
                if await _fingerprint(connection, is_empty=False) == fresh.fingerprint:
                    return True
            await connection.execute(await connection.fetchval(REMOVALS, fresh.newest_oid))
            return await _fingerprint(connection, is_empty=is_empty) == fresh.fingerprint
        finally:
            await connection.close()


async def _fingerprint(connection: asyncpg.Connection[Any], *, is_empty: bool) -> str:
    return str(await connection.fetchval(FINGERPRINT.format(rows="1" if is_empty else ROWS)))


def database_of(address: ShardAddress) -> str:
    return address.connection_string.rpartition("/")[2]
