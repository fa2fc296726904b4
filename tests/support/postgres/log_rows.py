"""Rows of the operation log with times of one's own, as a long history would leave them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from support.postgres.tenant_cases import fetch

from simplu_worker.shards.postgres.pool import ShardPool

COMPLETED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
INSERT = """
INSERT INTO operations (tenant_id, request_id, operation, resource_type, resource_id, status, error, digest, source,
    requested_at, received_at, completed_at)
SELECT tenant_id, request_id, 'update', resource_type, nullif(resource_id, ''),
    CASE error WHEN '' THEN 'succeeded' ELSE 'failed' END, nullif(error, ''), '', 'kinesis', '2026-01-01', '2026-01-01',
    timestamptz '2026-03-01 12:00Z' + micros::bigint * interval '1 microsecond'
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS rows (tenant_id, request_id, resource_type, resource_id, error, micros)
"""
CROWD = """
INSERT INTO operations (tenant_id, request_id, operation, resource_type, resource_id, status, digest, source,
    requested_at, received_at, completed_at)
SELECT $1, 'c' || number, 'update', 'patient', 'p' || number, 'succeeded', '', 'kinesis', '2026-01-01', '2026-01-01',
    timestamptz '2026-03-01 12:00Z' - number * interval '1 second'
FROM generate_series(1, $2::integer) AS number
ORDER BY md5(number::text)
"""


class LogRow(NamedTuple):
    """One row, completed *micros* after COMPLETED_AT; without *error* the operation succeeded."""

    tenant_id: str
    request_id: str
    micros: int = 0
    resource_type: str = "patient"
    resource_id: str | None = "p1"
    error: str | None = None

    @property
    def completed_at(self) -> datetime:
        """The time of completion."""
        return COMPLETED_AT + timedelta(microseconds=self.micros)


async def write_log_rows(pool: ShardPool, rows: Iterable[LogRow]) -> None:
    """Write *rows* into the log."""
    texts = [
        (row.tenant_id, row.request_id, row.resource_type, row.resource_id or "", row.error or "", str(row.micros))
        for row in rows
    ]
    await fetch(pool, INSERT, *map(list, zip(*texts, strict=True)))


async def crowd_log(pool: ShardPool, tenant_id: str, count: int) -> None:
    """Write *count* rows of a tenant, one a second, the newest of COMPLETED_AT less a second; in no order."""
    await fetch(pool, CROWD, tenant_id, count)
