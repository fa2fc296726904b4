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
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import Isolation, StatementBudget
from simplu_worker.shards.settling import RowKey
from simplu_worker.transfers import QUERIES

ROWS_FIRST: Final = 200  # they may be of some MB each
ROWS_MIN: Final = 200  # unless so many have taken too long
ROWS_MAX: Final = 100_000
CHUNK_S: Final = 0.1  # a chunk is a transaction on the target
REST_SHARE: Final = 0.5  # of the time that a chunk took: others find both shards at rest then
GROWTH: Final = 4
SHRINKING: Final = 10  # after a chunk that ran into its timeout
SLOW_RATIO: Final = 4.0  # an answer that takes so many times the usual time shows that a shard is busy
SLOW_MIN_S: Final = 0.05
REST_MAX_S: Final = 2.0
SMALL_ROUND: Final = 100  # rows: a round of so many or fewer leaves nothing to win by another one
SHORT_ROUND_SHARE: Final = 0.25  # of the longest pause: a round that takes no longer is short


class ChunkPace(msgspec.Struct, frozen=True):
    """The size of the next chunk, which is to take *chunk_s*, and the rest before it; *most* is the largest for now."""

    row_count: int = ROWS_FIRST
    rest_s: float = 0.0
    usual_answer_s: float = 0.0  # of the smallest statement on either shard, the best so far
    most: int = ROWS_MAX
    chunk_s: float = CHUNK_S
    rest_share: float = REST_SHARE


def smaller_pace(pace: ChunkPace) -> ChunkPace | None:
    """Return the pace after a chunk that ran into its timeout; None if it had one row."""
    size = min(pace.row_count, pace.most) // SHRINKING
    if min(pace.row_count, pace.most) == 1:
        return None
    return msgspec.structs.replace(pace, row_count=max(1, size), most=max(1, size))


def next_pace(
    pace: ChunkPace, *, row_count: int, took_s: float, answer_s: float, max_rows_per_s: float | None = None
) -> ChunkPace:
    """Return the pace after a chunk of *row_count* rows that took *took_s*.

    While *answer_s*, of a tiny statement on the slower shard, is high, chunks get smaller and rests longer.
    """
    usual_s = min(pace.usual_answer_s or answer_s, answer_s)
    most = pace.most if took_s > pace.chunk_s else min(ROWS_MAX, pace.most * GROWTH)
    is_slow = answer_s > max(SLOW_MIN_S, SLOW_RATIO * usual_s)
    if is_slow:
        size, rest_s = pace.row_count // 2, max(pace.rest_s * 2, took_s)
    else:
        fitting = round(min(ROWS_MAX, row_count * pace.chunk_s / took_s)) if took_s > 0 and row_count else ROWS_MAX
        size, rest_s = min(pace.row_count * GROWTH, fitting), pace.rest_share * took_s
    rest_s = min(REST_MAX_S, rest_s)
    if max_rows_per_s is not None:
        size = min(size, max(1, round(max_rows_per_s * pace.chunk_s)))
        rest_s = max(rest_s, row_count / max_rows_per_s - took_s)
    least = ROWS_MIN if max_rows_per_s is None else max(1, min(ROWS_MIN, size))
    return msgspec.structs.replace(
        pace, row_count=min(most, max(least, size)), rest_s=rest_s, usual_answer_s=usual_s, most=most
    )


def is_last_round(row_count: int, took_s: float, max_pause_s: float) -> bool:
    """Return whether a tenant can be fenced after a round of *row_count* rows that took *took_s*."""
    return took_s <= max_pause_s * SHORT_ROUND_SHARE or (row_count <= SMALL_ROUND and took_s <= max_pause_s)


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
REJECTIONS: Final = CopiedTable(
    "rejections",
    "rejection_boundary",
    (
        _CopiedColumns(
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
            "copy_rejections",
        ),
    ),
)
FAILURES: Final = CopiedTable(
    "message_failures",
    "failure_boundary",
    (_CopiedColumns("message_failures", ("tenant_id", "message_id", "failure_count", "failed_at"), "copy_failures"),),
)
TABLES: Final = (RESOURCES, OPERATIONS, REJECTIONS, FAILURES)


class _CopiedChunk(msgspec.Struct, frozen=True):
    row_count: int
    byte_count: int


async def find_end(
    connection: Connection, table: CopiedTable, tenant_id: str, after: RowKey, row_count: int
) -> RowKey | None:
    """Return the key of the last row of the next chunk; None if it has all that is left."""
    row = await connection.fetchrow(QUERIES[table.boundary_query], tenant_id, *after, row_count)
    return None if row is None else (row["first"], row["second"])


def slower_after(error: StatementFailedError, pace: ChunkPace) -> ChunkPace:
    """Return the pace after a chunk that failed. Raises *error* unless fewer rows may avoid it."""
    slower = smaller_pace(pace) if error.is_timeout else None
    if slower is None:
        raise error
    return slower


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
