"""The content of a restored backup of a shard: its schema, and the positions stored in it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from simplu_worker.shards.positions import read_position_rows
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.migrations import ShardSchema
from simplu_worker.shards.schema.schema_check import read_schema
from simplu_worker.shards.types import StreamPosition


class BackupContent(msgspec.Struct, frozen=True):
    """The content of a backup; *rows* are by stream shard, of one stream."""

    schema: ShardSchema
    first_tenant_at: datetime | None
    last_applied_at: datetime | None
    rows: dict[str, StreamPosition] = {}


async def read_backup(pool: ShardPool, stream_name: str | None) -> BackupContent | None:
    """Return the content of the database of *pool*; None if it is empty. Raises `ShardUnavailableError`."""
    async with pool.connection() as connection:
        schema = await read_schema(connection, pool.address.shard_id)
        if schema is None:
            return None
        (content,) = await connection.fetch(QUERIES["describe_content"])
        rows = {} if stream_name is None else await read_position_rows(connection, stream_name)
        return BackupContent(schema, **dict(content), rows=rows)
