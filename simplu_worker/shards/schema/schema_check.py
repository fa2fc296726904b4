"""The schema of a shard: made on an empty one, checked on every other before the first read or write.

This is the only check of tables, columns, unique indexes and rights, and of whether policies hide rows: what comes
after it takes them for granted. It is made when a pool first uses its address, at the first use after an error of the
shard, and with each probe; a probe that finds something missing ends the use of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from simplu_worker.shards.postgres.errors import ForeignNumbersError, foreign_numbers_message, wrong_shard_message
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, at_home
from simplu_worker.shards.schema.migrations import (
    Migration,
    MissingPart,
    ShardSchema,
    keys_of,
    refusal_of,
    refusal_of_missing,
    tables_of,
    without_concurrently,
)
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES, MIGRATIONS, SCHEMA_VERSION
from simplu_worker.shards.schema.type_store import write_types
from simplu_worker.shards.types import ShardUnavailableError

log = structlog.get_logger(__name__)


async def read_schema(connection: Connection, shard_id: str) -> ShardSchema | None:
    """Return the schema of this database, without its business types; None if it is empty.

    Raises `ShardUnavailableError` for another shard's database, and for another program's tables.
    """
    is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"], connection.home) or (False, False)
    if not is_ours:
        if is_empty:
            return None
        raise ShardUnavailableError(
            f"shard {shard_id}: expected an empty database or our schema, got another program's tables; "
            "give it an empty database, or take its tables over with `simplu-worker shards adopt`"
        )
    identity = await connection.fetchrow(QUERIES["read_identity"])
    if identity is None or identity["shard_id"] != shard_id:
        found = None if identity is None else identity["shard_id"]
        raise ShardUnavailableError(wrong_shard_message(shard_id, found))
    return ShardSchema(identity["version"], identity["works_from"], is_behind=identity["is_behind"])


async def check_schema(
    connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS
) -> ShardSchema | None:
    """Return the schema of this database; None if it is empty. All of it is there, and this role may use it.

    Raises `ShardUnavailableError` as `read_schema` does, for a schema version that this worker may not use
    (docs/reading.md), and for tables, columns, unique indexes and rights that are missing, or rows that a policy hides;
    `ForeignNumbersError` for the database of another server.
    """
    schema = await read_schema(connection, shard_id)
    if schema is None:
        return None
    refusal = refusal_of(schema, worker_version=migrations[-1].version)
    if refusal is None:
        needed = [(table, column) for table, columns in tables_of(schema, migrations).items() for column in columns]
        keys = keys_of(schema, migrations)
        rows = await connection.fetch(
            QUERIES["find_missing"],
            *map(list, zip(*needed, strict=True)),
            [key.index_name for key in keys],
            [key.table_name for key in keys],
            [",".join(sorted(key.columns)) for key in keys],
        )
        refusal = refusal_of_missing([MissingPart(**dict(row)) for row in rows], keys)
    if refusal is not None:
        raise ShardUnavailableError(f"shard {shard_id}: {at_home(refusal, connection.home)}")
    if schema.is_behind:
        raise ForeignNumbersError(foreign_numbers_message(shard_id))
    return schema


class ShardNumbers(NamedTuple):
    """The offset of the numbers of a shard's batches, and whether its log was ahead of its server."""

    offset: int
    is_behind: bool


async def raise_numbers(pool: ShardPool, *, apply: bool) -> ShardNumbers:
    """Raise the numbers of a shard's batches above those in its log, where that is needed; return them.

    With *apply* off only says whether it is. Raises as `read_schema` does.
    """
    async with pool.transaction() as connection:
        if await read_schema(connection, pool.address.shard_id) is None:
            raise ShardUnavailableError(f"shard {pool.address.shard_id}: its database is empty")
        offset, is_behind = await connection.fetchrow(QUERIES["read_offset"])
        if is_behind and apply:
            offset = await connection.fetchval(QUERIES["raise_offset"])
    return ShardNumbers(offset, is_behind)


async def has_schema(connection: Connection, pool: ShardPool) -> bool:
    """Return whether the shard has our schema and not an empty database; checked once between two errors of the shard.

    Raises as `check_schema` does. A later change is noticed by the next probe, which checks it again.
    """
    address = pool.address
    if pool.checked_address is not address:
        if await check_schema(connection, address.shard_id) is None:
            return False
        pool.checked_address = address
    return True


async def ensure_schema(pool: ShardPool) -> None:
    """Make the schema if the shard is empty; idempotent, also with many workers at once.

    Raises as `check_schema` does.
    """
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        if await check_schema(connection, shard_id) is not None:
            return
    async with pool.transaction() as connection:
        await connection.execute(QUERIES["lock_schema"])
        if await check_schema(connection, shard_id) is not None:
            return
        await make_schema(connection, shard_id)
    log.info("schema.created", shard_id=shard_id, version=SCHEMA_VERSION)


async def make_schema(connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Make tables, business types, their records and the identity in the current namespace, within a transaction."""
    for migration in migrations:
        await _execute(connection, migration.text)
        await connection.execute(QUERIES["record_migration"], migration.version, migration.name, migration.works_from)
    await write_types(connection, BUSINESS_TYPES, by_upgrade=True)
    await connection.execute(QUERIES["record_identity"], shard_id)


async def _execute(connection: Connection, text: str) -> None:
    """Run the statements of a file."""
    await connection.execute(without_concurrently(text))
