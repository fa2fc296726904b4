"""The bare loop of the throughput benchmark: read, decode, wave, one SQL statement a wave, commit. The ceiling.

    python -m benchmarks.throughput.bare_loop --kinesis-url URL --map FILE [--wave-records 2000]

It has none of the worker's guarantees: no lease, no checkpoint, no position on the shard, no check of the tenant, no
validation, no retry, no signature, no metric, no order between a list and the writes before it. Like the worker it
prefetches one reply a stream shard and uses the same number of connections, and it leaves the same rows. It reads until
it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec
import uvloop

from simplu_worker.shards.routing.shard_map import ShardMap

SEPARATOR = "\x1f"  # no member of these records contains it
REST_S = 0.05  # at the tip
# Few arguments: an array of texts costs asyncpg ten times as much as one text that Postgres splits. Patches have no
# object, and documents no null: so they are merged as RFC 7396 has it.
WAVE_SQL = """
WITH wave AS MATERIALIZED (
    SELECT tenant_id, request_id, operation, resource_type, resource_id, data::jsonb AS data,
        requested_at::timestamptz AS requested_at, sequence_number, decode(digest, 'hex') AS digest, received_at
    FROM unnest(
        string_to_array($1, E'\\x1f'), string_to_array($2, E'\\x1f'), string_to_array($3, E'\\x1f'),
        string_to_array($4, E'\\x1f'), string_to_array($5, E'\\x1f'), string_to_array($6, E'\\x1f', ''),
        string_to_array($7, E'\\x1f'), string_to_array($8, E'\\x1f'), string_to_array($9, E'\\x1f'),
        string_to_array($10, E'\\x1f')::timestamptz[]
    ) AS sent (tenant_id, request_id, operation, resource_type, resource_id, data, requested_at, sequence_number,
        digest, received_at)
), logged AS (
    INSERT INTO operations (tenant_id, request_id, operation, resource_type, resource_id, status, digest, source,
        stream_shard_id, sequence_number, requested_at, received_at)
    SELECT tenant_id, request_id, operation, resource_type, nullif(resource_id, ''), 'succeeded', digest, 'kinesis',
        $11, sequence_number, requested_at, received_at
    FROM wave
    ON CONFLICT (tenant_id, request_id) DO NOTHING
), written AS (
    INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
    SELECT tenant_id, 'gym', resource_type, resource_id, data, requested_at, requested_at
    FROM wave
    WHERE operation IN ('create', 'update')
    ON CONFLICT (id, "resourceName", "resourceId")
    DO UPDATE SET data = excluded.data, "lastUpdated" = excluded."lastUpdated"
), patched AS (
    UPDATE resources
    SET data = jsonb_strip_nulls(resources.data || wave.data), "lastUpdated" = wave.requested_at
    FROM wave
    WHERE wave.operation = 'patch' AND resources.id = wave.tenant_id
        AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
)
DELETE FROM resources
USING wave
WHERE wave.operation = 'delete' AND resources.id = wave.tenant_id
    AND resources."resourceName" = wave.resource_type AND resources."resourceId" = wave.resource_id
"""
LISTS_SQL = """
UPDATE operations
SET result = (
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(page.data), '[]'), 'page', 1, 'limit', 20)
    FROM (
        SELECT jsonb_build_object('resourceId', "resourceId", 'data', data, 'date', date, 'lastUpdated', "lastUpdated")
            AS data
        FROM resources
        WHERE id = wave.tenant_id AND "resourceName" = wave.resource_type AND data @> wave.filters::jsonb
        ORDER BY "resourceId"
        LIMIT 21
    ) AS page
)
FROM unnest(string_to_array($1, E'\\x1f'), string_to_array($2, E'\\x1f'), string_to_array($3, E'\\x1f'),
    string_to_array($4, E'\\x1f')) AS wave (tenant_id, request_id, resource_type, filters)
