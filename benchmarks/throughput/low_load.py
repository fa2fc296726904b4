"""The cost of a record where few come: a fleet that waits most of the time pays for requests and transactions.

Few records a second over several stream shards and Postgres shards, some of them invalid: each read has a handful, a
transaction has three or four operations of one shard, and the invalid ones become dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

import msgspec

from benchmarks.throughput.measures import LATENCY_SETTLE_S, put_steadily
from benchmarks.throughput.records import SEED, PutRecord, make_records
from benchmarks.throughput.runs import OURS_HERE, Checkout, Contender, UsageSampler, run_clients
from benchmarks.throughput.testbed import BenchmarkServers
from simplu_local.workload.bad_records import make_bad_record

RATE, STREAM_SHARDS, SHARDS, INVALID = 235, 4, 3, 0.06


class LowLoadFigures(msgspec.Struct, frozen=True, rename="camel"):
    """The processor time of a record; `invalid` is the share of records that become dead letters.

    `worker` is empty for the worker of this checkout, else the name of another one.
    """

    round: int
    rate: float
    stream_shards: int
    shards: int
    invalid: float
    client_us: float
    server_us: float
    worker: str = ""


async def measure_low_load(
    servers: BenchmarkServers, *, seconds: float, round_number: int = 1, checkout: Checkout = OURS_HERE
) -> LowLoadFigures:
    """Put RATE records a second for *seconds*; return the processor time of a record."""
    async with (
        servers.run_kinesis(0, STREAM_SHARDS) as kinesis,
        servers.make_databases(SHARDS, commit="on") as databases,
        run_clients(Contender.WORKER, servers, kinesis.url, databases, checkout) as clients,
    ):
        load = list(mixed_records(int(RATE * (LATENCY_SETTLE_S + seconds)), servers.tenants))
        settling = int(RATE * LATENCY_SETTLE_S)
        await put_steadily(kinesis.url, load[:settling], RATE)
        sampler = UsageSampler(clients.pids, servers.server_pid)
        sampler.take_sample()
        await put_steadily(kinesis.url, load[settling:], RATE)
        sampler.take_sample()
        clients.check_running()
        if not await databases.has_operations():
            raise SystemExit(f"expected the worker to apply operations, got none:\n{clients.log_tails()}")
        client_s, server_s, _ = sampler.used_between(sampler.samples[0].at, sampler.samples[-1].at)
        records = len(load) - settling
        return LowLoadFigures(
            round=round_number,
            rate=RATE,
            stream_shards=STREAM_SHARDS,
            shards=SHARDS,
            invalid=INVALID,
            client_us=client_s / records * 1e6,
            server_us=server_s / records * 1e6,
            worker=checkout.name,
        )


def mixed_records(count: int, tenants: int) -> Iterator[PutRecord]:
    """Yield *count* records, a share of INVALID of them invalid in one of many ways."""
    random = Random(SEED)
    for record in make_records(count, tenants, run="w"):
        if random.random() >= INVALID:
            yield record
            continue
        data, _ = make_bad_record(random, json.loads(record.data) | {"operation": "create"})
        yield PutRecord(record.partition_key, data)
