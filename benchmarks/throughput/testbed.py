"""What the throughput benchmark runs on: a Postgres server as in production, a full stream, DynamoDB and SQS."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec

from benchmarks.throughput.records import BUSINESS_ID, BUSINESS_TYPE
from simplu_worker.local.aws_server.account import REGION
from simplu_worker.local.postgres.server import PostgresPrograms, PostgresServer
from simplu_worker.local.processes.loopback import HOST, StackError, free_port, poll_until
from simplu_worker.local.processes.watchdog import ProcessGroup
from simplu_worker.local.stack.aws import (
    CREDENTIALS,
    KINESIS_STARTED,
    STREAM_NAME,
    aws_client,
    start_moto,
    start_sqs,
)
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.schema.schema_check import ensure_schema

FOLDER = Path(__file__).resolve().parent
FILL_TIMEOUT_S = 120.0
SERVER_SETTINGS = {  # what a server of production has and the embedded one has not
    "fsync": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # no checkpoint falls into one of two runs that are compared
    "checkpoint_timeout": "60min",
    "autovacuum_naptime": "10min",
    "max_connections": "300",
    "track_commit_timestamp": "on",  # by it commits are timed, of whoever made them
}
INSERT_TENANTS = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
SELECT id, $2, location_id, $3, 'active', now() - interval '1 day', now() - interval '1 day'
FROM unnest($1::text[], $4::text[]) AS tenant (id, location_id)
"""


