"""Measure 10,000 tenants on 500 databases: finding their shards, writing to all, and serving on without Citrus.

    python -m benchmarks.directory [--databases 500] [--tenants 10000] [--max-connections 100]

Starts a few Postgres servers with the databases, and a local Citrus. Directory, pools and gateway run in a separate
process, as in the worker. Every tenant is found once (cold), looked up again (warm), and written to. Then shards are
listed while Citrus is well, slow, and away: all tenants must still be served. Printed are the memory, the connections
as counted by the servers, and the longest stall of the event loop: by the clock, which includes stalls of the machine,
and by the processor time of one iteration, which is our own and has a target. Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import asyncpg
import uvloop
from prometheus_client import REGISTRY
from rich.console import Console
from rich.table import Table
from support.load.console import log_errors_only, open_console
from support.postgres.databases import TEMPLATE, make_template
from support.processes.resource_usage import rss_bytes

from benchmarks.targets import MIB, PerformanceTarget, format_number, json_targets, targets_table
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.errors import RetryableError
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import Disposition, Operation, Origin
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.citrus import open_citrus
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.shard_watch import ShardWatch
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Source

RSS_MAX_MIB = 400.0
TURN_MAX_MS = 100.0
LOOKUPS_LEAST_PER_S = 200_000.0  # on a slow machine, like the next constant
COLD_LEAST_PER_S = 25.0  # mostly connecting, as five databases share the place of one connection
API_KEY = "key-of-the-benchmark"
REQUESTS_MOST_PER_S = 2.0  # lists of all shards
CONCURRENT_FINDS = 16  # as many as a reader has in flight when answers come soon
CONCURRENT_WRITES = 16
WARM_ROUNDS = 50
LATE_S = 3600.0
STALL_SAMPLE_S = 0.002
SAMPLE_S = 0.25
SLOW_S = 2.0
INSERT = (
    "INSERT INTO tenants (id, business_id, location_id, business_type, state, control_at, created_at)"
    " SELECT 'bench-' || n, 'bench', n::text, 'gym', 'active', now() - interval '1 day', now() - interval '1 day'"
    " FROM unnest($1::int[]) AS n"
)


@dataclass
class DirectoryPhase:
    """The measurements of one phase in the measured process."""

    name: str
    seconds: float
    count: int
    stall_ms: float  # by the clock
    turn_ms: float  # the most processor time of one iteration of the event loop
    collecting_ms: float  # the most processor time of one garbage collection, which is part of an iteration
    rss_mib: float
    connections: int
    citrus_requests: int

    @property
    def rate(self) -> float:
        """The count a second."""
        return self.count / self.seconds


def main() -> None:
    """Run the benchmark, or the measured process."""
    log_errors_only()
    if sys.argv[1:] == ["--inside"]:
        uvloop.run(run_inside(json.loads(sys.stdin.readline())))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--servers", type=int, default=5)
    parser.add_argument("--pool-size", type=int, default=4, help="DATABASE_POOL_SIZE")
    parser.add_argument("--max-connections", type=int, default=100, help="DATABASE_MAX_CONNECTIONS")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase in which shards are listed")
    parser.add_argument("--rss-mib", type=float, default=RSS_MAX_MIB)
    parser.add_argument(
        "--turn-ms", type=float, default=TURN_MAX_MS, help="maximum processor time of an iteration of the event loop"
    )
    parser.add_argument("--stall-ms", type=float, help="maximum stall by the clock; for an idle machine")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json)
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(run_servers(arguments.servers))
        console.print(f"making {arguments.databases} databases on {len(servers)} servers …")
        started = time.monotonic()
        citrus = await make_databases(servers, arguments.databases, arguments.tenants)
        console.print(f"… took {time.monotonic() - started:.0f} s")
        url = await stack.enter_async_context(citrus.serve())
        watch = await stack.enter_async_context(count_connections(servers))
        phases = [phase async for phase in run_phases(arguments, url, citrus, watch, console)]
        targets = list(make_targets(phases, arguments))
        show(phases, targets, console)
    if arguments.json:
        sys.stdout.write(as_json(phases, targets) + "\n")
    return 0 if all(one.is_kept for one in targets) else 1


@asynccontextmanager
async def run_servers(count: int) -> AsyncIterator[list[PostgresServer]]:
    """Run Postgres servers, each with the template of a shard."""
    with ProcessGroup() as group:
        programs = PostgresPrograms.find(group.directory)
        servers = [PostgresServer(group, programs, database=f"server-{number}") for number in range(1, count + 1)]
        for server in servers:
            await server.start()
            await make_template(server)
        yield servers


async def make_databases(servers: Sequence[PostgresServer], databases: int, tenants: int) -> CitrusServer:
    """Make the shards, evenly on the servers, and the tenants, evenly on the shards; return a Citrus with them."""

    async def make_none() -> tuple[str, str]:
        raise AssertionError("expected no registration")

    citrus = CitrusServer(api_key=API_KEY, make_shard=make_none, max_businesses=tenants)

    async def make_some(server: PostgresServer, numbers: Sequence[int]) -> None:
        for place in numbers:
            shard_id = f"shard-{place}"
            url = await server.create_database(shard_id, template=TEMPLATE)
            connection = await asyncpg.connect(url)
            await connection.execute("UPDATE shard_meta SET shard_id = $1", shard_id)
            await connection.execute(INSERT, list(range(place, tenants, databases)))
            await connection.close()
            shard = citrus.add_shard(shard_id, url)
            for tenant in range(place, tenants, databases):
                citrus.registry.place(f"bench-{tenant}", shard)

    async with asyncio.TaskGroup() as tasks:
        for place, server in enumerate(servers):
            tasks.create_task(make_some(server, range(place, databases, len(servers))))
    return citrus


class ConnectionCounter:
    """Counts connections on the servers, except its own."""

    def __init__(self, connections: Sequence[asyncpg.Connection]) -> None:
        self._connections = connections
        self.most = 0

    async def run(self) -> None:
        """Count until cancelled."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        while True:
            self.most = max(self.most, sum([await one.fetchval(query) for one in self._connections]))
            await asyncio.sleep(SAMPLE_S)


