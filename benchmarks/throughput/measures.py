"""The measurements of the throughput benchmark besides rates: latency, two replicas, order events."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec
from support.processes.resource_usage import ValueRange

from benchmarks.throughput.records import PutRecord, make_records
from benchmarks.throughput.runs import (
    FIRST_WITHIN_S,
    LATENCIES_SQL,
    OURS,
    WITHIN_QUOTAS,
    Cell,
    Clients,
    Contender,
    Run,
    Runner,
    StalledError,
    UsageSampler,
    run_clients,
    warm_up_s,
)
from benchmarks.throughput.testbed import BenchmarkServers, clock
from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.stack.aws import STREAM_NAME, aws_client

APPLIED_WITHIN_S = 20.0
BALANCED_WITHIN_S = 90.0
SETTLE_S = 1.0
PUT_EVERY_S = 0.02
LATENCY_SETTLE_S = 3.0  # the first records wait until the worker has connected to the shard
ORDERS_TIMEOUT_S = 900


class LatencyFigures(msgspec.Struct, frozen=True, rename="camel"):
    """Durations from a record's arrival, by Kinesis's clock, to the commit of its transaction, by Postgres's."""

    rate: float
    operations: int
    p50_s: float
    p99_s: float
    most_s: float
    client_cores: float
    contender: Contender = msgspec.field(name="who", default=Contender.WORKER)


class OrderFigures(msgspec.Struct, frozen=True, rename="camel"):
    """SQS order events of a worker, and of a loop that receives, applies and deletes one by one."""

    latency_ms: int
    worker_rates: list[float]
    naive_rates: list[float]
    worker_us: float
    naive_us: float

    @property
    def ratios(self) -> ValueRange:
        """The worker's rate ÷ the loop's, run by run."""
        return ValueRange.from_values(
            [one / other for one, other in zip(self.worker_rates, self.naive_rates, strict=True)]
        )


