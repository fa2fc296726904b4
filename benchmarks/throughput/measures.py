"""What the throughput benchmark measures beside rates: latency, idling, the start, two replicas, order events."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from benchmarks.throughput.records import NewRecord, records
from benchmarks.throughput.runs import (
    LATENCIES_SQL,
    Cell,
    Clients,
    Range,
    Run,
    Runner,
    Sampler,
    Who,
    inherited,
    running,
)
from benchmarks.throughput.testbed import Bed, clock
from simplu_worker.local.processes.loopback import HOST, free_port, poll_until
from simplu_worker.local.stack.aws import STREAM_NAME, aws_client

IDLE_SETTLE_S = 8.0
READY_WITHIN_S = 20.0
READY_LOOK_S = 0.005
BALANCED_WITHIN_S = 90.0
SETTLE_S = 1.0
PUT_EVERY_S = 0.02
LATENCY_SETTLE_S = 3.0  # the first records meet a worker that has not met the shard yet
ORDERS_TIMEOUT_S = 900


class Latency(msgspec.Struct, frozen=True, rename="camel"):
    """From a record's arrival, as Kinesis says, until its transaction was committed, as Postgres says."""

    rate: float
    operations: int
    p50_s: float
    p99_s: float
    most_s: float
    client_cores: float


class Idle(msgspec.Struct, frozen=True, rename="camel"):
    """What a worker takes with nothing to do."""

    stream_shards: int
    client_cores: float
    server_cores: float
    rss_bytes: int


class Orders(msgspec.Struct, frozen=True, rename="camel"):
    """SQS order events: a worker beside a loop that receives, applies and deletes one by one."""

    latency_ms: int
    worker_rates: list[float]
    naive_rates: list[float]
    worker_us: float
    naive_us: float

    @property
    def ratios(self) -> Range:
        """The worker's rate ÷ the loop's, run by run."""
        return Range.of([one / other for one, other in zip(self.worker_rates, self.naive_rates, strict=True)])


