"""Operations as tests send them to shards, and what the shards hold afterwards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck

from simplu_local.workload.json_values import JsonValue, parse_json
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.limits import NO_LIMIT, Limit
from simplu_worker.operations.operation import Operation, Origin, Outcome
from simplu_worker.shards.apply.duplicates import DuplicateMemory
from simplu_worker.shards.apply.write_attempt import SUCCEEDED, ShardMemory
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.vocabulary import Failure, Source

STREAM = "resources-operations"
STREAM_SHARD_ID = "shardId-000000000000"
ARRIVED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
TENANT_MADE_AT = ARRIVED_AT - timedelta(days=1)
TENANT_WAIT = timedelta(seconds=900)
TENANT = ("clinic", "main")
# For examples that share a fixture's shard: each makes tenants or rows of its own.
NO_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

_numbers = itertools.count(1)


def failed(failure: Failure) -> Outcome:
    return Outcome(disposition=SUCCEEDED.disposition, failure=failure)


def operation(
    kind: str,
    resource_id: str | None = "r1",
    data: str | dict[str, Any] | None = None,
    *,
    tenant: tuple[str, str] = TENANT,
    resource_type: str = "patient",
    request_id: str | None = None,
    timestamp: str = "2026-03-01T12:00:00Z",
    filters: str | dict[str, Any] | None = None,
    pagination: str | dict[str, Any] | None = None,
    sequence_number: str | None = None,
    source: Source = Source.KINESIS,
    arrived_at: datetime = ARRIVED_AT,
    list_limit: int = 1000,
) -> Operation:
    """Return the operation of a record with these members, decoded as the worker decodes it.

    *data*, *filters* and *pagination* are JSON text or what becomes of it; without *request_id* it is a new one.
    """
    number = next(_numbers)
    texts = {
        "operation": kind,
        "businessId": tenant[0],
        "locationId": tenant[1],
        "resourceType": resource_type,
        "resourceId": resource_id,
        "timestamp": timestamp,
        "requestId": request_id or f"request-{number}",
    }
    raw = {"data": data, "filters": filters, "pagination": pagination}
    members = [f'"{name}": {json.dumps(value)}' for name, value in texts.items() if value is not None]
    members += [
        f'"{name}": {value if isinstance(value, str) else json.dumps(value)}'
        for name, value in raw.items()
        if value is not None
    ]
    origin = Origin(
        source=source,
        name=STREAM,
        arrived_at=arrived_at,
        stream_shard_id=STREAM_SHARD_ID if source is Source.KINESIS else None,
        sequence_number=sequence_number or (str(number) if source is Source.KINESIS else None),
    )
    record = f"{{{', '.join(members)}}}".encode()
    decoded = decode_operation(record, origin, max_bytes=2**24, list_limit=list_limit)
    assert isinstance(decoded, Operation), decoded
    return decoded


def writer_of(pool: ShardPool, *, careful_count: int = 0, default_limit: Limit = NO_LIMIT) -> ShardWriter:
    """Return a writer that hardly rests between two races.

    It tries every batch by plain inserts, and goes the way back at every duplicate, unless there is a *careful_count*.
    """
    memory = ShardMemory(duplicates=DuplicateMemory(careful_count=careful_count))
    return ShardWriter(pool, tenant_wait=TENANT_WAIT, draw=lambda: 0.01, memory=memory, default_limit=default_limit)


async def add_tenant(
    pool: ShardPool,
    tenant: tuple[str, str] = TENANT,
    *,
    state: str = "active",
    business_type: str = "dental",
    created_at: datetime = TENANT_MADE_AT,
    moved_to: str | None = None,
) -> None:
    await fetch(
        pool,
        "INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at, moved_to)"
        " VALUES ($1, $2, $3, $4, $5, $6, $6, $7)",
        "-".join(tenant),
        *tenant,
        business_type,
        state,
        created_at,
        moved_to,
    )


async def add_tenant_at(address: ShardAddress, tenant: tuple[str, str] = TENANT) -> None:
    pool = ShardPool(address, size=1)
    await add_tenant(pool, tenant)
    await pool.close()


async def fetch(pool: ShardPool, query: str, *arguments: Any) -> list[dict[str, Any]]:
    async with pool.connection() as connection:
        return [dict(row) for row in await connection.fetch(query, *arguments)]


def in_batches(operations: Sequence[Operation], sizes: Sequence[int]) -> list[list[Operation]]:
    """Cut *operations* into batches of *sizes*, which are taken in turn for as long as there are any."""
    batches = []
    rest = list(operations)
    for size in itertools.cycle(sizes):
        if not rest:
            break
        batches.append(rest[:size])
        rest = rest[size:]
    return batches


@dataclass(frozen=True)
class TenantCase:
    """One tenant on one shard: makes its operations, applies them, and reads its rows."""

    pool: ShardPool
    ids: tuple[str, str]

    @property
    def tenant_id(self) -> str:
        return "-".join(self.ids)

    def operation(self, kind: str, resource_id: str | None = "r1", data: Any = None, **members: Any) -> Operation:
        return operation(kind, resource_id, data, tenant=self.ids, **members)

    async def apply(self, *operations: Operation) -> list[Outcome]:
        return await writer_of(self.pool).apply(operations)

    async def apply_each(self, *operations: Operation) -> list[Outcome]:
        writer = writer_of(self.pool)
        return [(await writer.apply([one]))[0] for one in operations]

    async def give_up(self, operation: Operation) -> Outcome:
        return await writer_of(self.pool).give_up(operation)

    async def set_state(self, state: str) -> None:
        await fetch(self.pool, "UPDATE tenants SET state = $2 WHERE id = $1", self.tenant_id, state)

    async def resources(self) -> dict[tuple[str, str], JsonValue]:
        query = 'SELECT "resourceName", "resourceId", data::text FROM public.resources WHERE id = $1'
        rows = await fetch(self.pool, query, self.tenant_id)
        return {(row["resourceName"], row["resourceId"]): parse_json(row["data"]) for row in rows}

    async def log(self) -> dict[str, tuple[str, str | None]]:
        query = "SELECT request_id, status, error FROM operations WHERE tenant_id = $1"
        rows = await fetch(self.pool, query, self.tenant_id)
        return {row["request_id"]: (row["status"], row["error"]) for row in rows}

    async def everything(self) -> list[Any]:
        """Return every row of the tenant, for a comparison of before and after; marks and outcomes too."""
        queries = (
            'SELECT *, ctid FROM resources WHERE id = $1 ORDER BY "resourceName", "resourceId"',
            """
            SELECT log_rows.*, log_rows.ctid, log_outcomes AS outcome
            FROM log_rows
            LEFT JOIN log_outcomes USING (batch_id, position)
            WHERE log_rows.tenant_no = (SELECT number FROM tenants WHERE id = $1)
            ORDER BY request
            """,
        )
        return [await fetch(self.pool, query, self.tenant_id) for query in queries]

    async def result(self, operation: Operation) -> Any:
        query = "SELECT result::text FROM operations WHERE tenant_id = $1 AND request_id = $2"
        (row,) = await fetch(self.pool, query, self.tenant_id, operation.request_id)
        return None if row["result"] is None else parse_json(row["result"])


async def log_row(tenant: TenantCase, request_id: str) -> dict[str, Any]:
    (row,) = await fetch(
        tenant.pool,
        "SELECT *, result::text, pg_xact_status(xid) AS xact FROM operations WHERE tenant_id = $1 AND request_id = $2",
        tenant.tenant_id,
        request_id,
    )
    return row