@asynccontextmanager
async def count_connections(servers: Sequence[PostgresServer]) -> AsyncIterator[ConnectionCounter]:
    """Count the connections on *servers* while the context is entered."""
    connections = [await asyncpg.connect(server.url_of("postgres")) for server in servers]
    watch = ConnectionCounter(connections)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        yield watch
        running.cancel()
        await asyncio.wait([running])
        for connection in connections:
            await connection.close()


async def run_phases(
    arguments: argparse.Namespace, url: str, citrus: CitrusServer, watch: ConnectionCounter, console: Console
) -> AsyncIterator[DirectoryPhase]:
    """Start the measured process, set the faults of Citrus before each of its phases, and yield the measurements."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--inside", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    order = {"url": url, "tenants": arguments.tenants, "databases": arguments.databases, "seconds": arguments.seconds}
    order |= {"poolSize": arguments.pool_size, "maxConnections": arguments.max_connections}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    try:
        while line := await process.stdout.readline():
            answer = json.loads(line)
            if "next" in answer:
                citrus.faults.latency_s = SLOW_S if "Citrus slow" in answer["next"] else 0.0
                citrus.faults.is_unreachable = "Citrus away" in answer["next"]
                watch.most = 0
                process.stdin.write(b"\n")
                continue
            phase = DirectoryPhase(**answer, connections=watch.most)
            console.print(f"{phase.name}: {phase.count} in {phase.seconds:.1f} s")
            yield phase
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        raise
    await process.wait()
    if process.returncode:
        raise SystemExit(f"expected the measured process to end with status 0, got {process.returncode}")


class MeasuredProcess:
    """The process of which memory and stalls are measured."""

    def __init__(self, order: dict[str, Any], directory: Directory, gateway: ShardGateway, pools: Pools) -> None:
        self._order = order
        self._directory = directory
        self._gateway = gateway
        self._pools = pools
        self._input: asyncio.StreamReader | None = None
        self.tenant_ids = [f"bench-{number}" for number in range(order["tenants"])]
        self._stall_s = self._turn_s = self._collecting_s = 0.0

    def watch_collections(self) -> None:
        """Record the most processor time of a garbage collection."""
        started = 0.0

        def note_collection(phase: str, _: dict[str, int]) -> None:
            nonlocal started
            if phase == "start":
                started = time.process_time()
            else:
                self._collecting_s = max(self._collecting_s, time.process_time() - started)

        gc.callbacks.append(note_collection)

    async def watch_stalls(self) -> None:
        """Record the longest stall of the event loop, and the most processor time of an iteration."""
        while True:
            wanted, used = time.perf_counter() + STALL_SAMPLE_S, time.process_time()
            await asyncio.sleep(STALL_SAMPLE_S)
            late = time.perf_counter() - wanted
            self._stall_s = max(self._stall_s, late)
            self._turn_s = max(self._turn_s, time.process_time() - used)

    async def measure_phase(self, name: str, do: Callable[[], Awaitable[int]]) -> None:
        """Run *do* as a phase, and write its measurements to stdout."""
        sys.stdout.write(json.dumps({"next": name}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(2 * STALL_SAMPLE_S)
        before = count_citrus_requests()
        await asyncio.sleep(2 * STALL_SAMPLE_S)  # counting requests is an iteration that is not measured
        self._stall_s = self._turn_s = self._collecting_s = 0.0
        started = time.perf_counter()
        count = await do()
        seconds = time.perf_counter() - started
        await asyncio.sleep(2 * STALL_SAMPLE_S)
        answer = {
            "name": name,
            "seconds": seconds,
            "count": count,
            "stall_ms": 1000 * self._stall_s,
            "turn_ms": 1000 * self._turn_s,
            "collecting_ms": 1000 * self._collecting_s,
            "rss_mib": (rss_bytes_of_self() or 0) / MIB,
            "citrus_requests": count_citrus_requests() - before,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    async def do_nothing(self) -> int:
        """Do nothing, to measure the machine's own stalls."""
        await asyncio.sleep(2)
        return 0

    async def find_all(self) -> int:
        """Find every tenant, many at once; return how many were found on their shard."""
        databases = self._order["databases"]
        found = 0

        async def find(numbers: Iterable[int]) -> None:
            nonlocal found
            for tenant in numbers:
                shard_id = await self._gateway.find(f"bench-{tenant}")
                found += shard_id == f"shard-{tenant % databases}"

        numbers = iter(range(len(self.tenant_ids)))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENT_FINDS):
                tasks.create_task(find(numbers))
        return found

    async def look_up_all(self) -> int:
        """Look every tenant up repeatedly, as for every operation."""
        look_up = self._gateway.cached_shard_id
        for _ in range(WARM_ROUNDS):
            for some in batched(self.tenant_ids, 1000):
                for tenant_id in some:
                    look_up(tenant_id)
                await asyncio.sleep(0)
        return WARM_ROUNDS * len(self.tenant_ids)

    async def write_to_all(self) -> int:
        """Create a resource of every tenant, with a batch for each shard; return the number of applied operations."""
        databases, applied = self._order["databases"], 0

        async def write(shards: Iterable[int]) -> None:
            nonlocal applied
            for shard in shards:
                batch = [make_operation(tenant) for tenant in range(shard, len(self.tenant_ids), databases)]
                outcomes = await self._gateway.apply(f"shard-{shard}", batch)
                applied += sum(one.disposition is Disposition.APPLIED for one in outcomes)

        shards = iter(range(databases))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENT_WRITES):
                tasks.create_task(write(shards))
        return applied

    async def find_one_new(self) -> int:
        """Find a tenant that is not cached; return how many were found: 0 while Citrus is away."""
        with suppress(RetryableError):
            await self._gateway.find("bench-unknown")
            return 1
        return 0

    async def stay_in_use(self) -> int:
        """Look every tenant up once a second; return the mean number of tenants with a cached route."""
        known = rounds = 0
        end = loop_time() + float(self._order["seconds"])
        while loop_time() < end:
            rounds += 1
            for some in batched(self.tenant_ids, 1000):
                known += sum(self._gateway.cached_shard_id(tenant_id) is not None for tenant_id in some)
                await asyncio.sleep(0)
            await asyncio.sleep(1)
        return known // rounds


