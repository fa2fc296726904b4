"""What changed in a tenant's rows since a time, read on one shard and written to another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.shards.moving.copying import OPERATIONS
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import QUERIES

ResourceKey: TypeAlias = tuple[str, str]  # resource type and id

PAGE_ROWS: Final = 1000
# Rows of the log from so long before a barrier on are read again: for a server's clock that is set back a little.
CLOCK_MARGIN: Final = timedelta(seconds=2)
CHANGES_NOTHING: Final = frozenset({"read", "list"})
_LOG_COLUMNS: Final = OPERATIONS.columns[1:]  # without the tenant
_RESOURCE_COLUMNS: Final = ("business_type", "resource_type", "resource_id", "data", "date", "last_updated")


class Changes(msgspec.Struct, frozen=True):
    """Rows of the log, and the resources that have changed: as they are now, or gone."""

    log: Sequence[Any] = ()
    resources: Sequence[Any] = ()
    gone: Collection[ResourceKey] = ()

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.log) + len(self.resources) + len(self.gone)

    def without(self, keys: Collection[ResourceKey]) -> Changes:
        """Return these changes without the resources *keys*."""
        kept = [row for row in self.resources if (row["resource_type"], row["resource_id"]) not in keys]
        return Changes(self.log, kept, set(self.gone).difference(keys))


async def read_changes(connection: Connection, tenant_id: str, since: datetime) -> AsyncIterator[Changes]:
    """Yield what changed since *since*, by the clock of the shard, in pages of at most `PAGE_ROWS` rows of the log.

    A page that was read while the tenant is written to may be older than the next one; what changes later is in the
    pages since a later time.
    """
    after: tuple[datetime, str] = (since - CLOCK_MARGIN, "")
    while True:
        log = await connection.fetch(QUERIES["read_logged_changes"], tenant_id, after[0], *after, PAGE_ROWS)
        keys = {(row["resource_type"], row["resource_id"]) for row in log if _may_change(row)}
        yield await read_resources(connection, tenant_id, keys, log)
        if len(log) < PAGE_ROWS:
            break
        after = (log[-1]["completed_at"], log[-1]["request_id"])
    others = await read_other_keys(connection, tenant_id, since)
    if others:
        yield await read_resources(connection, tenant_id, others)


async def read_changed_keys(
    connection: Connection, tenant_id: str, since: datetime
) -> tuple[set[ResourceKey], set[str]]:
    """Return the resources that may have changed since *since*, and the requests that were logged since then."""
    keys, requests = await read_other_keys(connection, tenant_id, since), set[str]()
    after: tuple[datetime, str] = (since - CLOCK_MARGIN, "")
    while True:
        log = await connection.fetch(QUERIES["read_logged_changes"], tenant_id, after[0], *after, PAGE_ROWS)
        keys |= {(row["resource_type"], row["resource_id"]) for row in log if _may_change(row)}
        requests |= {row["request_id"] for row in log}
        if len(log) < PAGE_ROWS:
            return keys, requests
        after = (log[-1]["completed_at"], log[-1]["request_id"])


async def read_other_keys(connection: Connection, tenant_id: str, since: datetime) -> set[ResourceKey]:
    """Return the resources that may have changed without a row in the log."""
    rows = await connection.fetch(QUERIES["read_other_changes"], tenant_id, since - CLOCK_MARGIN)
    return {(row["resource_type"], row["resource_id"]) for row in rows}


async def write_changes(connection: Connection, tenant_id: str, changes: Changes) -> None:
    """Write *changes* in the transaction of *connection*, which has checked that the mover is still the last one."""
    if changes.gone:
        await connection.execute(QUERIES["delete_resources_named"], tenant_id, *_columns(sorted(changes.gone)))
    if changes.resources:
        await connection.execute(
            QUERIES["write_resources"], tenant_id, *_columns(_values(changes.resources, _RESOURCE_COLUMNS))
        )
    if changes.log:
        await connection.execute(QUERIES["write_log"], tenant_id, *_columns(_values(changes.log, _LOG_COLUMNS)))


async def read_resources(
    connection: Connection, tenant_id: str, keys: Collection[ResourceKey], log: Sequence[Any] = ()
) -> Changes:
    """Return the resources *keys* as they are now, with rows of the log."""
    if not keys:
        return Changes(log)
    found = await connection.fetch(QUERIES["read_resources"], tenant_id, *_columns(sorted(keys)))
    there = {(row["resource_type"], row["resource_id"]) for row in found}
    return Changes(log, found, set(keys) - there)


def _may_change(row: Any) -> bool:
    return row["operation"] not in CHANGES_NOTHING and row["resource_id"] is not None


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
