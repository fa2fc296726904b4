"""A tenant's changes are read from the log of all tenants, in statements of a bounded size."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from support.postgres.databases import QUICK, ShardMaker

from simplu_worker.shards.postgres.pool import Connection, Pools
from simplu_worker.transfers.moving.changes import PAGE_ROWS, read_changed_keys, read_log
from simplu_worker.transfers.sql_files import QUERIES

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
# Every tenth row is of the tenant `own`, and of every 500 rows five have the same time.
ADD_ROWS = """
INSERT INTO operations (
    tenant_id, request_id, operation, resource_type, resource_id, status, digest, source, requested_at, received_at,
    completed_at
)
SELECT
    CASE WHEN number % 10 = 0 THEN 'own' ELSE 'other-' || number % 7 END, 'q' || number, 'update', 'order',
    'r' || number, 'succeeded', '\\x01', 'kinesis', $1, $1,
    $1::timestamptz + make_interval(secs => (number - CASE WHEN number % 500 < 5 THEN number % 5 ELSE 0 END) * 0.001)
FROM generate_series(1, $2::int) AS number
"""
ROW_COUNT = 12_000


@pytest.fixture
async def shard(make_shard: ShardMaker) -> AsyncIterator[Connection]:
    """Give a connection to a shard whose log has rows of several tenants."""
    address = await make_shard()
    async with Pools(size=1, timeouts=QUICK) as pools, pools.ensure_pool(address).connection() as connection:
        await connection.execute(ADD_ROWS, BEGIN, ROW_COUNT)
        await connection.execute("VACUUM ANALYZE operations")
        yield connection


@pytest.mark.parametrize(
    ("scanned_rows", "few_rows"), [(50_000, 0), (3000, 0), (700, 0), (3, 0), (700, ROW_COUNT), (50_000, ROW_COUNT)]
)
async def test_log_of_a_tenant_is_read_completely_and_once_however_it_is_cut(
    shard: Connection, scanned_rows: int, few_rows: int
) -> None:
    """In order of time, also where a part ends among rows of one instant, and where an instant has more than a part."""
    start = BEGIN + timedelta(seconds=11.5 if scanned_rows == 3 else 0.5)
    expected = [
        row["request_id"]
        for row in await shard.fetch(
            "SELECT request_id FROM operations WHERE tenant_id = 'own' AND completed_at >= $1"
            " ORDER BY completed_at, request_id",
            start,
        )
    ]
    pages = [
        [row["request_id"] for row in page]
        async for page in read_log(shard, "own", start, scanned_rows=scanned_rows, few_rows=few_rows)
    ]
    assert [request_id for page in pages for request_id in page] == expected
    assert all(0 < len(page) <= PAGE_ROWS for page in pages)


async def test_changed_keys_are_those_of_the_tenant_since_a_time(shard: Connection) -> None:
    """With the requests; a little more than since then, for a clock that was set back."""
    keys, requests = await read_changed_keys(shard, "own", BEGIN + timedelta(seconds=13.995))
    assert requests == {"q12000"}
    assert keys == {("order", "r12000")}


@pytest.mark.parametrize("start_s", [1.0, 11.0])
async def test_few_rows_of_a_tenant_are_read_without_those_of_others(shard: Connection, start_s: float) -> None:
    """By primary key, however long ago the time is."""
    await shard.execute("UPDATE operations SET tenant_id = 'small' WHERE request_id IN ('q10', 'q11500')")
    await shard.execute("VACUUM ANALYZE operations")
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {QUERIES['read_few_logged_changes']}"
    start = f"'{(BEGIN + timedelta(seconds=start_s)).isoformat()}'"
    for name, value in (
        ("$1", "'small'"),
        ("$2", start),
        ("$3", start),
        ("$4", "''"),
        ("$5", "10"),
        ("$6", "'infinity'"),
    ):
        explain = explain.replace(name, value)
    ((plan,),) = await shard.fetch(explain)
    (measured,) = json.loads(plan)
    assert measured["Plan"]["Actual Rows"] == 1
    assert measured["Plan"]["Shared Hit Blocks"] + measured["Plan"]["Shared Read Blocks"] < 20