WHERE operations.tenant_id = wave.tenant_id AND operations.request_id = wave.request_id
"""


class ReadRecord(msgspec.Struct, gc=False, rename="pascal"):
    """A record of a reply; decoding it decodes the base64 of its data."""

    sequence_number: str
    data: bytes
    approximate_arrival_timestamp: float


class ReadReply(msgspec.Struct, gc=False, rename="pascal"):
    """A reply of GetRecords."""

    records: list[ReadRecord]
    next_shard_iterator: str | None = None
    millis_behind_latest: int = 0


class ReadOperation(msgspec.Struct, gc=False, rename="camel"):
    """The members of a record that the loop uses."""

    operation: str
    business_id: str
    location_id: str
    resource_type: str
    timestamp: str
    request_id: str
    resource_id: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")
    filters: msgspec.Raw = msgspec.Raw(b"{}")


class BareLoop:
    """Readers of all stream shards over pools to all Postgres shards."""

    def __init__(self, session: aiohttp.ClientSession, arguments: argparse.Namespace) -> None:
        self._session = session
        self._url = arguments.kinesis_url
        self._stream = arguments.stream
        self._wave_records = arguments.wave_records
        self._map = msgspec.json.decode(Path(arguments.map).read_bytes(), type=ShardMap)
        self._pools: dict[str, asyncpg.Pool[Any]] = {}
        self._homes: dict[str, asyncpg.Pool[Any]] = {}
        self._replies = msgspec.json.Decoder(ReadReply)
        self._operations = msgspec.json.Decoder(ReadOperation)
        self._pool_size = arguments.pool_size

    async def run(self) -> None:
        """Read until the process is killed."""
        for shard in self._map.shards:
            size = self._pool_size
            pool = await asyncpg.create_pool(shard.connection_string, min_size=size, max_size=size)
            self._pools[shard.shard_id] = pool
        listed = msgspec.json.decode(await self._call("ListShards", {"StreamName": self._stream}))
        async with asyncio.TaskGroup() as tasks:
            for stream_shard in listed["Shards"]:
                tasks.create_task(self._read(stream_shard["ShardId"]))

    async def _read(self, stream_shard_id: str) -> None:
        """Read one stream shard; the next reply is read while one is applied."""
        first = {"StreamName": self._stream, "ShardId": stream_shard_id, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = msgspec.json.decode(await self._call("GetShardIterator", first))["ShardIterator"]
        body = await self._get_records(iterator)
        while True:
            reply = self._replies.decode(body)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._get_records(str(reply.next_shard_iterator)))
                for pool, operations, records in self._group_by_shard(reply.records):
                    tasks.create_task(self._apply(pool, operations, records, stream_shard_id))
            body = reading.result()
            if not reply.records:
                await asyncio.sleep(REST_S)

    async def _get_records(self, iterator: str) -> bytes:
        return await self._call("GetRecords", {"ShardIterator": iterator, "Limit": self._wave_records})

    async def _call(self, action: str, request: dict[str, Any]) -> bytes:
        headers = {"X-Amz-Target": f"Kinesis_20131202.{action}", "Content-Type": "application/x-amz-json-1.1"}
        async with self._session.post(self._url, data=msgspec.json.encode(request), headers=headers) as reply:
            body = await reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{action}: {body[:300]!r}")
        return body

    def _group_by_shard(
        self, records: Sequence[ReadRecord]
    ) -> list[tuple[asyncpg.Pool[Any], list[ReadOperation], list[ReadRecord]]]:
        """Decode *records* and group them by Postgres shard."""
        decode = self._operations.decode
        operations = [decode(record.data) for record in records]
        if len(self._pools) == 1:
            return [(pool, operations, list(records)) for pool in self._pools.values() if records]
        parts: dict[asyncpg.Pool[Any], tuple[list[ReadOperation], list[ReadRecord]]] = defaultdict(lambda: ([], []))
        for operation, record in zip(operations, records, strict=True):
            tenant_id = f"{operation.business_id}-{operation.location_id}"
            if (home := self._homes.get(tenant_id)) is None:
                home = self._homes[tenant_id] = self._pools[self._map.shard_of(tenant_id).shard_id]
            part = parts[home]
            part[0].append(operation)
            part[1].append(record)
        return [(pool, *part) for pool, part in parts.items()]

    async def _apply(
        self,
        pool: asyncpg.Pool[Any],
        operations: Sequence[ReadOperation],
        records: Sequence[ReadRecord],
        stream_shard_id: str,
    ) -> None:
        """Apply *operations* in one transaction, wave by wave."""
        async with pool.acquire() as connection, connection.transaction():
            for start, end in split_into_waves(operations):
                await self._apply_wave(connection, operations[start:end], records[start:end], stream_shard_id)

    async def _apply_wave(
        self, connection: Any, operations: Sequence[ReadOperation], records: Sequence[ReadRecord], stream_shard_id: str
    ) -> None:
        join = SEPARATOR.join
        tenant_ids = [f"{one.business_id}-{one.location_id}" for one in operations]
        request_ids = [one.request_id for one in operations]
        await connection.execute(
            WAVE_SQL,
            join(tenant_ids),
            join(request_ids),
            join([one.operation for one in operations]),
            join([one.resource_type for one in operations]),
            join([one.resource_id for one in operations]),
            join([bytes(one.data).decode() for one in operations]),
            join([one.timestamp for one in operations]),
            join([record.sequence_number for record in records]),
            join([hashlib.sha256(record.data).hexdigest() for record in records]),
            join([_moment(record.approximate_arrival_timestamp) for record in records]),
            stream_shard_id,
        )
        asked = [place for place, one in enumerate(operations) if one.operation == "list"]
        if asked:
            await connection.execute(
                LISTS_SQL,
                join([tenant_ids[place] for place in asked]),
                join([request_ids[place] for place in asked]),
                join([operations[place].resource_type for place in asked]),
                join([bytes(operations[place].filters).decode() for place in asked]),
            )


def split_into_waves(operations: Sequence[ReadOperation]) -> list[tuple[int, int]]:
    """Return where each wave begins and ends: one writes each resource at most once."""
    found: list[tuple[int, int]] = []
    start, written = 0, set[tuple[str, str, str]]()
    for place, one in enumerate(operations):
        resource = (one.location_id, one.resource_type, one.resource_id)
        if resource in written:
            found.append((start, place))
            start, written = place, set()
        if one.resource_id:
            written.add(resource)
    return [*found, (start, len(operations))]


_moments: dict[float, str] = {}


def _moment(timestamp: float) -> str:
    """Return an arrival time as text, cached because many records share it."""
    if timestamp not in _moments:
        _moments.clear()
        _moments[timestamp] = datetime.fromtimestamp(timestamp).astimezone().isoformat()
    return _moments[timestamp]


async def run(arguments: argparse.Namespace) -> None:
    """Run the loop until it is killed."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        await BareLoop(session, arguments).run()


def main() -> None:
    """Run the loop as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinesis-url", required=True)
    parser.add_argument("--stream", default="resources-operations")
    parser.add_argument("--map", required=True, help="the file of a static shard map")
    parser.add_argument("--pool-size", type=int, default=4, help="connections to one Postgres shard")
    parser.add_argument("--wave-records", type=int, default=2000, help="maximum of one GetRecords")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
