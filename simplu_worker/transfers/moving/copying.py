"""Copy a tenant's rows from one shard to another, chunk by chunk in order of their keys.

A chunk goes by COPY in binary form from one server to the other. It is read at one moment and written with the progress
in one transaction; chunks need not be of one moment, since all changes since the first one are copied afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from simplu_worker.operations.business_types import RESOURCE_COLUMNS
from simplu_worker.shards.log import BulkChange, mark_bulk_change
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import Isolation, StatementBudget
from simplu_worker.shards.settling import RowKey
from simplu_worker.transfers import QUERIES

PARTS_AHEAD: Final = 8  # parts of a chunk between the two servers, each of what one read of the network had


class _CopiedColumns(msgspec.Struct, frozen=True):
    table: str
    columns: tuple[str, ...]
    query: str


class CopiedTable(msgspec.Struct, frozen=True):
    """What is copied in the order of one key, of one table or several; a row counts once, in the last of *parts*."""

    name: str
    boundary_query: str
    parts: tuple[_CopiedColumns, ...]
    have_places: bool = False


RESOURCES: Final = CopiedTable(
    "resources",
    "resource_boundary",
    (
        _CopiedColumns(
            "resources",
            RESOURCE_COLUMNS,
            "copy_resources",
        ),
    ),
)
OPERATIONS: Final = CopiedTable(
    "operations",
    "operation_boundary",
    (
        _CopiedColumns(
            "log_batches",
            ("batch_id", "completed_at", "row_count", "kind", "tenants", "types", "origins"),
            "copy_log_batches",
        ),
        _CopiedColumns(
            "log_outcomes",
            ("batch_id", "position", "tenant_no", "error", "sequence_number", "result"),
            "copy_log_outcomes",
        ),
        _CopiedColumns(
            "log_rows",
            (
                "batch_id",
                "requested_at",
                "received_at",
                "tenant_no",
                "position",
                "type_at",
                "origin_at",
                "kind",
                "digest",
                "request",
                "resource",
            ),
            "copy_log_rows",
        ),
    ),
    have_places=True,
)
TABLES: Final = (RESOURCES, OPERATIONS)


class _CopiedChunk(msgspec.Struct, frozen=True):
    row_count: int
    byte_count: int


async def find_end(
    connection: Connection, table: CopiedTable, tenant_id: str, after: RowKey, row_count: int
) -> RowKey | None:
    """Return the key of the last row of the next chunk; None if it has all that is left."""
    row = await connection.fetchrow(QUERIES[table.boundary_query], tenant_id, *after, row_count)
    return None if row is None else (row["first"], row["second"])


async def copy_chunk(
    source: ShardPool, target: Connection, table: CopiedTable, tenant_id: str, after: RowKey, end: RowKey | None
) -> _CopiedChunk:
    """Copy one chunk; *target* is in the transaction that has checked the mover's token."""
    arguments: list[object] = [tenant_id, *after, *(end or (None, None))]
    if table.have_places:
        arguments += await find_copied_place(target, tenant_id)
    if table is RESOURCES:
        await mark_bulk_change(target, BulkChange.COPIED, tenant_id)
    row_count = byte_count = 0
    # Of one moment: the parts belong together.
    async with source.transaction(budget=StatementBudget.KEY_RANGE, isolation=Isolation.ONE_MOMENT) as connection:
        for part in table.parts:
            copied = await _copy_part(connection, target, part, arguments)
            row_count, byte_count = copied.row_count, byte_count + copied.byte_count
    return _CopiedChunk(row_count, byte_count)


async def find_copied_place(target: Connection, tenant_id: str) -> tuple[int, int]:
    """Return where this transaction copies rows of the log: the first batch, and the tenant's number."""
    row = await target.fetchrow(QUERIES["find_copied_place"], tenant_id)
    return row["batch_id"], row["tenant_no"]


async def _copy_part(
    source: Connection, target: Connection, part: _CopiedColumns, arguments: Sequence[object]
) -> _CopiedChunk:
    parts: asyncio.Queue[bytes | None] = asyncio.Queue(PARTS_AHEAD)
    byte_count = 0

    async def read() -> None:
        try:
            await source.copy_from_query(
                QUERIES[part.query].removesuffix(";"), *arguments, output=parts.put, format="binary"
            )
        except BaseException:
            while not parts.empty():
                parts.get_nowait()
            parts.put_nowait(None)
            raise
        await parts.put(None)

    async def arriving() -> AsyncIterator[bytes]:
        nonlocal byte_count
        while (piece := await parts.get()) is not None:
            byte_count += len(piece)
            yield piece
        await reading  # its error ends the copy on the target

    reading = asyncio.create_task(read(), name=f"copy:{part.table}")
    try:
        status = await target.copy_to_table(
            part.table, source=arriving(), columns=part.columns, schema_name=target.home, format="binary"
        )
    finally:
        if not reading.done():  # the target has failed
            reading.cancel()
        await asyncio.wait([reading])
    return _CopiedChunk(affected_count(status), byte_count)
