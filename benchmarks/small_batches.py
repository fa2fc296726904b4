"""Measure transactions with few operations on many shards: in one statement, beside step by step.

    python -m benchmarks.small_batches [--shards 29] [--rounds 5] [--batches 40] [--sizes 1 2 10]

Starts one Postgres server, with fsync as in production. It has twins of so many databases, each with a writer and a
stream shard of its own. The writers of one half remember no tenants, so they go step by step. In each round and for
each size the halves take turns: a few callers, each with databases of its own, send batches to these in turn. Printed
are the processor time that a transaction takes this process and the backends, the time of a batch, and the ratios of
the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import uvloop
from rich.console import Console
from rich.markdown import Markdown
from support.load.console import log_errors_only, open_console
from support.postgres.databases import SHARD_ID, TEMPLATE, execute, make_template
from support.processes.resource_usage import ValueRange, cpu_seconds

from benchmarks.throughput.page import markdown_table
from benchmarks.writing import DURABLE, INSERT, STREAM, BatchLoad
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.operations.operation import Disposition, Operation
from simplu_worker.shards.apply.write_attempt import ShardMemory
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import PositionClaim, StreamPosition

WAYS = ("steps", "at_once")
CALLERS = 4
WARM_UP = 24  # batches, until rows are expected to be new (apply/duplicates.py)
TENANTS = 20


class Cost(NamedTuple):
    """One way, one size, one round: microseconds of processor time a transaction, and milliseconds of a batch."""

    worker_us: float
    server_us: float
    p50_ms: float
    p99_ms: float


class Target(NamedTuple):
    """A database, and what sends batches to it."""

    pool: ShardPool
    writer: ShardWriter
    claim: PositionClaim
    load: BatchLoad

    async def send(self, operations: Sequence[Operation]) -> float:
        """Apply a batch, and return the seconds that it took."""
        self.claim.position = StreamPosition(self.load.position, datetime.now(UTC))
        began = time.perf_counter()
        outcomes = await self.writer.apply(operations, self.claim)
        took_s = time.perf_counter() - began
        if any(one.disposition is not Disposition.APPLIED for one in outcomes):
            raise SystemExit(f"expected every operation to be applied, got {set(outcomes)}")
        return took_s


async def measure(targets: Sequence[Target], size: int, batches: int) -> Cost:
    """Send *batches* of *size* to each of *targets*."""
    pids = []
    for target in targets:
        async with target.pool.connection() as connection:
            pids.append(connection.get_server_pid())
    work = [
        [(one, one.load.next_batch(size)) for _ in range(batches) for one in targets[number::CALLERS]]
        for number in range(CALLERS)
    ]
    took_s: list[float] = []

    async def call(batches_of_caller: Sequence[tuple[Target, Sequence[Operation]]]) -> None:
        for target, operations in batches_of_caller:
            took_s.append(await target.send(operations))

    before_s, own_s = cpu_seconds(pids, lambda _: "backend"), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for one in work:
            tasks.create_task(call(one))
    own_s, after_s = time.process_time() - own_s, cpu_seconds(pids, lambda _: "backend")
    count = len(took_s)
    centiles = statistics.quantiles(took_s, n=100)
    return Cost(
        worker_us=own_s / count * 1e6,
        server_us=(after_s["backend"] - before_s["backend"]) / count * 1e6,
        p50_ms=centiles[49] * 1e3,
        p99_ms=centiles[98] * 1e3,
    )


@asynccontextmanager
async def run_targets(shards: int) -> AsyncIterator[dict[str, list[Target]]]:
    """Run a server with *shards* databases for each way, and send all of them a few batches."""
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="small", settings=DURABLE)
        await server.start()
        await make_template(server)
        await execute(server.url_of(TEMPLATE), INSERT, TENANTS)
        async with AsyncExitStack() as exits:
            targets: dict[str, list[Target]] = {}
            for way in WAYS:
                targets[way] = []
                for number in range(shards):
                    url = await server.create_database(f"{way}_{number}", template=TEMPLATE)
                    pool = ShardPool(ShardAddress(SHARD_ID, url), size=1)
                    exits.push_async_callback(pool.close)
                    memory = ShardMemory() if way == "at_once" else ShardMemory(tenants_max_count=0)
                    writer = ShardWriter(pool, tenant_wait=timedelta(minutes=15), memory=memory)
                    claim = PositionClaim(STREAM, f"shardId-{number:012}")
                    targets[way].append(Target(pool, writer, claim, BatchLoad(TENANTS)))
                for target in targets[way]:
                    for _ in range(WARM_UP):
                        await target.send(target.load.next_batch(1))
            yield targets


def table_of(costs: dict[tuple[str, int], list[Cost]], sizes: Sequence[int]) -> str:
    """Return the table of all sizes; ratios are of the same round."""
    lines = []
    for size in sizes:
        steps, at_once = costs["steps", size], costs["at_once", size]
        pairs = list(zip(at_once, steps, strict=True))
        lines.append(
            [
                str(size),
                *(f"{statistics.median(one.worker_us for one in rounds):.0f} µs" for rounds in (steps, at_once)),
                _range([new.worker_us / old.worker_us for new, old in pairs]),
                *(f"{statistics.median(one.server_us for one in rounds):.0f} µs" for rounds in (steps, at_once)),
                _range([new.server_us / old.server_us for new, old in pairs if old.server_us]),
                _range([new.p50_ms / old.p50_ms for new, old in pairs]),
                _range([new.p99_ms / old.p99_ms for new, old in pairs]),
            ]
        )
    head = [
        "operations",
        "worker, step by step",
        "at once",
        "÷",
        "Postgres, step by step",
        "at once",
        "÷",
        "p50 ÷",
        "p99 ÷",
    ]
    return markdown_table(head, lines)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = ValueRange.from_values(values)
    return f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"


async def run(arguments: argparse.Namespace, console: Console) -> None:
    """Measure and print."""
    costs: dict[tuple[str, int], list[Cost]] = {(way, size): [] for way in WAYS for size in arguments.sizes}
    async with run_targets(arguments.shards) as targets:
        for number in range(arguments.rounds):
            for size in arguments.sizes:
                for way in WAYS if number % 2 else WAYS[::-1]:
                    costs[way, size].append(await measure(targets[way], size, arguments.batches))
    table = table_of(costs, arguments.sizes)
    console.print(Markdown(table))
    if arguments.json:
        found = {f"{way} {size}": [one._asdict() for one in rounds] for (way, size), rounds in costs.items()}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


def main() -> None:
    """Run the benchmark."""
    log_errors_only()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=29, help="databases for each way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="for each database, size and round")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 10], help="operations a batch")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(run(arguments, open_console(as_json=arguments.json)))


if __name__ == "__main__":
    main()
