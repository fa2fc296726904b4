"""A tenant's changes are read from the log of all tenants, in statements of a bounded size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from support.postgres.databases import ShardMaker, stop_autovacuum

from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.postgres.pool import Connection, Pools
from simplu_worker.transfers.moving.copying import PAGE_ROWS, read_changed_keys, read_log

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
# A batch a millisecond, but that of every 500 five have the same time. Every tenth is of the tenant `own`.
ADD_ROWS = """
WITH made AS (
    INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
    SELECT id, id, id, 'dental', 'active', $1, $1
    FROM unnest('{own,small}'::text[] || ARRAY(SELECT 'other-' || number FROM generate_series(0, 6) AS number)) AS id
    RETURNING id, number
), numbered AS (
    SELECT sent.number, made.number AS tenant_no
    FROM generate_series(1, $2::int) AS sent (number)
    JOIN made ON made.id = CASE WHEN sent.number % 10 = 0 THEN 'own' ELSE 'other-' || sent.number % 7 END
), batches AS (
    INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
    SELECT number, $1::timestamptz
        + make_interval(secs => (number - CASE WHEN number % 500 < 5 THEN number % 5 ELSE 0 END) * 0.001),
        1, 'o', ARRAY[tenant_no], '{order}', '{kinesis}'
    FROM numbered
)
INSERT INTO log_rows (batch_id, requested_at, received_at, tenant_no, position, type_at, origin_at, kind, digest,
    request, resource)
SELECT number, $1, $1, tenant_no, 0, 1, 1, 'u', '\\x01', simplu_key('q' || number), simplu_key('r' || number)
FROM numbered
"""
ROW_COUNT = 12_000


@pytest.fixture
async def shard(make_shard: ShardMaker) -> AsyncIterator[Connection]:
    address = await make_shard()
    await stop_autovacuum(address.connection_string, "log_batches", "log_rows", "tenants")
    async with Pools(size=1) as pools, pools.ensure_pool(address).connection() as connection:
        # A shard that other tests have used has pages of deleted rows, in its indexes too.
        await connection.execute("TRUNCATE log_batches, log_rows, log_outcomes, tenants CASCADE")
        await connection.execute(ADD_ROWS, BEGIN, ROW_COUNT)
        await connection.execute("VACUUM ANALYZE log_batches, log_rows")
        yield connection


@pytest.mark.parametrize(
    "scanned_rows", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (50_000, 3000, 700))]
)
async def test_log_of_a_tenant_is_read_completely_and_once_however_it_is_cut(
    shard: Connection, scanned_rows: int
) -> None:
    start = BEGIN + timedelta(seconds=11.5 if scanned_rows == 3 else 0.5)
    expected = [
        row["key"]
        for row in await shard.fetch(
            "SELECT encode(request_key, 'hex') AS key FROM operations WHERE tenant_id = 'own' AND completed_at >= $1"
            " ORDER BY completed_at, request_key",
            start,
        )
    ]
    pages = [[row["key"] for row in page] async for page in read_log(shard, "own", start, scanned_rows=scanned_rows)]
    assert [key for page in pages for key in page] == expected
    assert all(0 < len(page) <= PAGE_ROWS for page in pages)


async def test_changed_keys_are_those_of_the_tenant_since_a_time(shard: Connection) -> None:
    keys, requests = await read_changed_keys(shard, "own", BEGIN + timedelta(seconds=13.995))
    assert requests == {key_of_id("q12000")}
    assert keys == {("order", "r12000")}
