"""Copy tenants from a snapshot of the source, follow it by its change columns, and write a tenant's rows on its shard.

A tenant is copied whole, or brought up to date by the rows with a newer `updated`. That may miss rows: those that a
query does not return any more, and those of long transactions. So a comparison of all rows comes before the activation.
A tenant that a round cannot bring up to date keeps its time: the next round reads it from there.

Why two runs at once do no harm: each leaves its token in the journal before it writes, and every transaction that
writes looks at the token first. So the earlier run ends at its next page, and the tenant begins again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import BulkChange, mark_bulk_change
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import check_registration, ensure_schema, has_schema
from simplu_worker.shards.settling import RowKey, SupersededError
from simplu_worker.shards.tenants.control_rules import timestamp_text
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import Chunk, Journal, Walker, run_in_pages
from simplu_worker.transfers.importing.queries import (
    DUPLICATES_MAX,
    RowSelection,
    SourceQuery,
    list_duplicates,
    sum_rows,
)
from simplu_worker.transfers.importing.rules import (
    TOO_MANY_DUPLICATES,
    TOO_MANY_REFUSED,
    HomeFacts,
    RefusedRow,
    SourceRow,
    SourceTenant,
    is_deleted,
    refusal_of_row,
)
from simplu_worker.transfers.importing.source import SourceReader
from simplu_worker.transfers.moving.checksums import Sums, TypeSum, sum_range
from simplu_worker.transfers.moving.copying import RESOURCES, find_end
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

REFUSED_MAX: Final = 100_000  # rows of one tenant, which are kept until all of it is read


class TakenRows(msgspec.Struct):
    """The rows of a tenant that were taken, by type, the number of those deleted, and those refused."""

    types: Sums = {}
    deleted: int = 0
    refused: list[RefusedRow] = []
    verified_on: Server | None = None  # the server with equal rows

    def add(self, resource_type: str, rows: TypeSum) -> None:
        """Add rows of one type."""
        if rows.row_count:
            self.types[resource_type] = self.types.get(resource_type, TypeSum()) + rows

    @property
    def total(self) -> TypeSum:
        """The rows of all types."""
        return sum(self.types.values(), TypeSum())


Wait: TypeAlias = Callable[[ShardPool, str], Awaitable[None]]


async def go_on_at_once(_: ShardPool, __: str) -> None:
    """Wait for nobody."""


class CopyCallbacks(msgspec.Struct, frozen=True):
    """Who is told of refused rows, of rows to read, and of rows read since the last call; and who waits.

    *wait_for_killed* waits until the command counts as killed that has begun an import of a tenant on a shard.
    """

    note_refused: Callable[[RefusedRow], None] = lambda _: None
    note_total: Callable[[int], None] = lambda _: None
    note_rows: Callable[[int], None] = lambda _: None
    wait_for_killed: Wait = go_on_at_once


class TenantRows(msgspec.Struct, frozen=True):
    """A tenant in a snapshot of the source, as *queries* return it: what an import asks its source."""

    reader: SourceReader
    queries: Sequence[SourceQuery]
    tenant: SourceTenant

    @property
    def tables(self) -> Sequence[RowSelection]:
        """The queries that return rows of the tenant."""
        return [self._select(one) for one in self.queries if self.tenant.row_counts.get(one.resource_type)]

    def read_pages(self, table: RowSelection) -> AsyncIterator[Sequence[SourceRow]]:
        """Yield the rows of one query."""
        return self.reader.read_rows(table)

    async def read_changes(self, since: datetime) -> AsyncIterator[Sequence[SourceRow]]:
        """Yield the rows changed *since*."""
        for query in self.queries:
            async for page in self.reader.read_rows(self._select(query, since)):
                yield page

    async def sum_rows(self) -> TakenRows:
        """Return the sums of all rows, and the number of those deleted."""
        taken, tables = TakenRows(), self.tables
        for row in await self.reader.fetch_all(sum_rows(tables)) if tables else ():
            rows = TypeSum(row["row_count"], int(row["byte_count"]), int(row["checksum"]))
            taken.add(row["resource_type"], rows)
            taken.deleted += row["deleted_count"]
        return taken

    def _select(self, query: SourceQuery, changed_since: datetime | None = None) -> RowSelection:
        tenant = self.tenant
        name = tenant.stored_names.get(query.resource_type, query.resource_type)
        return RowSelection(query, name, tenant.key, tenant.business_type or "", changed_since=changed_since)


async def take_rows(
    source: TenantRows, note_rows: Callable[[int], Awaitable[None]], target: TargetTenant | None
) -> TakenRows:
    """Read all rows of a tenant, and write those that can be taken to *target*; in a plan there is none."""
    taken = TakenRows()
    duplicates = await _find_duplicates(source.reader, source.tables)
    for table in source.tables:
        async for page in source.read_pages(table):
            rows = []
            for row in page:
                reason = refusal_of_row(row, duplicates)
                if reason is not None:
                    key = source.tenant.key
                    taken.refused.append(RefusedRow(key, row.resource_type, row.resource_id, reason))
                elif is_deleted(row):
                    taken.deleted += 1
                else:
                    rows.append(row)
                    taken.add(row.resource_type, row.sum)
            if len(taken.refused) > REFUSED_MAX:
                raise PermanentError(TOO_MANY_REFUSED)
            if target is not None and rows:
                await target.write(rows)
            await note_rows(len(page))
    return taken


async def take_changes(
    source: TenantRows, since: datetime, note_rows: Callable[[int], Awaitable[None]], target: TargetTenant
) -> int:
    """Write the rows changed *since*, delete those without a document; return their number."""
    count = 0
    async for page in source.read_changes(since):
        taken = [row for row in page if refusal_of_row(row, ()) is None]
        if deleted := [(row.resource_type, row.resource_id) for row in taken if is_deleted(row)]:
            await target.delete(deleted)
        if rows := [row for row in taken if not is_deleted(row)]:
            await target.write(rows)
        await note_rows(len(page))
        count += len(taken)
    return count


async def _find_duplicates(reader: SourceReader, selections: Sequence[RowSelection]) -> set[tuple[str, str]]:
    if not selections:
        return set()
    rows = await reader.fetch_all(list_duplicates(selections))
    if len(rows) > DUPLICATES_MAX:
        raise PermanentError(TOO_MANY_DUPLICATES)
    return {(row["resource_type"], row["resource_id"]) for row in rows}


CLEAR_MAX_ROWS: Final = 5000  # in one transaction
AT_REST: Final = {"stopped": True}  # in the journal: no command is at work on the tenant


async def read_homes(pool: ShardPool, tenant_ids: Sequence[str]) -> list[HomeFacts]:
    """Return the rows that a shard has for tenants, with their imports. Raises `RetryableError`."""
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        rows = await connection.fetch(QUERIES["find_imports"], tenant_ids)
    return [HomeFacts(**dict(row) | {"shard_id": shard_id, "state": TenantState(row["state"])}) for row in rows]


async def read_open_imports(pool: ShardPool, source: str | None) -> list[dict[str, Any]]:
    """Return the tenants that an import, from *source* if given, has not activated. Raises `RetryableError`."""
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        return [dict(row) for row in await connection.fetch(QUERIES["find_open_imports"], source)]


async def find_shard_problem(pool: ShardPool, business_types: Iterable[str]) -> str | None:
    """Return why tenants of *business_types* cannot be imported to a shard; None if they can.

    Makes the schema of an empty shard. Raises `RetryableError` if the shard does not answer.
    """
    await ensure_schema(pool)
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        rows = await connection.fetch(QUERIES["find_missing_types"], sorted(set(business_types)))
        if await connection.fetchval(QUERIES["is_drained"]):
            return describe_drained(shard_id)
    if rows:
        missing = ", ".join(row["name"] for row in rows)
        return f"shard {shard_id} lacks the business types {missing}; write them with `simplu-worker types apply`"
    return None


async def make_incoming(pool: ShardPool, tenants: Sequence[SourceTenant], *, source: str, token: str) -> None:
    """Insert tenants as `incoming`, with their imports, unless they have a row. Raises `RetryableError`."""
    async with pool.transaction() as connection:
        names = [(one.tenant_id, one.business_id, one.location_id, one.business_type) for one in tenants]
        made = await connection.fetch(QUERIES["make_incoming_tenants"], *map(list, zip(*names, strict=True)))
        for row in made:
            journal = Journal(row["id"], TransferKind.IMPORT, token)
            await journal.open(connection, TransferStep.OPEN, place=source, detail=AT_REST)
        await check_registration(connection)


class TargetTenant:
    """The rows of one tenant on the shard of *pool*, for the run with *token*."""

    def __init__(self, pool: ShardPool, tenant_id: str, *, token: str) -> None:
        self._pool = pool
        self.shard_id = pool.address.shard_id
        self._tenant_id = tenant_id
        self.journal = Journal(tenant_id, TransferKind.IMPORT, token)

    async def clear(self, step: TransferStep = TransferStep.OPEN) -> int:
        """Delete all rows of the tenant, and return their number; nothing goes on from them any more."""

        async def delete(limit: int) -> int:
            async with self._fenced(StatementBudget.KEY_RANGE) as connection:
                await self.journal.note(connection, step, {})
                dropped = await connection.execute(QUERIES["drop_resources"], self._tenant_id, limit)
                if deleted := affected_count(dropped):
                    await mark_bulk_change(connection, BulkChange.IMPORTED, self._tenant_id)
            return deleted

        return await run_in_pages(delete, limit=CLEAR_MAX_ROWS)

    async def write(self, rows: Sequence[SourceRow]) -> None:
        """Write rows that may be taken, in one statement."""
        values = [(one.resource_type, one.resource_id, one.document, one.created, one.changed) for one in rows]
        async with self._fenced() as connection:
            columns = map(list, zip(*values, strict=True))
            await connection.execute(QUERIES["write_imported"], self._tenant_id, self._business_type, *columns)
            await mark_bulk_change(connection, BulkChange.IMPORTED, self._tenant_id)

    async def delete(self, keys: Sequence[tuple[str, str | None]]) -> None:
        """Delete the resources with these types and ids, if they are there."""
        kinds, ids = [kind for kind, _ in keys], [resource_id for _, resource_id in keys]
        async with self._fenced() as connection:
            await connection.execute(QUERIES["delete_resources_named"], self._tenant_id, kinds, ids)
            await mark_bulk_change(connection, BulkChange.IMPORTED, self._tenant_id)

    async def sum_rows(self) -> tuple[Sums, Server]:
        """Return the sums of the tenant's rows by type, as the shard computes them, in one run of one server."""
        sums: Sums = {}
        servers: list[Server] = []

        async def add(after: RowKey, row_count: int) -> Chunk:
            began_at = loop_time()
            async with self._fenced(StatementBudget.KEY_RANGE) as connection:
                server = await note_server(connection)
                answer_s = loop_time() - began_at
                end = await find_end(connection, RESOURCES, self._tenant_id, after, row_count)
                part = await sum_range(connection, self._tenant_id, after, end)
            servers.append(server)
            self._check_server(server, servers[0])
            for name, one in part.items():
                sums[name] = sums.get(name, TypeSum()) + one
            return Chunk(end, row_count, answer_s)

        await Walker().walk(add)
        return sums, servers[0]

    async def note(self, step: TransferStep, detail: object) -> None:
        """Store the step of the import, and its details."""
        async with self._fenced() as connection:
            await self.journal.note(connection, step, detail)

    async def activate(self, certificate: object, imported_at: datetime, *, verified_on: Server | None) -> Server:
        """Make the tenant active with its default row, and store *certificate*; return the server of the commit.

        Raises `RetryableError` if the rows were verified in another run of the server.
        """
        async with self._pool.transaction() as connection:
            await self._lock(connection)
            times = [timestamp_text(imported_at)]
            await connection.execute(QUERIES["add_default_rows"], [self._tenant_id], [self._business_type], times)
            await connection.execute(QUERIES["activate_incoming"], self._tenant_id)
            await mark_bulk_change(connection, BulkChange.IMPORTED, self._tenant_id)  # followers read it from now on
            await self.journal.note(connection, TransferStep.DONE, certificate)
            server = await note_server(connection)
            self._check_server(server, verified_on)
        return server

    async def discard(self) -> int:
        """Delete the tenant's rows, its row and the import; return the number of its rows."""
        async with self._pool.transaction() as connection:
            await self.journal.take(connection, TransferStep.UNDOING)
        count = await self.clear(TransferStep.UNDOING)
        async with self._fenced() as connection:
            await connection.execute(QUERIES["drop_incoming"], self._tenant_id, 0)
            await connection.execute(QUERIES["drop_transfer"], self._tenant_id, TransferKind.IMPORT)
        return count

    @contextlib.asynccontextmanager
    async def _fenced(self, budget: StatementBudget = StatementBudget.USUAL) -> AsyncIterator[Connection]:
        async with self._pool.transaction(budget=budget) as connection:
            await self._lock(connection)
            yield connection

    async def _lock(self, connection: Connection) -> None:
        self._business_type = await connection.fetchval(QUERIES["lock_import"], self._tenant_id, self.journal.token)
        if self._business_type is None:
            raise superseded(self.shard_id, self._tenant_id)

    def _check_server(self, server: Server, expected: Server | None) -> None:
        if server != expected:
            raise RetryableError(
                f"shard {self.shard_id}: the rows of {self._tenant_id} were verified on another server,"
                " or before it restarted; run this again"
            )


def superseded(shard_id: str, tenant_id: str) -> SupersededError:
    """Return the error of a run that is not the last one that has begun."""
    return SupersededError(
        f"shard {shard_id}: another run has taken over the import of {tenant_id}, or has ended it; run this again"
    )
