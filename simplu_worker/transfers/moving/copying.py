"""Copy a tenant's rows from one shard to another, chunk by chunk in order of their keys, and what changed since a time.

A chunk goes by COPY in binary form from one server to the other. It is read at one moment and written with the progress
in one transaction; chunks need not be of one moment, since all changes since the first one are copied afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

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


RESOURCES: Final = CopiedTable(
    "resources", "resource_boundary", (_CopiedColumns("resources", RESOURCE_COLUMNS, "copy_resources"),)
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
                *("batch_id", "requested_at", "received_at", "tenant_no", "position", "type_at", "origin_at", "kind"),
                *("digest", "request", "resource"),
            ),
            "copy_log_rows",
        ),
    ),
)
VERSIONS: Final = CopiedTable(
    "versions",
    "version_boundary",
    (
        _CopiedColumns(
            "resource_versions",
            (
                *("applied_at", "tenant_no", "version", "type_no", "source_no", "kind", "digest", "resource"),
                *("request", "former"),
            ),
            "copy_versions",
        ),
    ),
)
TABLES: Final = (RESOURCES, OPERATIONS, VERSIONS)


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
    if table is OPERATIONS:
        arguments += await find_copied_place(target, tenant_id)
    if table is VERSIONS:
        arguments += await number_names(source, target, tenant_id)
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


async def number_names(source: ShardPool, target: Connection, tenant_id: str) -> tuple[list[str], list[str], int]:
    """Return the names that the source has numbers for, their numbers on the target, and the tenant's number there."""
    async with source.connection() as connection:
        names = await connection.fetch(QUERIES["list_history_names"])
    rows = await target.fetch(QUERIES["number_history_names"], [row["name"] for row in names])
    numbers = {row["name"]: str(row["number"]) for row in rows}
    return list(numbers), list(numbers.values()), await target.fetchval(QUERIES["read_tenant_number"], tenant_id)


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


ResourceKey: TypeAlias = tuple[str, str]  # resource type and id
LogKey: TypeAlias = tuple[str, datetime]  # the key of the log, as hexadecimal text, and when it was completed

PAGE_ROWS: Final = 1000
SCANNED_ROWS: Final = 50_000  # and batches of all tenants, by one statement: a tenth of a second in memory
LOG_ORDER: Final = ("completed_at", "key")
NOTE_ORDER: Final = ("rejected_at", "request_id")
FIRST_NOTE: Final = datetime(2000, 1, 1, tzinfo=UTC)
AT_ANY_TIME: Final = datetime.max.replace(tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)  # the resolution of the shard's times
# Rows of the log from so long before a barrier on are read again: for a server's clock that is set back a little.
CLOCK_MARGIN: Final = timedelta(seconds=2)
MARK: Final = "m"  # in `kind`: no operation, but a resource that has changed
CHANGING: Final = frozenset("cupdCUPDm")  # in `kind`


class Changes(msgspec.Struct, frozen=True):
    """Rows of the log, the resources that have changed (as they are now, or gone), and the notes."""

    log: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    gone: Collection[ResourceKey] = ()
    keys: Collection[ResourceKey] = ()  # of resources: the source may have more versions of them
    rejections: Sequence[Any] = ()

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(map(len, (self.log, self.resources, self.gone, self.rejections)))


NOTHING_KNOWN: Final = frozenset[LogKey]()


def keys_of(log: Iterable[Any]) -> set[LogKey]:
    """Return the keys of rows of the log; with the same key a row has the same content."""
    return {_key_of(row) for row in log}


async def read_changes(
    connection: Connection, tenant_id: str, since: datetime, known: AbstractSet[LogKey] = NOTHING_KNOWN
) -> AsyncIterator[Changes]:
    """Yield what changed since *since*, by the shard's clock, in pages of at most `PAGE_ROWS` rows of the log.

    Without the rows *known*. What changes after a page was read is in the pages since a later time.
    """
    async for log in _read_unknown(connection, tenant_id, since, known):
        yield await read_resources(connection, tenant_id, _changed_by(log), log)
    async for notes in read_notes(connection, tenant_id, since):
        yield notes


async def read_last_changes(
    connection: Connection, tenant_id: str, since: datetime, known: AbstractSet[LogKey] = NOTHING_KNOWN
) -> Sequence[Changes]:
    """Return the same of a tenant that no worker writes to, each of its resources read once."""
    pages, keys = [], set[ResourceKey]()
    async for log in _read_unknown(connection, tenant_id, since, known):
        pages.append(Changes(log))
        keys |= _changed_by(log)
    pages.append(await read_resources(connection, tenant_id, keys))
    return [*pages, *[one async for one in read_notes(connection, tenant_id, since)]]


async def _read_unknown(
    connection: Connection, tenant_id: str, since: datetime, known: AbstractSet[LogKey]
) -> AsyncIterator[Sequence[Any]]:
    start = since - CLOCK_MARGIN
    if known and known >= keys_of(await connection.fetch(QUERIES["read_logged_keys"], tenant_id, start, since)):
        start = since
    async for log in read_log(connection, tenant_id, start):
        yield [row for row in log if _key_of(row) not in known]