async def measure_latency(
    servers: BenchmarkServers,
    *,
    rate: int,
    seconds: float,
    stream_shards: int = 4,
    contender: Contender = Contender.WORKER,
) -> LatencyFigures:
    """Put *rate* records a second for *seconds*, once *contender* has applied others; return the latencies."""
    async with (
        servers.run_kinesis(0, stream_shards) as kinesis,
        servers.make_databases(1, commit="on", has_plain_log=contender not in OURS) as databases,
        run_clients(contender, servers, kinesis.url, databases) as clients,
    ):
        await send_commands(kinesis.url, SetOptions({"read_throttling": contender in WITHIN_QUOTAS}))
        settling = int(rate * max(LATENCY_SETTLE_S, warm_up_s(contender)))
        load = list(make_records(settling + int(rate * seconds), servers.tenants, run="l"))

        async def are_applied(count: int) -> bool:
            clients.check_running()
            return await databases.count_operations() >= count

        await put_steadily(kinesis.url, load[:settling], rate)
        if not await poll_until(partial(are_applied, settling), within_s=FIRST_WITHIN_S):
            raise StalledError(f"{contender}: expected {settling} operations to be applied:\n{clients.log_tails()}")
        sampler = UsageSampler(clients.pids, servers.server_pid)
        sampler.take_sample()
        begun_at = clock()
        await put_steadily(kinesis.url, load[settling:], rate)
        ended_at = clock()
        sampler.take_sample()
        if not await poll_until(partial(are_applied, len(load)), within_s=APPLIED_WITHIN_S):
            applied = await databases.count_operations()
            raise SystemExit(
                f"expected {len(load)} operations to be applied within {APPLIED_WITHIN_S:g} s, got {applied}"
            )
        query = f"{LATENCIES_SQL} AND received_at >= to_timestamp({begun_at:.3f})"
        taken = sorted(row["latency_s"] for row in await databases.fetch_rows(query))
        client_s, *_ = sampler.used_between(begun_at, ended_at)
        return LatencyFigures(
            rate=rate,
            operations=len(taken),
            p50_s=taken[len(taken) // 2],
            p99_s=taken[len(taken) * 99 // 100],
            most_s=taken[-1],
            client_cores=client_s / (ended_at - begun_at),
            contender=contender,
        )


async def put_steadily(url: str, load: Sequence[PutRecord], rate: int) -> None:
    """Put records at a steady rate, a few at a time."""
    step = max(1, int(rate * PUT_EVERY_S))
    due = time.monotonic()
    async with aws_client("kinesis", url) as client:
        for at in range(0, len(load), step):
            entries = [{"Data": one.data, "PartitionKey": one.partition_key} for one in load[at : at + step]]
            await client.put_records(StreamName=STREAM_NAME, Records=entries)
            due += step / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def measure_pair(
    servers: BenchmarkServers, *, records_count: int, seconds: float, stream_shards: int, round_number: int
) -> tuple[Run, Run]:
    """Return a run of one worker and one of two; the workers hold their leases before the records are put.

    The order alternates by round, so that load of other programs affects both alike.
    """
    runs = {}
    order = [Contender.WORKER, Contender.TWO_WORKERS]
    for contender in order if round_number % 2 else reversed(order):
        async with servers.run_kinesis(records_count, stream_shards, "--fill-later") as kinesis:
            runner = Runner(servers, kinesis, records=records_count, seconds=seconds, round_number=round_number)

            async def begin(application: str, clients: Clients, contender: Contender = contender) -> None:
                await _wait_until_balanced(
                    servers, application, stream_shards, 2 if contender is Contender.TWO_WORKERS else 1, clients
                )
                kinesis.fill()

            runs[contender] = await runner.measure(Cell(contender, stream_shards), begin=begin)
    return runs[Contender.WORKER], runs[Contender.TWO_WORKERS]


async def _wait_until_balanced(
    servers: BenchmarkServers, application: str, stream_shards: int, replicas: int, clients: Clients
) -> None:
    """Wait until *replicas* workers share the leases evenly, and read."""
    async with aws_client("dynamodb", servers.urls["aws"]) as client:

        async def is_even() -> bool:
            clients.check_running()
            try:
                rows = (await client.scan(TableName=application))["Items"]
            except client.exceptions.ResourceNotFoundException:
                return False
            owners = Counter(row["leaseOwner"]["S"] for row in rows if "leaseOwner" in row)
            even = max(owners.values(), default=0) - min(owners.values(), default=0) <= 1
            return owners.total() == stream_shards and len(owners) == replicas and even

        if not await poll_until(is_even, within_s=BALANCED_WITHIN_S):
            raise SystemExit(f"expected {replicas} workers to share {stream_shards} leases in {BALANCED_WITHIN_S:g} s")
    await asyncio.sleep(SETTLE_S)


async def measure_orders(*, events: int, naive_events: int, runs: int, latency_ms: int) -> list[OrderFigures]:
    """Run the benchmark of order events; return its figures, with and without a latency of SQS."""
    command = [sys.executable, "-m", "benchmarks.orders", "--json", "--least-ratio", "0", "--events", str(events)]
    command += ["--naive-events", str(naive_events), "--runs", str(runs), "--latency-ms", str(latency_ms)]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=ORDERS_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"expected orders.py to end with 0, got {done.returncode}: {done.stderr.decode()[-1000:]}")
    pairs = json.loads(done.stdout)["runs"]
    found = []
    for latency in dict.fromkeys(pair["worker"]["latencyMs"] for pair in pairs):
        same = [pair for pair in pairs if pair["worker"]["latencyMs"] == latency]
        found.append(
            OrderFigures(
                latency,
                [pair["worker"]["eventsPerSecond"] for pair in same],
                [pair["naive loop"]["eventsPerSecond"] for pair in same],
                ValueRange.from_values([pair["worker"]["processorMicrosecondsPerEvent"] for pair in same]).median,
                ValueRange.from_values([pair["naive loop"]["processorMicrosecondsPerEvent"] for pair in same]).median,
            )
        )
    return found
