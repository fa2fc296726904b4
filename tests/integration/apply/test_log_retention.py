from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.postgres.databases import ShardMaker, execute
from support.postgres.log_rows import made_up_rows
from support.postgres.tenant_cases import fetch

from simplu_local.postgres.server import PostgresServer
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.source_retention import EffectiveRetention
from simplu_worker.shards.log import LogRetention
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts

DAY = timedelta(days=1)
TENANT = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
VALUES ('b-l', 'b', 'l', 'dental', 'active', '2020-01-01', '2020-01-01')
ON CONFLICT DO NOTHING
"""
ADD_ROWS = made_up_rows(
    "generate_series(0, $3::int - 1) AS number",
    tenant_id="'b-l'",
    request_id="$1::text || number",
    batch="number / $4::int",
    error="CASE WHEN number % 2 = 0 THEN 'not_found' END",
    completed_at="now() - make_interval(secs => $2 + (number / $4::int) * 0.001)",
)
OUTCOMES_OF_NONE = """
SELECT count(*) FROM log_outcomes WHERE (batch_id, position) NOT IN (SELECT batch_id, position FROM log_rows)
"""

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow]


@pytest.fixture
async def pools(make_shard: ShardMaker) -> AsyncIterator[Pools]:  # closed before its shards are given back
    async with Pools(size=2) as opened:
        yield opened


def keeps(retention: timedelta | None) -> Any:
    async def window() -> timedelta | None:
        return retention

    return window


async def add_rows(address: ShardAddress, name: str, *, age: timedelta, count: int, batch_rows: int = 1) -> None:
    """Put rows of that age into a shard's log, *batch_rows* in a batch; half of them have an outcome too."""
    await execute(address.connection_string, TENANT)
    await execute(address.connection_string, ADD_ROWS, name, age.total_seconds(), count, batch_rows)


async def left_on(address: ShardAddress) -> int:
    """Return how many rows the log of a shard has; all of them have a batch, and nothing is left of others."""
    connection = await asyncpg.connect(address.connection_string)
    try:
        async with connection.transaction(isolation="repeatable_read"):  # retention may delete meanwhile
            count = int(await connection.fetchval("SELECT count(*) FROM log_rows"))
            assert await connection.fetchval("SELECT count(*) FROM operations") == count
            assert await connection.fetchval("SELECT coalesce(sum(row_count), 0) FROM log_batches") == count
            assert await connection.fetchval(OUTCOMES_OF_NONE) == 0
            return count
    finally:
        await connection.close()


async def test_retention_forgets_rows_by_completion_and_keeps_the_rest(pools: Pools, make_shard: ShardMaker) -> None:
    shards = [await make_shard(name) for name in ("shard-1", "shard-2", "shard-3")]
    for number, address in enumerate(shards):
        pools.ensure_pool(address)
        await add_rows(address, "old", age=15 * DAY + timedelta(minutes=1), count=25 * number)
        await add_rows(address, "young", age=15 * DAY - timedelta(minutes=1), count=3)
    with capture_logs() as logs:
        counts = await LogRetention(pools, keeps(15 * DAY), statement_rows=10).take_turn()
    assert counts == {"shard-2": 25, "shard-3": 50}
    assert [await left_on(address) for address in shards] == [3, 3, 3]
    events = [event for event in logs if event["event"] == "operations.forgotten"]
    assert [(event["operation_count"], event["shards"]) for event in events] == [(75, counts)]


# Beside the log: a table, the columns up to its time, and the name of the column that $1 is in.
BESIDE = [
    ("rejections", "'b-l', $1, 'r', 'e', 'q', 's', '1', NULL", "request_id"),
    ("feed_refusals", "'crm', $1, '{}', '400'", "event_id"),
]


@pytest.mark.parametrize(("table", "columns", "name"), BESIDE)
async def test_retention_forgets_what_is_beside_the_log(
    pools: Pools, make_shard: ShardMaker, table: str, columns: str, name: str
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    add = f"INSERT INTO {table} VALUES ({columns}, now() - make_interval(days => $2))"
    for one, days in (*((f"old-{number}", 16) for number in range(5)), ("young", 14)):
        await execute(address.connection_string, add, one, days)

    await LogRetention(pools, keeps(15 * DAY), statement_rows=2).take_turn()

    assert await fetch(pools.ensure_pool(address), f"SELECT {name} AS name FROM {table}") == [{"name": "young"}]


@pytest.mark.parametrize(("batch_rows", "expected"), [(1, 5), (4, 8), (9, 9), (24, 24)])
async def test_retention_deletes_whole_batches(
    pools: Pools, make_shard: ShardMaker, batch_rows: int, expected: int
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=72, batch_rows=batch_rows)

    counts = await LogRetention(pools, keeps(15 * DAY), turn_s=0.001, statement_rows=10).take_turn()

    assert counts == {"shard-1": expected}
    assert await left_on(address) == 72 - expected
    newest = "SELECT max(substr(request_id, 4)::int) FROM operations"  # the oldest are those with the highest numbers
    assert await fetch(pools.ensure_pool(address), newest) == [{"max": 71 - expected}]


async def test_retention_goes_on_with_other_shards_when_one_is_down(
    pools: Pools, make_shard: ShardMaker, breakable_server: PostgresServer
) -> None:
    well = await make_shard("shard-1")
    down = ShardAddress("shard-2", breakable_server.url)
    for address in (well, down):
        pools.ensure_pool(address)
    await breakable_server.stop()
    await add_rows(well, "old", age=20 * DAY, count=5)
    assert await LogRetention(pools, keeps(15 * DAY)).take_turn() == {"shard-1": 5}
    assert not pools.ensure_pool(down).is_healthy


async def test_retention_that_a_lock_of_yours_keeps_is_told(make_shard: ShardMaker) -> None:
    addresses = [await make_shard("shard-1"), await make_shard("shard-2", is_empty=True)]
    holder = await asyncpg.connect(addresses[0].connection_string)
    async with Pools(size=2, timeouts=ShardTimeouts(lock_s=0.01)) as pools:
        for address in addresses:
            pools.ensure_pool(address)
        retention = LogRetention(pools, keeps(15 * DAY))
        with capture_logs() as logs:
            await holder.execute("BEGIN; LOCK TABLE log_batches")
            for _ in range(10):
                await retention.take_turn()
    await holder.close()
    late = [(entry["shard_id"], entry["turn_count"]) for entry in logs if entry["event"] == "retention.late"]
    assert late == [("shard-1", 10)]


async def test_window_is_raised_to_the_longest_source_and_says_so_once(endpoint_url: str) -> None:
    async with client_of("sqs", endpoint_url) as sqs, client_of("kinesis", endpoint_url) as kinesis:
        await kinesis.create_stream(StreamName="window", ShardCount=1)
        stream = Stream(kinesis, "window")
        await stream.ensure(create=False, stream_shard_count=1)
        created = await sqs.create_queue(QueueName="window", Attributes={"MessageRetentionPeriod": "345600"})
        window = EffectiveRetention(2 * DAY, stream=stream, queues=[Queue(sqs, created["QueueUrl"])])
        with capture_logs() as logs:
            first = [await window.read(), await window.read()]
            await kinesis.increase_stream_retention_period(StreamName="window", RetentionPeriodHours=168)
            second = [await window.read(), await window.read()]
    assert first + second == [5 * DAY, 5 * DAY, 8 * DAY, 8 * DAY]
    raised = [(event["configured_h"], event["effective_h"]) for event in logs if event["event"] == "retention.raised"]
    assert raised == [(48, 120), (48, 192)]
