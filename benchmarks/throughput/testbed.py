"""The servers of the throughput benchmark: Postgres as in production, a full stream, DynamoDB and SQS."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec
from support.postgres.databases import execute
from support.postgres.log_rows import made_up_rows

from benchmarks.throughput.mixes import LOG_COLUMNS, RESOURCE_COLUMNS, Mix, filled_rows
from benchmarks.throughput.plain_log import PLAIN_LOG_SQL
from benchmarks.throughput.records import BUSINESS_ID, BUSINESS_TYPE
from simplu_local.aws_server.account import REGION
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import HOST, StackError, free_port, poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import CREDENTIALS, KINESIS_STARTED, STREAM_NAME, aws_client, start_moto, start_sqs
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.schema.schema_check import ensure_schema

FOLDER = Path(__file__).resolve().parent
FILL_TIMEOUT_S = 120.0
API_TOKEN = "token-of-the-benchmark"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SERVER_SETTINGS = {  # settings of production that the embedded server lacks
    "fsync": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # a checkpoint in one of two compared runs would distort the ratio
    "checkpoint_timeout": "60min",
    "autovacuum_naptime": "10min",
    "max_connections": "300",
    "track_commit_timestamp": "on",  # times the commits of every contender
}
INSERT_TENANTS = """
INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)
SELECT id, $2, location_id, $3, 'active', now() - interval '1 day', now() - interval '1 day'
FROM unnest($1::text[], $4::text[]) AS tenant (id, location_id)
"""

# A batch has as many rows as those of a worker that catches up.
FILL_LOG_SQL = made_up_rows(
    "filled",
    batch="row_number() OVER () / 500",
    origin="source || '/' || stream_shard_id",
    digest="substr(digest, 1, 8)",
    tenant_id="tenant_id",
    request_id="request_id",
    operation="operation",
    resource_type="resource_type",
    resource_id="resource_id",
    requested_at="requested_at",
    received_at="received_at",
    completed_at="received_at",
)


@dataclass(slots=True)
class RunDatabases:
    """Fresh databases for one run, with their shard map and a connection to each."""

    shard_map: ShardMap
    path: Path
    connections: list[Any] = field(default_factory=list)
    begun_at: datetime = EPOCH  # rows of the log completed before were there when the run began
    has_plain_log: bool = False

    async def fetch_rows(self, query: str, *arguments: object) -> list[Any]:
        """Return the rows of *query* on all shards."""
        return [row for one in self.connections for row in await one.fetch(query, *arguments)]

    async def has_operations(self) -> bool:
        """Return whether any operation was committed in the run."""
        rows = await self.fetch_rows("SELECT FROM operations WHERE completed_at > $1 LIMIT 1", self.begun_at)
        return bool(rows)

    async def count_operations(self) -> int:
        """Return the number of operations of the run in all logs."""
        rows = await self.fetch_rows("SELECT count(*) FROM operations WHERE completed_at > $1", self.begun_at)
        return sum([row["count"] for row in rows])

    async def fill(self, mix: Mix) -> None:
        """Write the rows that exist before a run of *mix*."""
        (connection,) = self.connections
        rows = filled_rows(mix, BUSINESS_TYPE)
        await connection.copy_records_to_table("resources", records=rows.resources, columns=RESOURCE_COLUMNS)
        if self.has_plain_log:
            await connection.copy_records_to_table("operations", records=rows.log, columns=LOG_COLUMNS)
            await connection.execute("VACUUM (ANALYZE) resources, operations")
        else:
            await connection.execute("CREATE TEMP TABLE filled (LIKE operations)")
            await connection.copy_records_to_table("filled", records=rows.log, columns=LOG_COLUMNS)
            await connection.execute(f"{FILL_LOG_SQL}; DROP TABLE filled")
            await connection.execute("VACUUM (ANALYZE) resources, log_batches, log_rows, log_outcomes")
        if mix.after_checkpoint:
            await connection.execute("CHECKPOINT")

    async def begin(self) -> None:
        """Begin the run: what is there now is not part of it."""
        self.begun_at = await self.connections[0].fetchval("SELECT clock_timestamp()")

    async def read_size(self) -> int:
        """Return how many bytes of disk the databases take."""
        rows = await self.fetch_rows("SELECT pg_database_size(current_database()) AS size")
        return sum([row["size"] for row in rows])

    async def read_wal_bytes(self) -> int:
        """Return how much WAL was written so far: a cheap query, and constant while no contender writes."""
        return int(await self.connections[0].fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


class FilledKinesis(NamedTuple):
    """A running Kinesis."""

    url: str
    process: subprocess.Popen[bytes]

    def fill(self) -> None:
        """Put the records into the stream, if the Kinesis was started with `--fill-later`."""
        self.process.send_signal(signal.SIGUSR1)


class BenchmarkServers:
    """The servers; `make_databases` makes the databases of a run, `run_kinesis` a Kinesis with its stream."""

    def __init__(
        self,
        group: ProcessGroup,
        server: PostgresServer,
        urls: Mapping[str, str],
        tenants: int,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.group = group
        self.server = server
        self.urls = dict(urls)
        self.tenants = tenants
        self._numbers = numbers or iter(range(1, 1_000_000))

    def __repr__(self) -> str:
        return f"BenchmarkServers({self.server!r}, {self.urls})"

    @property
    def server_pid(self) -> int:
        """The process id of the Postgres server."""
        if self.server.pid is None:
            raise RuntimeError("expected a started server")
        return self.server.pid

    @asynccontextmanager
    async def as_for(self, mix: Mix) -> AsyncIterator[BenchmarkServers]:
        """Return these servers with the tenants of *mix*, and with a Postgres server of its own for its settings."""
        if not mix.settings:
            yield BenchmarkServers(self.group, self.server, self.urls, mix.tenants, self._numbers)
            return
        server = new_postgres(self.group, f"throughput-{self.next_number()}", mix.settings)
        await server.start()
        try:
            yield BenchmarkServers(self.group, server, self.urls, mix.tenants, self._numbers)
        finally:
            await server.stop()

    def next_number(self) -> int:
        """Return a number that was not returned before."""
        return next(self._numbers)

    @asynccontextmanager
    async def make_databases(
        self, shards: int, *, commit: str, has_plain_log: bool = False
    ) -> AsyncIterator[RunDatabases]:
        """Make *shards* databases with the tenants, dropped at the end; *commit* is their `synchronous_commit`."""
        run = self.next_number()
        names = [f"run{run}_{number}" for number in range(shards)]
        mapped = tuple(
            MappedShard(shard_id=f"shard-{number}", connection_string=self.server.url_of(name))
            for number, name in enumerate(names)
        )
        databases = RunDatabases(
            ShardMap(mapped), self.group.directory / f"map-{run}.json", has_plain_log=has_plain_log
        )
        async with AsyncExitStack() as exits:
            for name, shard in zip(names, mapped, strict=True):
                exits.push_async_callback(self._drop_database, name)
                await self._make_database(name, shard, databases.shard_map, commit)
                if has_plain_log:
                    await execute(shard.connection_string, PLAIN_LOG_SQL)
            for shard in mapped:
                connection = await asyncpg.connect(shard.connection_string)
                exits.push_async_callback(connection.close)
                databases.connections.append(connection)
            databases.path.write_bytes(msgspec.json.encode(databases.shard_map))
            yield databases

    async def _make_database(self, name: str, shard: MappedShard, shard_map: ShardMap, commit: str) -> None:
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

    async def _drop_database(self, name: str) -> None:
        await execute(self.server.url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @asynccontextmanager
    async def run_kinesis(self, records: int, stream_shards: int, *options: str) -> AsyncIterator[FilledKinesis]:
        """Run a Kinesis with *records* in its stream."""
        arguments = ["--records", str(records), "--stream-shards", str(stream_shards), "--tenants", str(self.tenants)]
        async with self.run_kinesis_program("benchmarks.throughput.filled_kinesis", *options, *arguments) as kinesis:
            yield kinesis

    @asynccontextmanager
    async def run_kinesis_program(self, module: str, *arguments: str) -> AsyncIterator[FilledKinesis]:
        """Run *module*, which serves a Kinesis at `--port` and logs that it has started."""
        port, log_path = free_port(), self.group.directory / f"kinesis-{self.next_number()}.log"
        process = self.group.spawn([sys.executable, "-m", module, "--port", str(port), *arguments], log_path=log_path)
        try:

            async def has_started() -> bool:
                return process.poll() is not None or KINESIS_STARTED in log_path.read_bytes()

            if not await poll_until(has_started, within_s=FILL_TIMEOUT_S) or process.poll() is not None:
                raise StackError(f"expected a filled stream: {log_path.read_text(errors='replace')[-300:]}")
            yield FilledKinesis(f"http://{HOST}:{port}", process)
        finally:
            process.kill()
            process.wait()

    def worker_env(self, kinesis_url: str, databases: RunDatabases, **settings: str) -> dict[str, str]:
        """Return the environment of a worker as a user runs it, with its settings' defaults."""
        return {
            "AWS_REGION": REGION,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.urls["aws"],
            "AWS_ENDPOINT_URL_KINESIS": kinesis_url,
            "AWS_ENDPOINT_URL_SQS": self.urls["sqs"],
            "KINESIS_STREAM_NAME": STREAM_NAME,
            "KINESIS_APPLICATION_NAME": f"bench-{self.next_number()}",
            "SQS_DEAD_LETTER_QUEUE_URL": self.urls["dead_letters"],
            "SHARD_MAP_FILE": str(databases.path),
            "HTTP_HOST": HOST,
            "HTTP_PORT": "0",  # any: a port chosen before may be in use by then
            "API_TOKEN": API_TOKEN,
            **settings,
        }


def new_postgres(group: ProcessGroup, name: str, settings: Mapping[str, str]) -> PostgresServer:
    """Return a server that is not started, with settings of production and *settings*."""
    programs = PostgresPrograms.find(group.directory)
    return PostgresServer(group, programs, database=name, settings=SERVER_SETTINGS | dict(settings))


@asynccontextmanager
async def run_servers(tenants: int) -> AsyncIterator[BenchmarkServers]:
    """Run the servers; none of their processes outlives the context."""
    with ProcessGroup() as group:
        server = new_postgres(group, "throughput", {})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.start())
            aws, sqs = tasks.create_task(start_moto(group)), tasks.create_task(start_sqs(group))
        urls = {"aws": aws.result(), "sqs": sqs.result()}
        async with aws_client("sqs", urls["sqs"]) as client:
            urls["dead_letters"] = (await client.create_queue(QueueName="dead-letters"))["QueueUrl"]
        yield BenchmarkServers(group, server, urls, tenants)


def clock() -> float:
    """Return the time by which processes and Postgres agree on this machine, in seconds."""
    return time.time()
