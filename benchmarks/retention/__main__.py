"""Measure a shard whose log is deleted as fast as it grows: sizes, latency, and the cost of the retention.

    python -m benchmarks.retention [--operations 10000000] [--kept 2000000] [--rate 20000]

Starts a Postgres server with settings of production, a Kinesis into which records flow at a steady rate
(`flowing_kinesis.py`), and one worker whose log is kept for as long as `--kept` operations take (`worker.py`). Time is
short in proportion: autovacuum looks at the tables twenty times while a row stays, and there is a checkpoint, with the
images of pages that follow it. Each twentieth of the way the sizes of the log, of its indexes and of the resources are
read, with their dead rows, the WAL, the time of the retention's statements, the worker's memory, and the times from
arrival to commit of a trickle of a tenant of its own.

Judged are the second fifth, from whose begin on the log has its length, to the last one: neither the log nor the
resources may grow, the retention must keep up, and the last fifth must not be slower than the second one. Exit status 1
when a target is missed. An operation that is not applied ends the program. A run takes nine minutes, two cores and
16 GB of disk, on a machine without other work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import msgspec
import uvloop
from rich.console import Console
from support.load.console import log_errors_only, open_console
from support.postgres.databases import execute
from support.processes.resource_usage import cpu_seconds, rss_bytes

from benchmarks.retention.load import RETENTION_MIX, TRICKLE_LOCATION
from benchmarks.retention.report import RetentionResults, Sample, line_of, make_targets, show
from benchmarks.retention.sampling import COUNT_SQL, EXTENSIONS, FAILED_SQL, LATENCIES_SQL, read_bloat, read_sizes
from benchmarks.targets import exit_status
from benchmarks.throughput.__main__ import machine
from benchmarks.throughput.mixes import FILLED_ROWS, RESOURCE_COLUMNS, filled_rows
from benchmarks.throughput.records import BUSINESS_ID, BUSINESS_TYPE
from benchmarks.throughput.runs import inherited_env
from benchmarks.throughput.testbed import INSERT_TENANTS, BenchmarkServers, FilledKinesis, RunDatabases, run_servers
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import running_processes, with_descendants
from simplu_local.processes.worker_process import log_tail
from simplu_worker.operations.operation import tenant_id_of

SAMPLES: Final = 20
TURNS: Final = 50  # of the retention, in the time that a row stays
TURN_LEAST_S: Final = 1.0
POLL_S: Final = 0.2
TAIL_S: Final = 1.5  # before the end: a server counts the rows of a session that is idle some seconds later
BEHIND_WITHIN_S: Final = 60.0
READY_WITHIN_S: Final = 30.0
CHECKPOINT_LEAST_S: Final = 30  # of Postgres
TRICKLE_TENANT: Final = tenant_id_of(BUSINESS_ID, TRICKLE_LOCATION)


def main() -> None:
    """Run the benchmark."""
    log_errors_only()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000_000)
    parser.add_argument("--kept", type=int, default=2_000_000, help="operations whose rows of the log are kept")
    parser.add_argument("--rate", type=float, default=20_000.0, help="operations/s")
    parser.add_argument("--stream-shards", type=int, default=32)
    parser.add_argument("--resources", type=int, default=FILLED_ROWS, help="that exist before the run")
    parser.add_argument("--slack", type=float, default=1.0, help="multiplies every bound, for runs of a small scale")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples to FILE")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, read the samples from FILE")
    sys.exit(uvloop.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console()
    if arguments.from_json:
        results = msgspec.json.decode(arguments.from_json.read_bytes(), type=RetentionResults)
    else:
        results = RetentionResults(machine(), arguments.operations, arguments.kept, arguments.rate)
        try:
            await measure(arguments, results, console)
        finally:  # samples taken before an error are useful too
            if arguments.json:
                arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    targets = make_targets(results, slack=arguments.slack)
    show(results, targets, console)
    return exit_status(targets, ())


async def measure(arguments: argparse.Namespace, results: RetentionResults, console: Console) -> None:
    """Run the servers and the worker, and take the samples into *results*."""
    settings = {
        "shared_preload_libraries": "pg_stat_statements",
        "autovacuum_naptime": f"{max(1, round(results.kept_s / SAMPLES))}s",
        "checkpoint_timeout": f"{max(CHECKPOINT_LEAST_S, round(results.kept_s))}s",
        "max_wal_size": "16GB",
    }
    mix = msgspec.structs.replace(RETENTION_MIX, settings=MappingProxyType(settings))
    async with (
        run_servers(mix.tenants) as servers,
        servers.as_for(mix) as own,
        own.make_databases(1, commit="on") as databases,
    ):
        await fill(databases, arguments.resources)
        flow = ["--records", str(results.operations), "--rate", str(results.rate)]
        flow += ["--stream-shards", str(arguments.stream_shards), "--resources", str(arguments.resources)]
        async with own.run_kinesis_program("benchmarks.retention.flowing_kinesis", *flow) as kinesis:
            await RetentionBenchmark(own, databases, kinesis, results).measure(console)
        results.bloat = await read_bloat(databases.connections[0])
        results.failed = sum([row["count"] for row in await databases.fetch_rows(FAILED_SQL)])


async def fill(databases: RunDatabases, resources: int) -> None:
    """Write the resources that exist before the run, and the tenant of the trickle; the log is empty."""
    (connection,) = databases.connections
    url = databases.shard_map.shards[0].connection_string
    await execute(url, INSERT_TENANTS, [TRICKLE_TENANT], BUSINESS_ID, BUSINESS_TYPE, [TRICKLE_LOCATION])
    rows = filled_rows(RETENTION_MIX, BUSINESS_TYPE, count=resources).resources
    await connection.copy_records_to_table("resources", records=rows, columns=RESOURCE_COLUMNS)
    await connection.execute("VACUUM (ANALYZE) resources")
    await connection.execute(EXTENSIONS)


class RetentionBenchmark:
    """One worker, and the samples of the way."""

    def __init__(
        self, servers: BenchmarkServers, databases: RunDatabases, kinesis: FilledKinesis, results: RetentionResults
    ) -> None:
        self._servers, self._databases, self._kinesis = servers, databases, kinesis
        self._results = results
        self._log_path = servers.group.directory / "worker.log"
        program = [sys.executable, "-m", "benchmarks.retention.worker", "--kept-s", str(results.kept_s)]
        program += ["--turn-s", str(max(TURN_LEAST_S, results.kept_s / TURNS))]
        env = inherited_env() | servers.worker_env(kinesis.url, databases)
        self._process = servers.group.spawn(program, log_path=self._log_path, env=env)
        self._begun = 0.0
        self._before: Any = None

    async def measure(self, console: Console) -> None:
        """Let the records flow, and take the samples."""
        async with aiohttp.ClientSession() as session:
            try:
                await self._wait_until_reading(session)
                self._begun = time.monotonic()
                self._before, *_ = await read_sizes(self._databases.connections[0])
                self._kinesis.fill()
                wanted, tail = self._results.operations, int(self._results.rate * TAIL_S)
                for number in range(1, SAMPLES + 1):
                    await self._wait_until_applied(session, min(wanted * number // SAMPLES, wanted - tail))
                    self._results.samples.append(await self._take_sample(session))
                    console.print(line_of(self._results.samples[-1]))
                await self._wait_until_applied(session, wanted)
            finally:
                self._process.kill()
                self._process.wait()

    async def _wait_until_reading(self, session: aiohttp.ClientSession) -> None:
        async def is_reading() -> bool:
            self._check_running()
            async with session.get(f"{self._kinesis.url}/_control") as reply:
                calls = (await reply.json())["calls"]
            return int(calls.get("GetRecords", 0)) > 0

        if not await poll_until(is_reading, within_s=READY_WITHIN_S):
            raise SystemExit(f"expected a worker that reads the stream:\n{log_tail(self._log_path)}")

    async def _wait_until_applied(self, session: aiohttp.ClientSession, count: int) -> None:
        """Wait until the log got *count* rows, without those of the trickle."""
        progress, since = -1, time.monotonic()
        while True:
            self._check_running()
            flow = await self._read_flow(session)
            (row,) = await self._databases.fetch_rows(COUNT_SQL)
            applied = row["count"] - flow["trickled"]
            if applied >= count:
                return
            if applied > progress:
                progress, since = applied, time.monotonic()
            elif time.monotonic() - since > BEHIND_WITHIN_S:
                raise SystemExit(f"expected {count} operations, got {applied}:\n{log_tail(self._log_path)}")
            await asyncio.sleep(POLL_S)

    async def _take_sample(self, session: aiohttp.ClientSession) -> Sample:
        connection = self._databases.connections[0]
        flow = await self._read_flow(session)
        at, sizes, deletions = await read_sizes(connection)
        rows = await connection.fetch(LATENCIES_SQL, TRICKLE_TENANT, self._before, at)
        self._before = at
        backends = with_descendants([self._servers.server_pid], running_processes())
        return Sample(
            at_s=time.monotonic() - self._begun,
            operations=int(sizes["inserted"]),
            sizes=sizes,
            deletions=deletions,
            latencies_s=[row["latency_s"] for row in rows],
            worker_rss_bytes=rss_bytes(self._process.pid) or 0,
            worker_s=cpu_seconds([self._process.pid], lambda _: "worker")["worker"],
            server_s=cpu_seconds(backends, lambda _: "server", with_ended=True)["server"],
            unread=flow["unread"],
            waited_s=flow["waited_s"],
        )

    async def _read_flow(self, session: aiohttp.ClientSession) -> Any:
        async with session.get(f"{self._kinesis.url}/_control") as reply:
            return (await reply.json())["flow"]

    def _check_running(self) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"expected a running worker, it ended:\n{log_tail(self._log_path)}")


if __name__ == "__main__":
    main()