async def run_inside(order: dict[str, Any]) -> None:
    """Run the phases of the measured process."""
    offset_s = 0.0

    def clock() -> float:
        return loop_time() + offset_s

    async with (
        open_citrus(order["url"], api_key=API_KEY, timeout_s=5, attempts=3, allowed_hosts=()) as citrus,
        Pools(size=order["poolSize"], max_connections=order["maxConnections"]) as pools,
        asyncio.TaskGroup() as tasks,
    ):
        directory = Directory(citrus, pools, clock=clock)
        gateway = ShardGateway(directory, citrus, pools, tenant_wait=timedelta(minutes=15))
        process = MeasuredProcess(order, directory, gateway, pools)
        process.watch_collections()
        background = [
            tasks.create_task(process.watch_stalls()),
            tasks.create_task(ShardWatch(citrus, pools, directory.routes, clock=clock).run()),
        ]
        await process.measure_phase("idle", process.do_nothing)
        await process.measure_phase("cold", process.find_all)
        await process.measure_phase("warm", process.look_up_all)
        await process.measure_phase("writes", process.write_to_all)
        for name in ("Citrus well", "Citrus slow", "Citrus away"):
            offset_s += LATE_S
            await process.measure_phase(name, process.stay_in_use)

        await process.measure_phase("new, Citrus away", process.find_one_new)
        await process.measure_phase("Citrus back", process.stay_in_use)
        for task in background:
            task.cancel()


