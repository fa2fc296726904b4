"""The log of operations is kept as long as any source keeps its records, and made smaller gently."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import ScriptedAws, client_of
from support.postgres.databases import ShardMaker, execute, stop_autovacuum
from support.postgres.log_rows import made_up_rows

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.clients import describe_table
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.consumers.kinesis.stream.client import NewRecord, Stream, StreamSummary
from simplu_worker.consumers.source_retention import EffectiveRetention
from simplu_worker.errors import RetryableError
from simplu_worker.shards.log import EVER, LogRetention
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
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
    """Give pools."""
    async with Pools(size=2) as opened:
        yield opened


def keeps(retention: timedelta | None) -> Any:
    """Return a window that is always the same."""

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


async def test_retention_forgets_nothing_when_the_window_is_unknown(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=400 * DAY, count=5)
    assert await LogRetention(pools, keeps(None)).take_turn() == {}
    assert await left_on(address) == 5


async def expect_counts(address: ShardAddress, count: int) -> None:
    """Expect as many rows beside the log, of failures and of rejections."""
    connection = await asyncpg.connect(address.connection_string)
    try:
        for table in ("message_failures", "rejections"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == count
    finally:
        await connection.close()


async def test_retention_forgets_failures_of_messages_that_no_queue_can_have(
    pools: Pools, make_shard: ShardMaker
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    for message_id, days in (("old", 16), ("young", 14)):
        failed = "INSERT INTO message_failures VALUES ('b-l', $1, 2, now() - make_interval(days => $2))"
        await execute(address.connection_string, failed, message_id, days)
    await LogRetention(pools, keeps(15 * DAY)).take_turn()
    connection = await asyncpg.connect(address.connection_string)
    try:
        rows = await connection.fetch("SELECT message_id FROM message_failures")
    finally:
        await connection.close()
    assert [row["message_id"] for row in rows] == ["young"]


@pytest.mark.parametrize(("table", "first"), [("rejections", "'b-l', $1"), ("unplaced_rejections", "$1, 'b-l', 'b'")])
async def test_retention_forgets_rejections_with_the_log(
    pools: Pools, make_shard: ShardMaker, table: str, first: str
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    for request_id, days in (*((f"old-{number}", 16) for number in range(5)), ("young", 14)):
        columns = f"{first}, 'r', 'e', 'q', 's', '1', NULL, now() - make_interval(days => $2)"
        await execute(address.connection_string, f"INSERT INTO {table} VALUES ({columns})", request_id, days)

    await LogRetention(pools, keeps(15 * DAY), statement_rows=2).take_turn()

    connection = await asyncpg.connect(address.connection_string)
    try:
        rows = await connection.fetch(f"SELECT request_id FROM {table}")
    finally:
        await connection.close()
    assert [row["request_id"] for row in rows] == ["young"]


async def test_retention_forgets_refused_events_of_the_feed_with_the_log(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    for event_id, days in (("locked", 16), *((f"old-{number}", 16) for number in range(5)), ("young", 14)):
        refused = "INSERT INTO feed_refusals VALUES ('crm', $1, '{}', '400', now() - make_interval(days => $2))"
        await execute(address.connection_string, refused, event_id, days)

    connection = await asyncpg.connect(address.connection_string)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM feed_refusals WHERE event_id = 'locked' FOR UPDATE")
            await LogRetention(pools, keeps(15 * DAY), statement_rows=2).take_turn()
        rows = await connection.fetch("SELECT event_id FROM feed_refusals ORDER BY event_id")
    finally:
        await connection.close()
    assert [row["event_id"] for row in rows] == ["locked", "young"]


async def test_retention_leaves_rows_alone_when_somebody_holds_them(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=5)
    holder = await asyncpg.connect(address.connection_string)
    try:
        async with holder.transaction():
            await holder.execute(
                "SELECT FROM log_batches"
                " WHERE batch_id = (SELECT batch_id FROM operations WHERE request_id = 'old1') FOR UPDATE"
            )
            assert await LogRetention(pools, keeps(15 * DAY)).take_turn() == {"shard-1": 4}
    finally:
        await holder.close()
    assert await LogRetention(pools, keeps(15 * DAY)).take_turn() == {"shard-1": 1}


async def test_retention_ends_its_turn_in_time_and_goes_on_with_the_next(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=25)
    turn = LogRetention(pools, keeps(15 * DAY), turn_s=0.001, statement_rows=10)
    assert await turn.take_turn() == {"shard-1": 5}  # and their batches

    async def is_empty() -> bool:
        return await left_on(address) == 0

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(LogRetention(pools, keeps(15 * DAY), turn_s=0.1).run())
        assert await poll_until(is_empty, within_s=60)
        running.cancel()


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
    connection = await asyncpg.connect(address.connection_string)
    try:  # the oldest are those with the highest numbers
        newest = await connection.fetchval("SELECT max(substr(request_id, 4)::int) FROM operations")
    finally:
        await connection.close()
    assert newest == 71 - expected


async def test_retention_deletes_batches_without_rows(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    made = "INSERT INTO log_batches VALUES ($1, now() - make_interval(days => $2), 0, 'd', {}, '{{}}', '{{}}', '{{}}')"
    for number, days in enumerate((20, 20, 3)):
        await execute(address.connection_string, made.format("gen_random_uuid()"), number, days)

    assert await LogRetention(pools, keeps(15 * DAY)).take_turn() == {}

    connection = await asyncpg.connect(address.connection_string)
    try:
        assert await connection.fetchval("SELECT array_agg(batch_id) FROM log_batches") == [2]
    finally:
        await connection.close()


@pytest.mark.slow(2)
async def test_retention_keeps_its_pace_beside_other_work(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=6000)

    async def work() -> None:
        while True:
            time.sleep(0.02)  # noqa: ASYNC251 - as decoding and applying do
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work())
        counts = await LogRetention(pools, keeps(15 * DAY), turn_s=30, statement_rows=100).take_turn()
        working.cancel()
    assert counts == {"shard-1": 6000}


async def on_deleted_outcome(address: ShardAddress, action: str) -> None:
    """Have the shard do *action* for each row of `log_outcomes` before it is deleted."""
    await execute(
        address.connection_string,
        "CREATE OR REPLACE FUNCTION react() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {action}; RETURN OLD; END $$;"
        " CREATE OR REPLACE TRIGGER react BEFORE DELETE ON log_outcomes FOR EACH ROW EXECUTE FUNCTION react()",
    )


async def test_statement_counts_the_time_of_the_results_that_it_deletes(make_shard: ShardMaker) -> None:
    address = await make_shard()
    await add_rows(address, "old", age=20 * DAY, count=4)
    await on_deleted_outcome(address, "PERFORM pg_sleep(0.05)")
    connection = await asyncpg.connect(address.connection_string)
    try:
        row = await connection.fetchrow(QUERIES["forget_batches"], (15 * DAY).total_seconds(), 1000, EVER)
    finally:
        await connection.close()
    assert row is not None
    assert (row["row_count"], row["busy_s"] >= 0.1) == (4, True)


@pytest.mark.slow(0.3)
async def test_retention_deletes_fewer_rows_after_a_statement_that_took_too_long(make_shard: ShardMaker) -> None:
    address = await make_shard()
    await add_rows(address, "old", age=20 * DAY, count=60, batch_rows=6)
    await execute(
        address.connection_string, "INSERT INTO message_failures VALUES ('b-l', 'm', 2, now() - interval '16 days')"
    )
    await on_deleted_outcome(address, "PERFORM pg_sleep(0.02)")
    async with Pools(size=2, timeouts=ShardTimeouts(statement_s=0.4)) as pools:
        pools.ensure_pool(address)
        with capture_logs() as logs:
            assert await LogRetention(pools, keeps(15 * DAY), statement_rows=100).take_turn() == {"shard-1": 60}
    assert [event["event"] for event in logs] == ["operations.forgotten"]
    assert await left_on(address) == 0


async def test_retention_warns_of_a_shard_whose_old_rows_stay_turn_after_turn(
    pools: Pools, make_shard: ShardMaker
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=4)
    await on_deleted_outcome(address, "RAISE EXCEPTION 'no'")
    retention = LogRetention(pools, keeps(15 * DAY))

    async def warnings_of(turns: int) -> list[tuple[str, int]]:
        with capture_logs() as logs:
            for _ in range(turns):
                await retention.take_turn()
        late = [event for event in logs if event["event"] == "retention.late"]
        assert all("P0001" in event["error"] for event in late)
        return [(event["shard_id"], event["turn_count"]) for event in late]

    assert await warnings_of(9) == []
    assert await warnings_of(11) == [("shard-1", 10), ("shard-1", 20)]
    await on_deleted_outcome(address, "NULL")
    assert await warnings_of(11) == []
    assert await left_on(address) == 0


@pytest.mark.slow(0.3)
async def test_retention_does_not_pass_by_deleted_rows_with_every_statement(
    pools: Pools, make_shard: ShardMaker
) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await add_rows(address, "old", age=20 * DAY, count=20_000)
    await execute(address.connection_string, "ANALYZE log_batches, log_rows")
    statement = QUERIES["forget_batches"].replace("$1", "1296000").replace("$2", "10000")
    reader, deleter = [await asyncpg.connect(address.connection_string) for _ in range(2)]
    pages = []
    try:
        async with reader.transaction(isolation="repeatable_read"):
            await reader.fetch("SELECT count(*) FROM log_batches")
            newest = await deleter.fetchval(statement.replace("$3", "'-infinity'"), column=1)
            for after in ("-infinity", newest.isoformat()):
                explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.replace('10000', '1')}"
                ((plan,),) = await deleter.fetch(explain.replace("$3", f"'{after}'"))
                (measured,) = json.loads(plan)
                pages.append(measured["Plan"]["Shared Hit Blocks"] + measured["Plan"]["Shared Read Blocks"])
    finally:
        await deleter.close()
        await reader.close()
    from_the_oldest, from_there = pages
    assert from_there < from_the_oldest / 5


async def test_retention_passes_over_shards_that_are_not_to_be_touched(pools: Pools, make_shard: ShardMaker) -> None:
    empty, other = await make_shard("shard-1", is_empty=True), await make_shard("shard-9")
    await add_rows(other, "old", age=20 * DAY, count=5)
    pools.ensure_pool(empty)
    pools.ensure_pool(ShardAddress("shard-2", other.connection_string))
    assert await LogRetention(pools, keeps(15 * DAY)).take_turn() == {}
    assert await left_on(other) == 5


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


@pytest.mark.slow(0.3)
async def test_forgetting_does_not_read_the_table_when_nothing_is_old(pools: Pools, make_shard: ShardMaker) -> None:
    address = await make_shard()
    pools.ensure_pool(address)
    await stop_autovacuum(address.connection_string, "log_batches", "log_rows", "log_outcomes")
    await add_rows(address, "old", age=20 * DAY, count=20_000)
    await LogRetention(pools, keeps(15 * DAY), statement_rows=30_000).take_turn()
    await execute(address.connection_string, "VACUUM log_batches, log_rows")
    await add_rows(address, "new", age=timedelta(0), count=20_000)
    await execute(address.connection_string, "VACUUM ANALYZE log_batches, log_rows")
    connection = await asyncpg.connect(address.connection_string)
    try:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {QUERIES['forget_batches']}"
        ((plan,),) = await connection.fetch(
            explain.replace("$1", "1296000").replace("$2", "1000").replace("$3", "'-infinity'")
        )
        pages = int(await connection.fetchval("SELECT relpages FROM pg_class WHERE relname = 'log_rows'"))
    finally:
        await connection.close()
    (measured,) = json.loads(plan)
    read_pages = measured["Plan"]["Shared Hit Blocks"] + measured["Plan"]["Shared Read Blocks"]
    assert pages > 200
    assert read_pages < 100


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


async def test_window_is_unknown_when_a_source_does_not_say(endpoint_url: str) -> None:
    async with client_of("sqs", endpoint_url) as sqs, client_of("kinesis", "http://127.0.0.1:1") as kinesis:
        queue = Queue(sqs, (await sqs.create_queue(QueueName="known"))["QueueUrl"])
        gone = Queue(sqs, queue.url.replace("known", "gone"))
        silent = Stream(kinesis, "silent")
        with capture_logs() as logs:
            windows = [
                await EffectiveRetention(15 * DAY, stream=None, queues=[queue]).read(),
                await EffectiveRetention(15 * DAY, stream=None, queues=[queue, gone]).read(),
                await EffectiveRetention(15 * DAY, stream=silent, queues=[queue]).read(),
            ]
    assert windows == [15 * DAY, None, None]
    unknown = [event["queue"] or event["stream"] for event in logs if event["event"] == "retention.unknown"]
    assert unknown == ["gone", "silent"]


async def test_stream_tells_its_retention_and_takes_records(endpoint_url: str) -> None:
    async with client_of("kinesis", endpoint_url) as kinesis:
        await kinesis.create_stream(StreamName="put", ShardCount=2)
        stream = Stream(kinesis, "put")
        await stream.ensure(create=False, stream_shard_count=1)
        assert await stream.describe() == StreamSummary("ACTIVE", DAY, 2)
        assert await stream.put([NewRecord("a", b"1"), NewRecord("b", b"2")]) == []
        assert await stream.put([NewRecord("a", b"3")]) == []


async def test_stream_returns_the_records_that_it_did_not_take() -> None:
    aws = ScriptedAws()
    aws.answer({"FailedRecordCount": 1, "Records": [{"ErrorCode": "InternalFailure"}, {"SequenceNumber": "1"}]})
    aws.refuse("ProvisionedThroughputExceededException")
    async with aws.running() as url, client_of("kinesis", url) as kinesis:
        records = [NewRecord("a", b"1"), NewRecord("b", b"2")]
        assert await Stream(kinesis, "s").put(records) == records[:1]
        with pytest.raises(RetryableError):
            await Stream(kinesis, "s").put(records[:1])


async def test_describe_table_tells_key_and_capacity_or_that_there_is_none(endpoint_url: str) -> None:
    async with client_of("dynamodb", endpoint_url) as dynamodb:
        names = ("part", "sort")
        shape: dict[str, Any] = {
            "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
            "KeySchema": [
                {"AttributeName": "part", "KeyType": "HASH"},
                {"AttributeName": "sort", "KeyType": "RANGE"},
            ],
        }
        provisioned = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 1}
        await dynamodb.create_table(TableName="two", BillingMode="PAY_PER_REQUEST", **shape)
        await dynamodb.create_table(TableName="fixed", ProvisionedThroughput=provisioned, **shape)
        found = [await describe_table(dynamodb, name) for name in ("two", "fixed")]
        assert [(table.key, table.read_units) for table in found if table is not None] == [(names, 0), (names, 5)]
        assert await describe_table(dynamodb, "none") is None
