"""A contender of the throughput benchmark: async-kinesis, with one transaction a record.

    .venv/bin/python benchmarks/throughput/async_kinesis.py --kinesis-url URL --postgres-urls URL… --form lanes

Three forms: `read` does nothing with a record; `sequence` applies each in one transaction before it reads the next;
`lanes` distributes them by tenant and type to 64 lanes, which keep their order, over a pool of 10 connections a
Postgres shard. The rows are those of the worker. It reads until it is killed; `read` prints how many it has read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import asyncpg
import uvloop
from aiobotocore.session import get_session
from kinesis import Consumer

LANES = 64
POOL_SIZE = 10
LANE_RECORDS = 200  # queued for a lane
PRINT_EVERY = 5000

LOG_SQL = """
INSERT INTO operations (tenant_id, request_id, operation, resource_type, resource_id, status, digest, source,
    requested_at, received_at)
VALUES ($1, $2, $3, $4, $5, 'succeeded', '', 'kinesis', $6, $7)
ON CONFLICT (tenant_id, request_id) DO NOTHING
RETURNING 1
"""
UPSERT_SQL = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
VALUES ($1, 'gym', $2, $3, $4::text::jsonb, $5, $5)
ON CONFLICT (id, "resourceName", "resourceId")
DO UPDATE SET data = excluded.data, "lastUpdated" = excluded."lastUpdated"
"""
# Patches have no object, and documents no null: so this is RFC 7396.
PATCH_SQL = """
UPDATE resources SET data = jsonb_strip_nulls(data || $4::text::jsonb), "lastUpdated" = $5
WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = $3
"""
DELETE_SQL = 'DELETE FROM resources WHERE id = $1 AND "resourceName" = $2 AND "resourceId" = $3'
LIST_SQL = """
UPDATE operations
SET result = (
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(page.data), '[]'), 'page', 1, 'limit', 20)
    FROM (
        SELECT jsonb_build_object('resourceId', "resourceId", 'data', data, 'date', date, 'lastUpdated', "lastUpdated")
            AS data
        FROM resources
        WHERE id = $1 AND "resourceName" = $3 AND data @> $4::text::jsonb
        ORDER BY "resourceId"
        LIMIT 21
    ) AS page
)
WHERE tenant_id = $1 AND request_id = $2
"""

Operation = Mapping[str, Any]


class ShardPools:
    """The pools by tenant id."""

    def __init__(self, homes: Mapping[str, Any]) -> None:
        self._homes = homes

    async def apply(self, operation: Operation) -> None:
        """Apply one operation in one transaction."""
        tenant_id = f"{operation['businessId']}-{operation['locationId']}"
        kind, resource_type = operation["operation"], operation["resourceType"]
        resource_id, now = operation.get("resourceId"), datetime.now(UTC)
        moment = datetime.fromisoformat(operation["timestamp"])
        async with self._homes[tenant_id].acquire() as connection, connection.transaction():
            request_id = operation["requestId"]
            is_new = await connection.fetchval(
                LOG_SQL, tenant_id, request_id, kind, resource_type, resource_id, moment, now
            )
            if not is_new:
                return
            match kind:
                case "create" | "update":
                    data = json.dumps(operation["data"])
                    await connection.execute(UPSERT_SQL, tenant_id, resource_type, resource_id, data, moment)
                case "patch":
                    data = json.dumps(operation["data"])
                    await connection.execute(PATCH_SQL, tenant_id, resource_type, resource_id, data, moment)
                case "delete":
                    await connection.execute(DELETE_SQL, tenant_id, resource_type, resource_id)
                case "list":
                    filters = json.dumps(operation["filters"])
                    await connection.execute(LIST_SQL, tenant_id, request_id, resource_type, filters)


async def read(consumer: Consumer) -> None:
    """Read records, and print their number and the time."""
    count = 0
    async for _ in consumer:
        count += 1
        if count % PRINT_EVERY == 0:
            sys.stdout.write(f"{count} {time.time()}\n")
            sys.stdout.flush()


async def apply_in_sequence(consumer: Consumer, shards: ShardPools) -> None:
    """Apply one record after the other."""
    async for operation in consumer:
        await shards.apply(operation)


async def apply_in_lanes(consumer: Consumer, shards: ShardPools) -> None:
    """Apply records in lanes: those of the same tenant and type stay in order."""
    lanes: list[asyncio.Queue[Operation]] = [asyncio.Queue(LANE_RECORDS) for _ in range(LANES)]

    async def work(lane: asyncio.Queue[Operation]) -> None:
        while True:
            await shards.apply(await lane.get())

    async with asyncio.TaskGroup() as tasks:
        for lane in lanes:
            tasks.create_task(work(lane))
        async for operation in consumer:
            key = f"{operation['businessId']}-{operation['locationId']}-{operation['resourceType']}"
            await lanes[zlib.crc32(key.encode()) % LANES].put(operation)


async def run(arguments: argparse.Namespace) -> None:
    """Run one form until it is killed."""
    homes: dict[str, Any] = {}
    for url in arguments.postgres_urls:
        size = 1 if arguments.form == "sequence" else POOL_SIZE
        pool = await asyncpg.create_pool(url, min_size=size, max_size=size)
        homes |= dict.fromkeys([row["id"] for row in await pool.fetch("SELECT id FROM tenants")], pool)
    consumer = Consumer(
        arguments.stream,
        session=get_session(),
        endpoint_url=arguments.kinesis_url,
        region_name="us-east-1",
        iterator_type="TRIM_HORIZON",
        record_limit=arguments.record_limit,
        sleep_time_no_records=0.2,
        shard_fetch_rate=5,
    )
    async with consumer:
        match arguments.form:
            case "read":
                await read(consumer)
            case "sequence":
                await apply_in_sequence(consumer, ShardPools(homes))
            case _:
                await apply_in_lanes(consumer, ShardPools(homes))


def main() -> None:
    """Run the contender as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinesis-url", required=True)
    parser.add_argument("--stream", default="resources-operations")
    parser.add_argument("--postgres-urls", nargs="+", required=True)
    parser.add_argument("--form", choices=("read", "sequence", "lanes"), required=True)
    parser.add_argument("--record-limit", type=int, default=10_000, help="of one GetRecords: its own default")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