def make_operation(tenant: int) -> Operation:
    """Return an operation of one of the tenants."""
    record = {
        "operation": "create",
        "businessId": "bench",
        "locationId": str(tenant),
        "resourceType": "member",
        "resourceId": "r1",
        "timestamp": datetime.now(UTC).isoformat(),
        "requestId": f"request-{tenant}",
        "data": {"name": f"member of {tenant}"},
    }
    origin = Origin(
        source=Source.KINESIS,
        name="bench",
        arrived_at=datetime.now(UTC),
        stream_shard_id="shardId-000000000000",
        sequence_number=str(tenant + 1),
    )
    decoded = decode_operation(json.dumps(record).encode(), origin, max_bytes=2**20, list_limit=1000)
    if not isinstance(decoded, Operation):
        raise TypeError(str(decoded))
    return decoded


def batched(items: Sequence[str], count: int) -> Iterable[Sequence[str]]:
    """Yield *items* in sequences of at most *count*."""
    iterator = iter(items)
    while part := list(islice(iterator, count)):
        yield part


def count_citrus_requests() -> int:
    """Return the number of requests to Citrus so far."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return round(sum(one.value for one in samples if one.name == "simplu_citrus_request_seconds_count"))


def rss_bytes_of_self() -> int | None:
    """Return the resident memory of this process."""
    return rss_bytes(os.getpid())


def make_targets(phases: Sequence[DirectoryPhase], arguments: argparse.Namespace) -> Iterable[PerformanceTarget]:
    """Yield the targets of the phases."""
    by_name = {phase.name: phase for phase in phases}
    tenants = arguments.tenants
    yield PerformanceTarget("tenants found on their shard", by_name["cold"].count, most=tenants, least=tenants)
    yield PerformanceTarget("found cold", by_name["cold"].rate, least=COLD_LEAST_PER_S, unit="/s")
    yield PerformanceTarget("looked up warm", by_name["warm"].rate, least=LOOKUPS_LEAST_PER_S, unit="/s")
    yield PerformanceTarget("operations applied", by_name["writes"].count, most=tenants, least=tenants)
    for name in ("Citrus well", "Citrus slow", "Citrus away", "Citrus back"):
        yield PerformanceTarget(f"{name}: tenants served", by_name[name].count, most=tenants, least=tenants)
        rate = by_name[name].citrus_requests / by_name[name].seconds
        yield PerformanceTarget(f"{name}: requests to Citrus", rate, most=REQUESTS_MOST_PER_S, unit="/s")
    yield PerformanceTarget("new tenants found while Citrus is away", by_name["new, Citrus away"].count, most=0)
    yield PerformanceTarget("connections", max(one.connections for one in phases), most=arguments.max_connections)
    yield PerformanceTarget("memory", max(one.rss_mib for one in phases), most=arguments.rss_mib, unit="MiB")
    yield PerformanceTarget(
        "most processor time of an iteration", max(one.turn_ms for one in phases), most=arguments.turn_ms, unit="ms"
    )
    if arguments.stall_ms is not None:
        yield PerformanceTarget(
            "longest stall", max(one.stall_ms for one in phases), most=arguments.stall_ms, unit="ms"
        )


def show(phases: Sequence[DirectoryPhase], targets: Sequence[PerformanceTarget], console: Console) -> None:
    """Print tables for people."""
    table = Table(
        "phase",
        "seconds",
        "count",
        "a second",
        "longest stall",
        "longest iteration",
        "GC in it",
        "MiB",
        "connections",
        "Citrus",
    )
    for one in phases:
        stall = (
            format_number(one.stall_ms, "ms"),
            format_number(one.turn_ms, "ms"),
            format_number(one.collecting_ms, "ms"),
        )
        usage = (f"{one.rss_mib:.0f}", str(one.connections), str(one.citrus_requests))
        table.add_row(one.name, f"{one.seconds:.2f}", str(one.count), f"{one.rate:.0f}", *stall, *usage)
    console.print(table)
    console.print(targets_table(targets))


def as_json(phases: Sequence[DirectoryPhase], targets: Sequence[PerformanceTarget]) -> str:
    """Return the results as JSON for programs."""
    return json.dumps(
        {
            "phases": [vars(phase) for phase in phases],
            "bounds": json_targets(targets),
        },
        indent=2,
    )


if __name__ == "__main__":
    main()
