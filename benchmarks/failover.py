"""How soon the stream shards of a replica that goes away are read again: killed, stopped in order, frozen.

    python -m benchmarks.failover [--replicas 4] [--stream-shards 16] [--lease-duration 10] [--rounds 2]

Starts the embedded stack and the replicas, keeps a small load on every stream shard, and prints for each way to go
away how long no record of the affected stream shards was committed: from the signal to the first commit after it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import Tenant, make_tenants

RESOURCE_TYPES = 64  # so many keys that every stream shard has some
BALANCE_WITHIN_S = 60.0
SETTLE_S = 3.0


@dataclass(frozen=True)
class Gap:
    """For how long no record of the stream shards of one replica was committed."""

    way: str
    seconds: list[float]
    bound_s: float


def main() -> None:
    """Run the benchmark; exit status 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--stream-shards", type=int, default=16)
    parser.add_argument("--lease-duration", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    console = Console()
    async with AsyncExitStack() as around:
        stack = await around.enter_async_context(
            Stack(shards=2, stream_shards=arguments.stream_shards, tenants_per_shard=2)
        )
        bench = Bench(stack, arguments)
        await bench.start()
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(bench.produce(), name="load")
            gaps = [gap async for gap in bench.measure(console)]
            load.cancel()
    table = Table("way to go away", "stream shards", "median gap", "longest gap", "bound")
    for way, group in itertools.groupby(sorted(gaps, key=lambda gap: gap.way), key=lambda gap: gap.way):
        same = list(group)
        seconds = [second for gap in same for second in gap.seconds]
        table.add_row(
            way,
            str(len(seconds)),
            f"{statistics.median(seconds):.2f} s",
            f"{max(seconds):.2f} s",
            f"{same[0].bound_s:g} s",
        )
    console.print(table)
    return 0 if all(max(gap.seconds) <= gap.bound_s for gap in gaps) else 1


class Bench:
    """The replicas, their load, and what happens to them."""

    def __init__(self, stack: Stack, arguments: argparse.Namespace) -> None:
        self._stack = stack
        self._duration_s = arguments.lease_duration
        self._stream_shards = arguments.stream_shards
        self._replica_count = arguments.replicas
        self._rounds = arguments.rounds
        self._numbers = itertools.count()
        self._workers: list[WorkerProcess] = []
        self._tenants: list[Tenant] = make_tenants(4, run="failover")

    async def start(self) -> None:
        """Start the replicas and the tenants; return when the leases are balanced."""
        env = self._stack.env
        for _ in range(self._replica_count):
            await self._start_worker()
        async with open_client("sqs", env) as sqs:
            await create_tenants(sqs, env["SQS_SHARD_CREATION_QUEUE_URL"], self._tenants, seed=1)
        await self._wait_until_balanced()

    async def produce(self) -> None:
        """Keep a small load on every stream shard until cancelled."""
        async with open_client("kinesis", self._stack.env) as kinesis:
            for number in itertools.count():
                tenant = self._tenants[number % len(self._tenants)]
                records = [_record(tenant, f"type-{one}", number) for one in range(RESOURCE_TYPES)]
                await kinesis.put_records(StreamName=self._stack.env["KINESIS_STREAM_NAME"], Records=records)
                await asyncio.sleep(0.1)

    async def measure(self, console: Console) -> Any:
        """Yield one gap for each round and way."""
        for number in range(self._rounds):
            for way, signal_number, bound_s in (
                ("kill -9", signal.SIGKILL, self._duration_s + 2),
                ("SIGTERM", signal.SIGTERM, 2.0),
                ("frozen (SIGSTOP)", signal.SIGSTOP, self._duration_s + 2),
            ):
                await self._wait_until_balanced()
                await asyncio.sleep(SETTLE_S)
                worker = self._workers.pop(0)
                affected = await self._list_stream_shards_of(worker)
                console.print(f"round {number + 1}: {way} of a replica that reads {len(affected)} stream shards")
                yield Gap(way, await self._measure_gaps(worker, signal_number, affected), bound_s)
                if signal_number == signal.SIGSTOP:
                    worker.kill()
                await self._start_worker()

    async def _measure_gaps(self, worker: WorkerProcess, signal_number: int, affected: set[str]) -> list[float]:
        assert worker.pid is not None
        gone_at = datetime.now(UTC)
        worker.send_signal(signal_number)
        commits: dict[str, datetime] = {}

        async def all_seen() -> bool:
            commits.update(await self._find_first_commits(gone_at))
            return affected <= commits.keys()

        await poll_until(all_seen, within_s=self._duration_s * 3 + 10)
        return [
            (commits[one] - gone_at).total_seconds() if one in commits else float("inf") for one in sorted(affected)
        ]

    async def _find_first_commits(self, instant: datetime) -> dict[str, datetime]:
        """Return, by stream shard, the first commit of a record that arrived after *instant*."""
        found: dict[str, datetime] = {}
        for server in self._stack.servers.values():
            connection = await asyncpg.connect(server.url)
            try:
                rows = await connection.fetch(
                    "SELECT stream_shard_id, min(completed_at) AS at FROM operations WHERE received_at > $1 GROUP BY 1",
                    instant,
                )
            finally:
                await connection.close()
            for row in rows:
                known = found.get(row["stream_shard_id"], row["at"])
                found[row["stream_shard_id"]] = min(known, row["at"])
        return found

    async def _wait_until_balanced(self) -> None:
        async def even() -> bool:
            counts: dict[str, int] = {}
            for row in await self._list_leases():
                owner = row.get("leaseOwner", {}).get("S")
                if owner is None:
                    return False
                counts[owner] = counts.get(owner, 0) + 1
            return len(counts) == len(self._workers) and max(counts.values()) - min(counts.values()) <= 1

        if not await poll_until(even, within_s=BALANCE_WITHIN_S):
            raise SystemExit(f"the leases are not balanced after {BALANCE_WITHIN_S:g} s")

    async def _list_stream_shards_of(self, worker: WorkerProcess) -> set[str]:
        owned = [
            row for row in await self._list_leases() if f":{worker.pid}:" in row.get("leaseOwner", {}).get("S", "")
        ]
        return {row["leaseKey"]["S"] for row in owned}

    async def _list_leases(self) -> list[Mapping[str, Any]]:
        async with self._stack.aws_client("dynamodb") as dynamodb:
            reply = await dynamodb.scan(TableName=self._stack.env["KINESIS_APPLICATION_NAME"])
        return list(reply["Items"])

    async def _start_worker(self) -> None:
        env = self._stack.env | {"KINESIS_LEASE_DURATION_SECONDS": str(self._duration_s)}
        worker = WorkerProcess(self._stack.group, env, number=next(self._numbers))
        worker.start()
        await worker.wait_ready()
        self._workers.append(worker)


def _record(tenant: Tenant, resource_type: str, number: int) -> dict[str, Any]:
    message = {
        "operation": "create",
        "businessId": tenant.business_id,
        "locationId": tenant.location_id,
        "resourceType": resource_type,
        "resourceId": f"{resource_type}-{number}",
        "requestId": f"{resource_type}-{number}",
        "timestamp": datetime.now(UTC).isoformat(),
        "data": {"number": number},
    }
    return {"Data": json.dumps(message).encode(), "PartitionKey": f"{tenant.tenant_id}-{resource_type}"}


if __name__ == "__main__":
    main()
