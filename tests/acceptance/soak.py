"""Run two replicas for an hour at half of the full rate, and show that nothing grows.

    python tests/acceptance/soak.py [--minutes 60] [--every 60] [--rate 2000] [--keep samples.json]

Starts the embedded stack, two Postgres shards and two replicas, which publish all changes to a stream and those of a
few tenants to a webhook. The full rate is measured first: that at which a backlog is applied, on this machine, with
producers, Kinesis and Postgres beside the workers. Then comes half of it. Every so many seconds a tenant moves to the
other shard, and what it left behind is deleted; and a sample is taken: memory, descriptors and tasks of each worker,
connections of each shard, dead rows and bytes of its tables, and the p99 from arrival to commit of two tenants with a
small load of their own.

A series is flat if it would grow by no more than its bound in the time of all samples: by the median of the slopes
between all pairs of them (Theil and Sen), which a few peaks do not change. The first fifth is left out, in which pools,
caches and tables get their size: the pools of connections to AWS, all of which are used in turn and so kept, by a
silence of AWS at the beginning. The log grows, as it keeps its rows for days, and is vacuumed by a share of them: its
bytes a row and its share of dead rows count.

Exit status 0 only if all series are flat, the rows are those of the operations put, and the webhook has all events.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
from acceptance.feeding import SECRET, Webhook
from acceptance.moving import find_differences, run_command
from rich.console import Console
from rich.table import Table
from support.load.chain_checker import read_latencies_s
from support.load.console import open_console
from support.load.operation_chains import CYCLE, ChainPlan
from support.load.testbed import Flow, Testbed
from support.processes.resource_usage import PROC, rss_bytes

from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import send_signal
from simplu_local.verify.comparison import percentile
from simplu_local.workload.producer import wait_for_stream
from simplu_local.workload.workload import Tenant

SHARDS: Final = 2
STREAM_SHARDS: Final = 8
TENANTS_PER_SHARD: Final = 20
REPLICAS: Final = 2
STREAM: Final = "changes"
FEED_STREAM_SHARDS: Final = 16
STREAM_MEMORY_BYTES: Final = 512 * 1024**2
BACKLOG: Final = 30_000
SHARE: Final = 0.5
SMALL_RATE: Final = 20.0  # operations/s of the tenant that moves, and of those whose times are measured
APPLIED_WITHIN_S: Final = 300.0
ARRIVED_WITHIN_S: Final = 60.0
SETTLED_S: Final = 5.0  # after its arrival an operation is committed, or late
SILENT_S: Final = 3.0  # of AWS: less than a lease lasts
AWS_SERVERS: Final = re.compile(r"moto_server|(kinesis|sqs)\.server")  # in their command lines
COUNTING: Final = Path(__file__).with_name("counting_tasks")
CONNECTIONS_SQL: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
TABLES_SQL: Final = """
SELECT
    relname LIKE 'log\\_%' AS is_log,
    sum(n_dead_tup)::float8 AS dead,
    sum(pg_total_relation_size(relid))::float8 AS bytes,
    sum(n_live_tup) FILTER (WHERE relname = 'log_rows')::float8 AS log_rows
FROM pg_stat_user_tables
GROUP BY 1
"""


class Bound(NamedTuple):
    """How much a series may grow: by a share of its median, or by an absolute value, whichever is more."""

    share: float
    least: float
    unit: str = ""
    scale: float = 1.0


BOUNDS: Final[Mapping[str, Bound]] = {
    "memory": Bound(0.05, 4 * 1024**2, "MiB", 1024**2),
    "descriptors": Bound(0.05, 3),
    "tasks": Bound(0.05, 3),
    "connections": Bound(0.1, 2),
    "dead rows": Bound(0.5, 5000),
    "bytes of tables": Bound(0.1, 2 * 1024**2, "MiB", 1024**2),
    "dead rows of the log": Bound(0.5, 0.1, "%", 0.01),  # a vacuum comes at 20
    "bytes a row of the log": Bound(0.1, 20),
    "p99": Bound(0.2, 0.05, "ms", 0.001),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between moves, and samples")
    parser.add_argument("--rate", type=float, help="operations/s, instead of half of the full rate")
    parser.add_argument("--keep", type=Path, help="write the samples there as JSON")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # of the dead letters' queue, whose clients time out
    sys.exit(asyncio.run(run(parser.parse_args(), open_console(piped_width=160))))


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the program; return the exit status."""
    testbed = Testbed(shards=SHARDS, stream_shards=STREAM_SHARDS, tenants_per_shard=TENANTS_PER_SHARD, replicas=0)
    async with testbed:
        soak = Soak(testbed, arguments, console)
        await soak.begin()
        rate = arguments.rate or SHARE * await soak.measure_full_rate()
        console.print(f"{rate:,.0f} operations/s for {arguments.minutes:g} minutes")
        await soak.run(rate)
        if arguments.keep is not None:
            arguments.keep.write_text(json.dumps(soak.samples, indent=1) + "\n")
        differences = await soak.find_differences()
        await testbed.stop_workers()
    grown = print_series(console, soak.samples)
    console.print(f"{soak.move_count} moves; differences: {len(differences) or 'none'}")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    console.print(f"not flat: {', '.join(grown)}" if grown else "flat")
    return 1 if grown or differences else 0