async def measure_latency(bed: Bed, *, rate: int, seconds: float, stream_shards: int = 4) -> Latency:
    """Put *rate* records a second for *seconds*; return how long they took."""
    async with (
        bed.kinesis(0, stream_shards) as kinesis,
        bed.target(1, commit="on") as target,
        running(Who.WORKER, bed, kinesis.url, target, "") as clients,
    ):
        load = list(records(int(rate * (LATENCY_SETTLE_S + seconds)), bed.tenants, run="l"))
        settling = int(rate * LATENCY_SETTLE_S)
        await _put(kinesis.url, load[:settling], rate)
        sampler = Sampler(clients.pids, bed.server_pid)
        sampler.look()
        begun_at = clock()
        await _put(kinesis.url, load[settling:], rate)
        ended_at = clock()
        sampler.look()

        async def is_applied() -> bool:
            clients.check()
            return await target.count() >= len(load)

        if not await poll_until(is_applied, within_s=READY_WITHIN_S):
            raise SystemExit(f"{await target.count()} of {len(load)} operations were applied")
        query = f"{LATENCIES_SQL} WHERE received_at >= to_timestamp({begun_at:.3f})"
        taken = sorted(row["latency_s"] for row in await target.rows(query))
        client_s, _ = sampler.between(begun_at, ended_at)
        return Latency(
            rate=rate,
            operations=len(taken),
            p50_s=taken[len(taken) // 2],
            p99_s=taken[len(taken) * 99 // 100],
            most_s=taken[-1],
            client_cores=client_s / (ended_at - begun_at),
        )


async def _put(url: str, load: Sequence[NewRecord], rate: int) -> None:
    """Put records at a steady rate, a few at a time."""
    step = max(1, int(rate * PUT_EVERY_S))
    due = time.monotonic()
    async with aws_client("kinesis", url) as client:
        for at in range(0, len(load), step):
            entries = [{"Data": one.data, "PartitionKey": one.partition_key} for one in load[at : at + step]]
            await client.put_records(StreamName=STREAM_NAME, Records=entries)
            due += step / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def measure_idle(bed: Bed, *, seconds: float, stream_shards: int = 16) -> Idle:
    """Return what a worker takes that holds *stream_shards* on which nothing comes."""
    async with (
        bed.kinesis(0, stream_shards) as kinesis,
        bed.target(1, commit="on") as target,
        running(Who.WORKER, bed, kinesis.url, target, "") as clients,
    ):
        await asyncio.sleep(IDLE_SETTLE_S)
        sampler = Sampler(clients.pids, bed.server_pid)
        sampler.look()
        await asyncio.sleep(seconds)
        clients.check()
        sampler.look()
        client_s, server_s = sampler.between(sampler.samples[0].at, sampler.samples[-1].at)
        took_s = sampler.samples[-1].at - sampler.samples[0].at
        return Idle(stream_shards, client_s / took_s, server_s / took_s, sampler.samples[-1].rss_bytes)


async def measure_starts(bed: Bed, *, starts: int, stream_shards: int = 4) -> list[float]:
    """Return the seconds from a start to the first 200 of `/readyz`; the stream and the lease table are there."""
    found = []
    async with bed.kinesis(0, stream_shards) as kinesis, bed.target(1, commit="on") as target:
        port = free_port()
        env = bed.worker_env(kinesis.url, target, HTTP_PORT=str(port))
        for _ in range(starts + 1):
            process_env = inherited() | env
            log_path = bed.group.directory / f"client-{bed.number()}.log"
            began = time.perf_counter()
            command = [sys.executable, "-m", "simplu_worker", "run"]
            process = bed.group.spawn(command, log_path=log_path, env=process_env)
            clients = Clients([process], [log_path])
            try:
                while not await asyncio.to_thread(_is_ready, port):
                    clients.check()
                    if time.perf_counter() - began > READY_WITHIN_S:
                        raise SystemExit(f"the worker is not ready after {READY_WITHIN_S:g} s")
                    await asyncio.sleep(READY_LOOK_S)
                found.append(time.perf_counter() - began)
            finally:
                process.kill()
                process.wait()
    return found[1:]  # the first one made the lease table


def _is_ready(port: int) -> bool:
    """Ask once, with as little as can be: an HTTP client's own start would be measured."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


async def measure_two(
    bed: Bed, *, records_count: int, seconds: float, stream_shards: int, round_number: int
) -> tuple[Run, Run]:
    """Return a run of one worker and one of two, both of which hold their leases before the records come.

    Either is the first by turns: what the machine does meanwhile is for both.
    """
    runs = {}
    order = [Who.WORKER, Who.TWO_WORKERS]
    for who in order if round_number % 2 else reversed(order):
        async with bed.kinesis(records_count, stream_shards, "--fill-later") as kinesis:
            runner = Runner(
                bed, kinesis, records=records_count, seconds=seconds, lanes_python="", round_number=round_number
            )

            async def begin(application: str, clients: Clients, who: Who = who) -> None:
                await _balanced(bed, application, stream_shards, 2 if who is Who.TWO_WORKERS else 1, clients)
                kinesis.fill()

            runs[who] = await runner.measure(Cell(who, stream_shards), begin=begin)
    return runs[Who.WORKER], runs[Who.TWO_WORKERS]


async def _balanced(bed: Bed, application: str, stream_shards: int, replicas: int, clients: Clients) -> None:
    """Wait until each of *replicas* holds as many leases as any other, and reads."""
    async with aws_client("dynamodb", bed.urls["aws"]) as client:

        async def is_even() -> bool:
            clients.check()
            try:
                rows = (await client.scan(TableName=application))["Items"]
            except client.exceptions.ResourceNotFoundException:
                return False
            owners = Counter(row["leaseOwner"]["S"] for row in rows if "leaseOwner" in row)
            even = max(owners.values(), default=0) - min(owners.values(), default=0) <= 1
            return owners.total() == stream_shards and len(owners) == replicas and even

        if not await poll_until(is_even, within_s=BALANCED_WITHIN_S):
            raise SystemExit(f"{replicas} workers did not share {stream_shards} leases within {BALANCED_WITHIN_S:g} s")
    await asyncio.sleep(SETTLE_S)


async def measure_orders(*, events: int, naive_events: int, runs: int, latency_ms: int) -> list[Orders]:
    """Run the benchmark of order events; return what it found, with and without a latency of SQS."""
    command = [sys.executable, "-m", "benchmarks.orders", "--json", "--least-ratio", "0", "--events", str(events)]
    command += ["--naive-events", str(naive_events), "--runs", str(runs), "--latency-ms", str(latency_ms)]
    done = await asyncio.to_thread(
        subprocess.run, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=ORDERS_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"orders.py ended with {done.returncode}: {done.stderr.decode()[-1000:]}")
    pairs = json.loads(done.stdout)["runs"]
    found = []
    for latency in dict.fromkeys(pair["worker"]["latencyMs"] for pair in pairs):
        same = [pair for pair in pairs if pair["worker"]["latencyMs"] == latency]
        found.append(
            Orders(
                latency,
                [pair["worker"]["eventsPerSecond"] for pair in same],
                [pair["naive loop"]["eventsPerSecond"] for pair in same],
                Range.of([pair["worker"]["processorMicrosecondsPerEvent"] for pair in same]).median,
                Range.of([pair["naive loop"]["processorMicrosecondsPerEvent"] for pair in same]).median,
            )
        )
    return found
