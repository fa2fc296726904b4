"""Copy a tenant's rows from one shard to another, chunk by chunk in order of their keys.

A chunk goes by COPY in binary form from one server to the other, without being looked at. It is read at one moment and
written with the progress in one transaction; chunks need not be of one moment, since all changes since the first one
are copied afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.settling.rows import RowKey
from simplu_worker.transfers.moving.pacing import ChunkPace, smaller_pace
from simplu_worker.transfers.sql_files import QUERIES

PARTS_AHEAD: Final = 8  # parts of a chunk between the two servers, each of what one read of the network had


class CopiedTable(msgspec.Struct, frozen=True):
    """A table with rows of a tenant, its columns that are copied, and its two queries."""

    name: str
    columns: tuple[str, ...]
    boundary_query: str
    copy_query: str


RESOURCES: Final = CopiedTable(
    "resources",
    ("id", "businessType", "resourceName", "resourceId", "data", "date", "lastUpdated"),
    "resource_boundary",
    "copy_resources",
)
OPERATIONS: Final = CopiedTable(
    "operations",
    (
        "tenant_id",
        "request_id",
        "operation",
        "resource_type",
        "resource_id",
        "status",
        "error",
        "result",
        "digest",
        "source",
        "stream_shard_id",
        "sequence_number",
        "requested_at",
        "received_at",
        "completed_at",
    ),
    "operation_boundary",
    "copy_operations",
)
REJECTIONS: Final = CopiedTable(
    "rejections",
    (
        "tenant_id",
        "request_id",
        "reason",
        "error",
        "dead_letter_queue",
        "source",
        "sequence_number",
        "message_id",
        "rejected_at",
    ),
    "rejection_boundary",
    "copy_rejections",
)
FAILURES: Final = CopiedTable(
    "message_failures",
    ("tenant_id", "message_id", "failure_count", "failed_at"),
    "failure_boundary",
    "copy_failures",
)
TABLES: Final = (RESOURCES, OPERATIONS, REJECTIONS, FAILURES)


class CopiedChunk(msgspec.Struct, frozen=True):
    """The size of a chunk that was copied."""

    row_count: int
    byte_count: int


async def find_end(
    connection: Connection, table: CopiedTable, tenant_id: str, after: RowKey, row_count: int
) -> RowKey | None:
    """Return the key of the last row of the next chunk; None if the chunk has all that is left.

    In a transaction with `StatementBudget.KEY_RANGE`.
    """
    row = await connection.fetchrow(QUERIES[table.boundary_query], tenant_id, *after, row_count)
    return None if row is None else (row["first"], row["second"])


def slower_after(error: StatementFailedError, pace: ChunkPace) -> ChunkPace:
    """Return the pace after a chunk that failed. Raises *error* unless it is a timeout that fewer rows may avoid."""
    slower = smaller_pace(pace) if error.is_timeout else None
    if slower is None:
        raise error
    return slower


async def copy_chunk(
    source: ShardPool, target: Connection, table: CopiedTable, tenant_id: str, after: RowKey, end: RowKey | None
) -> CopiedChunk:
    """Copy the rows of one chunk; *target* is in the transaction that has checked the mover's token.

    Raises the errors of both shards.
    """
    parts: asyncio.Queue[bytes | None] = asyncio.Queue(PARTS_AHEAD)
    byte_count = 0

    async def read() -> None:
        upper = (None, None) if end is None else end
        try:
            async with source.transaction(budget=StatementBudget.KEY_RANGE) as connection:
                await connection.copy_from_query(
                    QUERIES[table.copy_query].removesuffix(";"),
                    tenant_id,
                    *after,
                    *upper,
                    output=parts.put,
                    format="binary",
                )
        except BaseException:
            while not parts.empty():
                parts.get_nowait()
            parts.put_nowait(None)
            raise
        await parts.put(None)

    async def arriving() -> AsyncIterator[bytes]:
        nonlocal byte_count
        while (part := await parts.get()) is not None:
            byte_count += len(part)
            yield part
        await reading  # its error ends the copy on the target

    reading = asyncio.create_task(read(), name=f"copy:{table.name}")
    try:
        status = await target.copy_to_table(
            table.name, source=arriving(), columns=table.columns, schema_name=target.home, format="binary"
        )
    finally:
        if not reading.done():  # the target has failed
            reading.cancel()
        await asyncio.wait([reading])
    return CopiedChunk(affected_count(status), byte_count)