@dataclass(slots=True)
class Target:
    """Fresh databases for one run: a map of them, and how to look into them."""

    shard_map: ShardMap
    path: Path
    connections: list[Any] = field(default_factory=list)

    async def rows(self, query: str) -> list[Any]:
        """Return the rows of *query* on all shards."""
        return [row for one in self.connections for row in await one.fetch(query)]

    async def has_any(self) -> bool:
        """Whether any operation was committed."""
        return any([await one.fetchval("SELECT EXISTS (SELECT FROM operations)") for one in self.connections])

    async def count(self) -> int:
        """Return how many operations are in all logs."""
        return sum([int(await one.fetchval("SELECT count(*) FROM operations")) for one in self.connections])

    async def wal_bytes(self) -> int:
        """Return how much was written so far: cheap to ask, and it stands still when nothing is written."""
        return int(await self.connections[0].fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


class Kinesis(NamedTuple):
    """A running Kinesis."""

    url: str
    process: subprocess.Popen[bytes]

    def fill(self) -> None:
        """Let the records come, where it was started to wait for it."""
        self.process.send_signal(signal.SIGUSR1)


class Bed:
    """The servers; `target` makes databases for a run, `kinesis` the stream."""

    def __init__(self, group: ProcessGroup, server: PostgresServer, urls: Mapping[str, str], tenants: int) -> None:
        self.group = group
        self.server = server
        self.urls = dict(urls)
        self.tenants = tenants
        self._numbers = iter(range(1, 1_000_000))

    def __repr__(self) -> str:
        return f"Bed({self.server!r}, {self.urls})"

    @property
    def server_pid(self) -> int:
        """The process id of the Postgres server."""
        if self.server.pid is None:
            raise RuntimeError("the server was started")
        return self.server.pid

    def number(self) -> int:
        """Return a number that was not returned before."""
        return next(self._numbers)

    @asynccontextmanager
    async def target(self, shards: int, *, commit: str) -> AsyncIterator[Target]:
        """Have *shards* databases with the tenants, dropped at the end; *commit* is their `synchronous_commit`."""
        run = self.number()
        names = [f"run{run}_{number}" for number in range(shards)]
        mapped = tuple(
            MappedShard(shard_id=f"shard-{number}", connection_string=self.server.url_of(name))
            for number, name in enumerate(names)
        )
        target = Target(ShardMap(mapped), self.group.directory / f"map-{run}.json")
        async with AsyncExitStack() as exits:
            for name, shard in zip(names, mapped, strict=True):
                exits.push_async_callback(self._drop, name)
                await self._make(name, shard, target.shard_map, commit)
            for shard in mapped:
                connection = await asyncpg.connect(shard.connection_string)
                exits.push_async_callback(connection.close)
                target.connections.append(connection)
            target.path.write_bytes(msgspec.json.encode(target.shard_map))
            yield target

    async def _make(self, name: str, shard: MappedShard, shard_map: ShardMap, commit: str) -> None:
        url = await self.server.create_database(name)
        await execute(self.server.url, f"ALTER DATABASE {name} SET synchronous_commit = {commit}")
        pool = ShardPool(ShardAddress(shard.shard_id, url), size=1)
        try:
            await ensure_schema(pool)
        finally:
            await pool.close()
        locations = [
            str(number)
            for number in range(self.tenants)
            if shard_map.shard_of(tenant_id_of(BUSINESS_ID, str(number))).shard_id == shard.shard_id
        ]
        ids = [tenant_id_of(BUSINESS_ID, location) for location in locations]
        await execute(url, INSERT_TENANTS, ids, BUSINESS_ID, BUSINESS_TYPE, locations)

    async def _drop(self, name: str) -> None:
        await execute(self.server.url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @asynccontextmanager
    async def kinesis(self, records: int, stream_shards: int, *options: str) -> AsyncIterator[Kinesis]:
        """Have a Kinesis with *records* in its stream."""
        port, log_path = free_port(), self.group.directory / f"kinesis-{self.number()}.log"
        program = [sys.executable, "-m", "benchmarks.throughput.filled_kinesis", "--port", str(port), *options]
        arguments = ["--records", str(records), "--stream-shards", str(stream_shards), "--tenants", str(self.tenants)]
        process = self.group.spawn([*program, *arguments], log_path=log_path)
        try:

            async def settled() -> bool:
                return process.poll() is not None or KINESIS_STARTED in log_path.read_bytes()

            if not await poll_until(settled, within_s=FILL_TIMEOUT_S) or process.poll() is not None:
                raise StackError(f"the stream was not filled: {log_path.read_text(errors='replace')[-300:]}")
            yield Kinesis(f"http://{HOST}:{port}", process)
        finally:
            process.kill()
            process.wait()

    def worker_env(self, kinesis_url: str, target: Target, **settings: str) -> dict[str, str]:
        """Return the environment of a worker as a user runs it, with its settings' defaults."""
        return {
            "AWS_REGION": REGION,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.urls["aws"],
            "AWS_ENDPOINT_URL_KINESIS": kinesis_url,
            "AWS_ENDPOINT_URL_SQS": self.urls["sqs"],
            "KINESIS_STREAM_NAME": STREAM_NAME,
            "KINESIS_APPLICATION_NAME": f"bench-{self.number()}",
            "SQS_DEAD_LETTER_QUEUE_URL": self.urls["dead_letters"],
            "SHARD_MAP_FILE": str(target.path),
            "HTTP_HOST": HOST,
            "HTTP_PORT": "0",  # any: one that was looked for before may be taken by then
            **settings,
        }


@asynccontextmanager
async def running_bed(tenants: int) -> AsyncIterator[Bed]:
    """Have the servers; nothing of them outlives the context."""
    with ProcessGroup() as group:
        server = PostgresServer(
            group, PostgresPrograms.find(group.directory), database="throughput", settings=SERVER_SETTINGS
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.start())
            aws, sqs = tasks.create_task(start_moto(group)), tasks.create_task(start_sqs(group))
        urls = {"aws": aws.result(), "sqs": sqs.result()}
        async with aws_client("sqs", urls["sqs"]) as client:
            urls["dead_letters"] = (await client.create_queue(QueueName="dead-letters"))["QueueUrl"]
        yield Bed(group, server, urls, tenants)


async def execute(url: str, statement: str, *arguments: object) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


def clock() -> float:
    """Return the time by which processes and Postgres agree on this machine, in seconds."""
    return time.time()
