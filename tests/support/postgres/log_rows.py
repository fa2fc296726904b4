"""Rows of the operation log with times of one's own, as a long history would leave them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.pool import ShardPool

COMPLETED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOG_TABLES: Final = ("log_batches", "log_rows", "log_outcomes")
# The values of columns that `made_up_rows` is not given. Each row is a batch of its own, unless `batch` is the same.
DEFAULTS: Final = {
    "batch": "row_number() OVER ()",
    "operation": "'update'",
    "resource_type": "'patient'",
    "resource_id": "'p1'",
    "error": "NULL",
    "sequence_number": "NULL",
    "digest": "''",
    "origin": "'kinesis'",
    "requested_at": "'2026-01-01'",
    "received_at": "'2026-01-01'",
    "completed_at": "now()",
}
TYPES: Final = {
    "batch": "bigint",
    "digest": "bytea",
    "requested_at": "timestamptz",
    "received_at": "timestamptz",
    "completed_at": "timestamptz",
}
# Batches have the numbers that copied ones have: no other transaction takes one of them.
STATEMENT: Final = """
WITH given AS (
    SELECT {columns} FROM {source}
), sent AS MATERIALIZED (
    SELECT
        given.*, tenants.number AS tenant_no,
        -1048576 * pg_current_xact_id()::text::bigint - batch AS batch_id,
        (row_number() OVER (PARTITION BY batch ORDER BY request_id))::smallint AS position
    FROM given
    LEFT JOIN tenants ON tenants.id = tenant_id -- fails without a tenant
), batches AS (
    INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
    SELECT
        batch_id, max(completed_at), count(*), 'c', array_agg(DISTINCT tenant_no),
        array_agg(resource_type ORDER BY position), array_agg(origin ORDER BY position)
    FROM sent
    GROUP BY batch_id
), outcomes AS (
    INSERT INTO log_outcomes (batch_id, position, tenant_no, error, sequence_number)
    SELECT batch_id, position, tenant_no, error, sequence_number FROM sent WHERE error IS NOT NULL
)
INSERT INTO log_rows (
    batch_id, position, tenant_no, request, kind, type_at, resource, origin_at, requested_at, received_at, digest
)
SELECT
    batch_id, position, tenant_no, simplu_key(request_id), left(operation, 1)::"char", position,
    simplu_key(resource_id), position, requested_at, received_at, digest
FROM sent
"""


def made_up_rows(
    source: str = "(VALUES (1)) AS one (number)", *, tenant_id: str, request_id: str, **columns: str
) -> str:
    """Return a statement that inserts a row of the log for each row of *source*, an item of FROM.

    *columns* are those of DEFAULTS, and all of them SQL expressions over *source*. The tenants must have rows. An error
    makes the operation a failed one; the `origin` is a source, or `source/stream shard`.
    """
    unknown = columns.keys() - DEFAULTS.keys()
    assert not unknown, unknown
    wanted = {"tenant_id": tenant_id, "request_id": request_id} | DEFAULTS | columns
    typed = ", ".join(f"({expression})::{TYPES.get(name, 'text')} AS {name}" for name, expression in wanted.items())
    return STATEMENT.format(columns=typed, source=source)


class LogRow(NamedTuple):
    """One row, completed *micros* after COMPLETED_AT; without *error* the operation succeeded.

    Rows of one time with the same *batch* are in one batch; without, each is a batch of its own.
    """

    tenant_id: str
    request_id: str
    micros: int = 0
    resource_type: str = "patient"
    resource_id: str | None = "p1"
    error: str | None = None
    batch: str = ""

    @property
    def completed_at(self) -> datetime:
        return COMPLETED_AT + timedelta(microseconds=self.micros)


INSERT: Final = made_up_rows(
    "unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])"
    " AS given (tenant, request, type, resource, failure, micros, batch)",
    tenant_id="tenant",
    request_id="request",
    batch="batch",
    resource_type="type",
    resource_id="nullif(resource, '')",
    error="nullif(failure, '')",
    completed_at="timestamptz '2026-03-01 12:00Z' + micros::bigint * interval '1 microsecond'",
)
CROWD: Final = made_up_rows(
    "(SELECT number FROM generate_series(1, $2::integer) AS number ORDER BY md5(number::text)) AS crowd",
    tenant_id="$1",
    request_id="'c' || number",
    resource_id="'p' || number",
    completed_at="timestamptz '2026-03-01 12:00Z' - number * interval '1 second'",
)


async def write_log_rows(pool: ShardPool, rows: Iterable[LogRow]) -> None:
    named = list(rows)
    batches = [(row.micros, row.batch or number) for number, row in enumerate(named)]
    numbers = {batch: str(number) for number, batch in enumerate(dict.fromkeys(batches), 1)}
    texts = [
        (
            row.tenant_id,
            row.request_id,
            row.resource_type,
            row.resource_id or "",
            row.error or "",
            str(row.micros),
            numbers[batch],
        )
        for row, batch in zip(named, batches, strict=True)
    ]
    await fetch(pool, INSERT, *map(list, zip(*texts, strict=True)))


async def crowd_log(pool: ShardPool, tenant_id: str, count: int) -> None:
    """Write *count* rows of a tenant, one a second, the newest of COMPLETED_AT less a second; in no order."""
    await fetch(pool, CROWD, tenant_id, count)


async def empty_log(pool: ShardPool) -> None:
    for table in LOG_TABLES:
        await fetch(pool, f"DELETE FROM {table}")
