"""The rows of an import on the shard of a tenant, and its row in the journal.

Why two runs at once do no harm: each leaves its token in the journal before it writes, and every transaction that
writes looks at the token first. So the earlier run ends at its next page, and the tenant begins again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import BulkChange, mark_bulk_change, mark_changes
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.schema.schema_check import check_registration, ensure_schema, has_schema
from simplu_worker.shards.settling import RowKey, Transfer
from simplu_worker.shards.tenants.control_rules import DEFAULT_ROW, timestamp_text
from simplu_worker.shards.tenants.provisioning import describe_drained
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import Chunk, Walker, run_in_pages
from simplu_worker.transfers.importing.rules import HomeFacts, SourceRow, SourceTenant
from simplu_worker.transfers.journal import Journal
from simplu_worker.transfers.moving.checksums import Sums, TypeSum, sum_range
from simplu_worker.transfers.moving.copying import RESOURCES, find_end
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

CLEAR_MAX_ROWS: Final = 5000  # in one transaction


class ImportTakenError(RetryableError):
    """Another run has taken over the import of the tenant, or its row on the shard has changed."""


async def read_homes(pool: ShardPool, tenant_ids: Sequence[str]) -> list[HomeFacts]:
    """Return the rows that a shard has for tenants, with their imports. Raises `RetryableError`."""
    shard_id = pool.address.shard_id
    async with pool.connection() as connection:
        if not await has_schema(connection, pool):
            return []
        rows = await connection.fetch(QUERIES["find_imports"], tenant_ids)
    return [HomeFacts(**dict(row) | {"shard_id": shard_id, "state": TenantState(row["state"])}) for row in rows]


async def read_open_imports(pool: ShardPool, source: str) -> list[dict[str, Any]]:
    """Return the tenants that an import from *source* has not activated. Raises `RetryableError`."""
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
        await connection.fetch(
            QUERIES["make_incoming_tenants"],
            [one.tenant_id for one in tenants],
            [one.business_id for one in tenants],
            [one.location_id for one in tenants],
            [one.business_type for one in tenants],
            source,
            token,
        )
        await check_registration(connection)


class TargetTenant:
    """The rows of one tenant on the shard of *pool*, for the run with *token*."""

    def __init__(self, pool: ShardPool, tenant_id: str, *, token: str) -> None:
        self._pool = pool
        self._tenant_id = tenant_id
        self._journal = Journal(tenant_id, TransferKind.IMPORT, token)

    async def take_over(self) -> Transfer:
        """Make this run the only one that writes the tenant's rows. Raises `ImportTakenError` if it is activated."""
        async with self._pool.transaction() as connection:
            taken = await self._journal.take(connection)
        if taken is None:
            raise self._taken()
        return taken

    async def clear(self) -> int:
        """Delete all rows of the tenant, and return their number."""

        async def delete(limit: int) -> int:
            async with self._fenced(StatementBudget.KEY_RANGE) as connection:
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
            await self._journal.note(connection, step, detail)

    async def activate(self, certificate: object, imported_at: datetime, *, verified_on: Server | None) -> Server:
        """Make the tenant active with its default row, and store *certificate*; return the server of the commit.

        Raises `RetryableError` if the rows were verified in another run of the server.
        """
        async with self._pool.transaction() as connection:
            await self._lock(connection)
            times = [timestamp_text(imported_at)]
            added = await connection.fetch(QUERIES["add_default_rows"], [self._tenant_id], [self._business_type], times)
            await mark_changes(connection, [(one["id"], *DEFAULT_ROW) for one in added])
            await connection.execute(QUERIES["activate_incoming"], self._tenant_id)
            await self._journal.note(connection, TransferStep.DONE, certificate)
            server = await note_server(connection)
            self._check_server(server, verified_on)
        return server

    async def discard(self) -> int:
        """Delete the tenant's rows, its row and the import; return the number of its rows."""
        await self.take_over()
        count = await self.clear()
        async with self._fenced() as connection:
            if affected_count(await connection.execute(QUERIES["delete_incoming_tenant"], self._tenant_id)):
                await connection.execute(QUERIES["drop_transfer"], self._tenant_id, TransferKind.IMPORT)
        return count

    @contextlib.asynccontextmanager
    async def _fenced(self, budget: StatementBudget = StatementBudget.USUAL) -> AsyncIterator[Connection]:
        async with self._pool.transaction(budget=budget) as connection:
            await self._lock(connection)
            yield connection

    async def _lock(self, connection: Connection) -> None:
        self._business_type = await connection.fetchval(QUERIES["lock_import"], self._tenant_id, self._journal.token)
        if self._business_type is None:
            raise self._taken()

    def _check_server(self, server: Server, expected: Server | None) -> None:
        if server != expected:
            raise RetryableError(
                f"shard {self._pool.address.shard_id}: the rows of {self._tenant_id} were verified on another server,"
                " or before it restarted; run this again"
            )

    def _taken(self) -> ImportTakenError:
        return ImportTakenError(
            f"shard {self._pool.address.shard_id}: another run has taken over the import of {self._tenant_id}, or"
            " has ended it"
        )