class Soak:
    """The load, the moves and the samples."""

    def __init__(self, testbed: Testbed, arguments: argparse.Namespace, console: Console) -> None:
        self.samples: list[dict[str, float]] = []
        self.move_count = 0
        self._testbed = testbed
        self._arguments = arguments
        self._console = console
        self._begun_at = 0.0

    async def begin(self) -> None:
        testbed = self._testbed
        options = {"memory_max_bytes": STREAM_MEMORY_BYTES}
        await send_commands(testbed.stack.kinesis_url, SetOptions(options=options))
        async with testbed.stack.aws_client("kinesis") as kinesis:
            await kinesis.create_stream(StreamName=STREAM, ShardCount=FEED_STREAM_SHARDS)
            await wait_for_stream(kinesis, STREAM)
        tenants = testbed.tenants_of()
        self._moving, self._probed, self._others = tenants[0], tenants[1:3], tenants[3:]
        self._webhook = Webhook(testbed, "webhook", "--faults", "0")
        feed = await self._feed_file()
        for number in range(REPLICAS):
            counting = {"PYTHONPATH": str(COUNTING), "TASKS_FILE": str(self._tasks_file(number))}
            await testbed.start_worker(feed | counting)
        await testbed.register(tenants)

    async def measure_full_rate(self) -> float:
        testbed, begun_at = self._testbed, time.monotonic()
        self._start_flow("backlog", self._others, rate=None, count=BACKLOG)
        (flow,) = testbed.flows

        async def is_put() -> bool:
            return flow.producer.put_count >= BACKLOG

        applied = await poll_until(is_put, within_s=APPLIED_WITHIN_S)
        if not applied or not await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S):
            raise SystemExit(f"expected {BACKLOG} operations to be applied within {APPLIED_WITHIN_S:g} s")
        return BACKLOG / (time.monotonic() - begun_at)

    async def run(self, rate: float) -> None:
        self._start_flow("load", self._others, rate=rate)
        self._small = [
            self._start_flow("moving", (self._moving,), rate=SMALL_RATE),
            self._start_flow("probe", self._probed, rate=SMALL_RATE),
        ]
        await self._fill_pools()
        every_s = self._arguments.every
        begun_at = self._begun_at = time.monotonic()
        for number in itertools.count(1):
            async with self._moved():
                await asyncio.sleep(begun_at + number * every_s - time.monotonic())
            sample = await self._sample()
            self.samples.append(sample)
            self._console.print(line_of(sample), soft_wrap=True)
            self._testbed.check_running()
            if sample["at"] >= self._arguments.minutes * 60:
                return

    async def find_differences(self) -> list[str]:
        testbed = self._testbed
        differences = await find_differences(testbed)
        wanted = {
            f"{flow.plan.name}-{number}"
            for flow in self._small
            for number in range(flow.producer.put_count)
            if CYCLE[number // flow.plan.chain_count % len(CYCLE)] != "read"
        }
        missing = wanted

        async def has_all() -> bool:
            nonlocal missing
            missing = wanted - {event.request for event in self._webhook.follower().holding.values()}
            return not missing

        if not await poll_until(has_all, within_s=ARRIVED_WITHIN_S):
            differences.append(f"{len(missing)} of {len(wanted)} events missing, such as {sorted(missing)[:3]}")
        return differences

    async def _fill_pools(self) -> None:
        """Let AWS be silent for a moment, so that each loop of the workers waits on a connection of its own."""
        pids = self._testbed.stack.group.pids
        servers = [pid for pid in pids if AWS_SERVERS.search((PROC / str(pid) / "cmdline").read_text())]
        send_signal(servers, signal.SIGSTOP)
        try:
            await asyncio.sleep(SILENT_S)
        finally:
            send_signal(servers, signal.SIGCONT)

    def _start_flow(
        self, name: str, tenants: Sequence[Tenant], *, rate: float | None, count: int | None = None
    ) -> Flow:
        return self._testbed.start_flow(ChainPlan(name, tuple(tenants)), rate=rate, count=count)

    async def _feed_file(self) -> dict[str, str]:
        directory = self._testbed.stack.group.directory
        secret, path = directory / "secret", directory / "feed.json"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        small = [one.tenant_id for one in (self._moving, *self._probed)]
        webhook = {"name": "few", "kind": "webhook", "target": await self._webhook.url(), "tenants": small}
        stream = {"name": "all", "kind": "kinesis", "target": STREAM, "allTenants": True, "begin": "oldest"}
        destinations = [stream, webhook | {"secretFiles": [str(secret)], "begin": "oldest"}]
        path.write_text(json.dumps({"destinations": destinations}))
        return {"FEED_FILE": str(path), "FEED_ALLOWED_HOSTS": "127.0.0.1"}

    def _tasks_file(self, number: int) -> Path:
        return self._testbed.stack.group.directory / f"tasks-{number}"

    @asynccontextmanager
    async def _moved(self) -> AsyncIterator[None]:
        async def move() -> None:
            testbed, tenant = self._testbed, self._moving
            number = 1 - testbed.urls.index(testbed.homes[tenant.tenant_id])
            shard_id = list(testbed.stack.servers)[number]
            names = tenant.business_id, tenant.location_id
            result = await run_command(testbed, "tenants", "move", *names, "--to", shard_id, "--apply", "--json")
            if result["outcome"] != "moved":
                raise SystemExit(f"expected a move, got {result}")
            testbed.homes[tenant.tenant_id] = testbed.urls[number]
            await run_command(testbed, "tenants", "cleanup", "--older-than", "0s", "--apply", "--json")
            self.move_count += 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(move())
            yield

    async def _sample(self) -> dict[str, float]:
        sample = {"at": time.monotonic() - self._begun_at}
        for number, worker in enumerate(self._testbed.workers):
            pid = worker.pid or 0
            sample[f"memory, worker {number}"] = rss_bytes(pid) or 0
            sample[f"descriptors, worker {number}"] = len(list((PROC / str(pid) / "fd").iterdir()))
            sample[f"tasks, worker {number}"] = int(self._tasks_file(number).read_text() or 0)
        for shard_id, server in self._testbed.stack.servers.items():
            sample |= {f"{name}, {shard_id}": value for name, value in (await read_server(server.url)).items()}
        until = datetime.now(UTC) - timedelta(seconds=SETTLED_S)
        since = until - timedelta(seconds=self._arguments.every)
        (_, probe) = self._small
        waits_s = await read_latencies_s(self._testbed.urls, probe.plan, since, until)
        return sample | {"p99": percentile(waits_s, 0.99) or float("inf")}


async def read_server(url: str) -> dict[str, float]:
    """Return the connections of a shard, and the dead rows and bytes of its tables (of the log: a row of it)."""
    connection = await asyncpg.connect(url, timeout=10, command_timeout=60)
    try:
        count = await connection.fetchval(CONNECTIONS_SQL)
        rows: dict[bool, Any] = {row["is_log"]: row for row in await connection.fetch(TABLES_SQL)}
    finally:
        await connection.close()
    log_rows = max(rows[True]["log_rows"], 1.0)
    return {
        "connections": count,
        "dead rows": rows[False]["dead"],
        "bytes of tables": rows[False]["bytes"],
        "dead rows of the log": rows[True]["dead"] / log_rows,
        "bytes a row of the log": rows[True]["bytes"] / log_rows,
    }


def growth_of(times: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much *values* grow from the first of *times* to the last, by the median of all pairs' slopes."""
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    slopes = [(later - value) / (then - at) for (at, value), (then, later) in pairs]
    return statistics.median(slopes) * (times[-1] - times[0])


def is_flat(growth: float, values: Sequence[float], bound: Bound) -> bool:
    return growth <= max(bound.share * statistics.median(values), bound.least)


def bound_of(name: str) -> Bound:
    return BOUNDS[name.partition(",")[0]]


def line_of(sample: Mapping[str, float]) -> str:
    parts = [f"{name} {sample[name] / bound_of(name).scale:,.0f}" for name in sample if name != "at"]
    return f"{sample['at']:.0f} s: {', '.join(parts)}"


def print_series(console: Console, samples: Sequence[Mapping[str, float]]) -> list[str]:
    """Print all series; return the names of those that are not flat."""
    used = samples[len(samples) // 5 :]
    table = Table("series", "first", "median", "last", "growth", "bound")
    grown = []
    for name in sorted(used[0].keys() - {"at"}) if len(used) > 1 else ():
        values, bound = [one[name] for one in used], bound_of(name)
        growth = growth_of([one["at"] for one in used], values)
        if not is_flat(growth, values, bound):
            grown.append(name)
        shown = (values[0], statistics.median(values), values[-1], growth)
        most = max(bound.share * statistics.median(values), bound.least)
        table.add_row(f"{name} {bound.unit}".rstrip(), *(f"{one / bound.scale:,.1f}" for one in (*shown, most)))
    console.print(table)
    return sorted(grown)


if __name__ == "__main__":
    main()