async def read_notes(connection: Connection, tenant_id: str, since: datetime = FIRST_NOTE) -> AsyncIterator[Changes]:
    """Yield the rejected records, and the tries of messages, since *since*."""
    start = since - CLOCK_MARGIN
    async for rows in _read_pages(connection, "read_new_rejections", tenant_id, start, NOTE_ORDER, AT_ANY_TIME):
        yield Changes(rejections=rows)


async def read_changed_keys(
    connection: Connection, tenant_id: str, since: datetime
) -> tuple[set[ResourceKey], set[str]]:
    """Return the resources that may have changed since *since*, and the keys logged since then."""
    keys, requests = set[ResourceKey](), set[str]()
    async for log in read_log(connection, tenant_id, since - CLOCK_MARGIN):
        keys |= _changed_by(log)
        requests |= {row["key"] for row in log}
    return keys, requests


async def read_log(
    connection: Connection, tenant_id: str, start: datetime, *, scanned_rows: int = SCANNED_ROWS
) -> AsyncIterator[Sequence[Any]]:
    """Yield the rows of a tenant's log from *start* on, in order of time, in pages of at most `PAGE_ROWS` rows.

    A statement passes by about *scanned_rows*.
    """
    while True:
        end = await connection.fetchval(QUERIES["find_logged_end"], tenant_id, start, scanned_rows)
        until = end or AT_ANY_TIME
        async for page in _read_pages(connection, "read_logged_changes", tenant_id, start, LOG_ORDER, until):
            yield page
        if end is None:
            return
        start = end + INSTANT


async def _read_pages(
    connection: Connection, query: str, tenant_id: str, start: datetime, order: tuple[str, str], end: datetime
) -> AsyncIterator[Sequence[Any]]:
    after: tuple[datetime, str] = (start, "")
    is_last = False
    while not is_last:
        page = await connection.fetch(QUERIES[query], tenant_id, after[0], end, after[1], PAGE_ROWS)
        is_last = len(page) < PAGE_ROWS
        if page:
            after = (page[-1][order[0]], page[-1][order[1]])
            yield page


async def copy_newer_versions(
    source: ShardPool, target: Connection, tenant_id: str, keys: Iterable[tuple[str, str]]
) -> None:
    """Copy the versions behind the newest ones on the target; *keys* are resource types, and keys of the log."""
    types, resources = _columns(sorted(keys)) or ([], [])
    if not types:
        return
    await number_names(source, target, tenant_id)
    is_last = False
    while not is_last:
        newest = await target.fetch(QUERIES["find_newest_versions"], tenant_id, types, resources)
        async with source.connection() as connection:
            rows = await connection.fetch(
                QUERIES["read_newer_versions"],
                tenant_id,
                types,
                resources,
                [str(row["version"]) for row in newest],
                PAGE_ROWS,
            )
        await target.execute(QUERIES["write_versions"], tenant_id, [row["whole"] for row in rows])
        is_last = len(rows) < PAGE_ROWS


async def write_changes(connection: Connection, tenant_id: str, changes: Changes) -> None:
    """Write *changes*, but for versions, in a transaction that has checked the token; the caller marks resources."""
    if changes.gone:
        await connection.execute(QUERIES["delete_resources_named"], tenant_id, *_columns(sorted(changes.gone)))
    if changes.resources:
        await connection.execute(QUERIES["write_resources"], tenant_id, [row["whole"] for row in changes.resources])
    if operations := [row for row in changes.log if row["kind"] != MARK]:
        documents = [row["whole"] for row in operations]
        await connection.execute(QUERIES["free_copied_keys"], tenant_id, documents)
        place = await find_copied_place(connection, tenant_id)
        await connection.execute(QUERIES["write_log"], tenant_id, documents, *place)
    if changes.rejections:
        await connection.execute(QUERIES["write_rejections"], tenant_id, [row["whole"] for row in changes.rejections])


async def read_resources(
    connection: Connection, tenant_id: str, keys: Collection[ResourceKey], log: Sequence[Any] = ()
) -> Changes:
    """Return the resources *keys* as they are now, with rows of the log."""
    if not keys:
        return Changes(log)
    found = await connection.fetch(QUERIES["read_resources"], tenant_id, *_columns(sorted(keys)))
    there = {(row["resource_type"], row["resource_id"]) for row in found}
    return Changes(log, found, set(keys) - there, keys)


def _key_of(row: Any) -> LogKey:
    return row["key"], row["completed_at"]


def _changed_by(log: Iterable[Any]) -> set[ResourceKey]:
    changing = (row for row in log if row["kind"] in CHANGING and row["resource_id"] is not None)
    return {(row["resource_type"], row["resource_id"]) for row in changing}


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
