"""The schema of a shard: made on an empty one, checked on every other before anything is read or written there."""

from __future__ import annotations

from enum import StrEnum

import structlog

from simplu_worker.shards.pools import Connection, ShardPool
from simplu_worker.shards.queries import BUSINESS_TYPES, MIGRATIONS, QUERIES, SCHEMA_VERSION
from simplu_worker.shards.shard_errors import ShardUnavailableError

log = structlog.get_logger(__name__)


class SchemaState(StrEnum):
    """What a shard is when it may be used at all."""

    READY = "ready"
    EMPTY = "empty"


async def check_schema(connection: Connection, shard_id: str) -> SchemaState:
    """Return whether this database has our schema or nothing; raise when it is not to be touched.

    Raises `ShardUnavailableError` for another shard's database, another program's tables, or a schema version that
    this worker does not know (contract §10: its own and the one before).
    """
    is_ours, is_empty = await connection.fetchrow(QUERIES["has_schema"]) or (False, False)
    if not is_ours:
        if is_empty:
            return SchemaState.EMPTY
        raise ShardUnavailableError(
            f"shard {shard_id}: expected an empty database or our schema, got another program's tables; "
            "give it an empty database"
        )
    identity = await connection.fetchrow(QUERIES["read_identity"])
    if identity is None or identity["shard_id"] != shard_id:
        came = "no identity" if identity is None else f"the database of shard {identity['shard_id']}"
        raise ShardUnavailableError(f"shard {shard_id}: its connection string leads to {came}; correct it in the map")
    version = identity["version"]
    if version is None or not SCHEMA_VERSION - 1 <= version <= SCHEMA_VERSION:
        raise ShardUnavailableError(
            f"shard {shard_id}: expected schema version {SCHEMA_VERSION - 1} or {SCHEMA_VERSION}, "
            f"got {'none' if version is None else version}; run a worker of that version or upgrade the schema"
        )
    return SchemaState.READY


async def ensure_schema(pool: ShardPool) -> None:
    """Make the schema if the shard is empty; idempotent, also when many workers do it at once.

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
        for version, name, statements in MIGRATIONS:
            await connection.execute(statements)
            await connection.execute(QUERIES["record_migration"], version, name)
        for statements in BUSINESS_TYPES.values():
            await connection.execute(statements)
        await connection.execute(QUERIES["record_identity"], shard_id)
    log.info("schema.created", shard_id=shard_id, version=SCHEMA_VERSION)
