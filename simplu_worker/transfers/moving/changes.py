"""What changed in a tenant's rows since a time, read on one shard and written to another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.copying import find_copied_place

ResourceKey: TypeAlias = tuple[str, str]  # resource type and id
LogKey: TypeAlias = tuple[str, datetime]  # the key of the log, as hexadecimal text, and when it was completed

PAGE_ROWS: Final = 1000
SCANNED_ROWS: Final = 50_000  # and batches of all tenants, by one statement: a tenth of a second in memory
LOG_ORDER: Final = ("completed_at", "key")
FIRST_NOTE: Final = datetime(2000, 1, 1, tzinfo=UTC)
AT_ANY_TIME: Final = datetime.max.replace(tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)  # the resolution of the shard's times
# Rows of the log from so long before a barrier on are read again: for a server's clock that is set back a little.
CLOCK_MARGIN: Final = timedelta(seconds=2)
MARK: Final = "m"  # in `kind`: no operation, but a resource that has changed
CHANGING: Final = frozenset("cupdCUPDm")  # in `kind`
_LOG_COLUMNS: Final = (
    "key",
    "kind",
    "resource_type",
    "resource_key",
    "origin",
    "error",
    "sequence_number",
    "result",
    "digest",
    "requested_at",
    "received_at",
    "completed_at",
    "batch_id",
    "position",
)
_REJECTION_COLUMNS: Final = (
    "request_id",
    "reason",
    "error",
    "dead_letter_queue",
    "source",
    "sequence_number",
    "message_id",
    "rejected_at",
)


class Changes(msgspec.Struct, frozen=True):
    """Rows of the log, the resources that have changed (as they are now, or gone), and the notes."""

    log: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    gone: Collection[ResourceKey] = ()
    rejections: Sequence[Any] = ()

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(map(len, (self.log, self.resources, self.gone, self.rejections)))

    @property
    def keys(self) -> set[ResourceKey]:
        """The resources."""
        return {(row["resource_type"], row["resource_id"]) for row in self.resources} | set(self.gone)

    def without(self, keys: Collection[ResourceKey]) -> Changes:
        """Return these changes without the resources *keys*."""
        kept = [row for row in self.resources if (row["resource_type"], row["resource_id"]) not in keys]
        return msgspec.structs.replace(self, resources=kept, gone=set(self.gone).difference(keys))


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
    async for rows in _read_pages(connection, "read_new_rejections", tenant_id, start, ("rejected_at", "request_id")):
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
        async for page in _read_pages(
            connection, "read_logged_changes", tenant_id, start, LOG_ORDER, end or AT_ANY_TIME
        ):
            yield page
        if end is None:
            return
        start = end + INSTANT


async def _read_pages(
    connection: Connection, query: str, tenant_id: str, start: datetime, order: tuple[str, str], *values: datetime
) -> AsyncIterator[Sequence[Any]]:
    after: tuple[datetime, str] = (start, "")
    is_last = False
    while not is_last:
        page = await connection.fetch(QUERIES[query], tenant_id, after[0], *after, PAGE_ROWS, *values)
        is_last = len(page) < PAGE_ROWS
        if page:
            after = (page[-1][order[0]], page[-1][order[1]])
            yield page


async def find_written_since_ready(
    connection: Connection, tenant_id: str, keys: Collection[ResourceKey]
) -> set[ResourceKey]:
    """Return those of *keys* written on the tenant's target since all of its rows were there."""
    if not keys:
        return set()
    rows = await connection.fetch(QUERIES["find_written_since_ready"], tenant_id, *_columns(sorted(keys)))
    return {(row["resource_type"], row["resource_id"]) for row in rows}


async def write_changes(connection: Connection, tenant_id: str, changes: Changes) -> None:
    """Write *changes* in a transaction that has checked the mover's token; the caller marks changed resources."""
    if changes.gone:
        await connection.execute(QUERIES["delete_resources_named"], tenant_id, *_columns(sorted(changes.gone)))
    if changes.resources:
        await connection.execute(QUERIES["write_resources"], tenant_id, [row["whole"] for row in changes.resources])
    if operations := [row for row in changes.log if row["kind"] != MARK]:
        columns = _columns(_values(operations, _LOG_COLUMNS))
        identities = _columns(_values(operations, ("key", "completed_at", "position")))
        await connection.execute(QUERIES["free_copied_keys"], tenant_id, *identities)
        place = await find_copied_place(connection, tenant_id)
        await connection.execute(QUERIES["write_log"], tenant_id, *columns, *place)
    if changes.rejections:
        columns = _columns(_values(changes.rejections, _REJECTION_COLUMNS))
        await connection.execute(QUERIES["write_rejections"], tenant_id, *columns)


async def read_resources(
    connection: Connection, tenant_id: str, keys: Collection[ResourceKey], log: Sequence[Any] = ()
) -> Changes:
    """Return the resources *keys* as they are now, with rows of the log."""
    if not keys:
        return Changes(log)
    found = await connection.fetch(QUERIES["read_resources"], tenant_id, *_columns(sorted(keys)))
    there = {(row["resource_type"], row["resource_id"]) for row in found}
    return Changes(log, found, set(keys) - there)


def _key_of(row: Any) -> LogKey:
    return row["key"], row["completed_at"]


def _changed_by(log: Iterable[Any]) -> set[ResourceKey]:
    changing = (row for row in log if row["kind"] in CHANGING and row["resource_id"] is not None)
    return {(row["resource_type"], row["resource_id"]) for row in changing}


def _values(rows: Iterable[Any], columns: Sequence[str]) -> list[tuple[Any, ...]]:
    return [tuple(_text(row[column]) for column in columns) for row in rows]


def _text(value: Any) -> str | None:
    """Return a value of a row as text: arrays of other types would be asked for by their names."""
    match value:
        case None | str():
            return value
        case datetime():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            raise TypeError(f"expected a text, a time or bytes, got {type(value).__name__}")


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
