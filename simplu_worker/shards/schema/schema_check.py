"""The schema of a shard: made on an empty one, checked on every other before the first read or write."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import structlog

from simplu_worker.shards.postgres.errors import wrong_shard_message
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.migrations import Migration, ShardSchema, digest_of, refusal_of, without_concurrently
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES, MIGRATIONS, SCHEMA_VERSION
from simplu_worker.shards.types import ShardUnavailableError

# Tables that came with schema version 3: on a shard of version 2 a worker goes on without them.
MESSAGE_FAILURES: Final = "message_failures"
REJECTIONS: Final = "rejections"
IMPORTS: Final = "imports"
RESTORES: Final = "restores"

log = structlog.get_logger(__name__)


class SchemaState(StrEnum):
    """The schema of a shard that may be used."""

    READY = "ready"
    EMPTY = "empty"


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
    return ShardSchema(identity["version"], identity["works_from"])


async def may_write_table(connection: Connection, table: str) -> bool:
    """Return whether the shard has a table that came with schema version 3, and this role may write it."""
    return bool(await connection.fetchval(QUERIES["may_write_table"], table))


async def check_schema(
    connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS
) -> SchemaState:
    """Return whether this database has our schema or is empty.

    Raises `ShardUnavailableError` as `read_schema` does, and for a schema version that this worker may not use
    (docs/reading.md).
    """
    schema = await read_schema(connection, shard_id)
    if schema is None:
        return SchemaState.EMPTY
    refusal = refusal_of(schema, worker_version=migrations[-1].version)
    if refusal is not None:
        raise ShardUnavailableError(f"shard {shard_id}: {refusal}")
    return SchemaState.READY


async def ensure_schema(pool: ShardPool) -> None:
    """Make the schema if the shard is empty; idempotent, also with many workers at once.

    Raises as `check_schema` does.
    """
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        if await check_schema(connection, shard_id) is SchemaState.READY:
            return
    async with pool.transaction() as connection:
        await connection.execute(QUERIES["lock_schema"])
        if await check_schema(connection, shard_id) is SchemaState.READY:
            return
        await make_schema(connection, shard_id)
    log.info("schema.created", shard_id=shard_id, version=SCHEMA_VERSION)


async def make_schema(connection: Connection, shard_id: str, *, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Make tables, business types, their records and the identity in the current namespace, within a transaction."""
    for migration in migrations:
        await _execute(connection, migration.text)
        await connection.execute(QUERIES["record_migration"], migration.version, migration.name, migration.works_from)
    for name, text in BUSINESS_TYPES.items():
        await _execute(connection, text)
        await connection.execute(QUERIES["record_business_type"], name, digest_of(text))
    await connection.execute(QUERIES["record_identity"], shard_id)


async def _execute(connection: Connection, text: str) -> None:
    """Run the statements of a file."""
    await connection.execute(without_concurrently(text))
