"""Measure the provisioning of many tenants at once, on empty shards, by messages on the control queue.

    python -m benchmarks.provisioning [--tenants 200] [--shards 4] [--replicas 1] [--most-seconds 30] [--json]

Starts an embedded stack with empty databases as shards, and a worker with only its queues. Then it sends all
`SHARD_CREATION` messages at once. It prints the time from the first message until every tenant was active on its shard,
and until the last was confirmed; the number of transactions that created the tenants; and how often a shard's schema
was locked, from the server's log. Exit status 1 when a tenant is missing, has a second home or lacks its one row, when
a worker locked a shard's schema more than once, or when it took longer than `--most-seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
from rich.table import Table
from support.load.console import open_console

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import Tenant

WITHIN_S = 120.0
STOP_WITHIN_S = 35.0
BUSINESS_TYPES = ("dental", "gym", "hotel")
SCHEMA_LOCK = "pg_advisory_xact_lock(7310868733225656437)"  # of sql/queries/schema.sql
COUNTS = """
SELECT
    count(*) FILTER (WHERE state = 'active') AS active,
    count(*) FILTER (WHERE state = 'active' AND state_changed_at <> created_at) AS confirmed,
    count(DISTINCT created_at) AS transactions,
    (SELECT count(*) FROM resources) AS resources,
    array_agg(id) AS ids
FROM tenants
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1, help="worker processes")
    parser.add_argument("--most-seconds", type=float, default=30.0, help="maximum until all tenants are active")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    places = math.ceil(arguments.tenants / arguments.shards)
    async with Stack(shards=arguments.shards, tenants_per_shard=places) as stack, AsyncExitStack() as opened:
        servers = list(stack.servers.values())
        connections = [await asyncpg.connect(server.url) for server in servers]
        for connection in connections:
            opened.push_async_callback(connection.close)
        for connection in connections:
            await connection.execute("ALTER SYSTEM SET log_statement = 'all'")
            await connection.execute("SELECT pg_reload_conf()")
        env = {name: value for name, value in stack.env.items() if not name.startswith("KINESIS_")}
        workers = [WorkerProcess(stack.group, env, number=number) for number in range(arguments.replicas)]
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.wait_ready()
        took = await measure_burst(stack, connections, arguments.tenants)
        for worker in workers:
            await worker.stop(within_s=STOP_WITHIN_S)
        shards = {
            server.name: await read_shard_facts(stack, server, one)
            for server, one in zip(servers, connections, strict=True)
        }
    problems = find_problems(took, shards, arguments)
    show(took, shards, problems, as_json=arguments.json)
    return 1 if problems else 0


async def measure_burst(stack: Stack, connections: list[Any], count: int) -> dict[str, float]:
    """Send *count* messages at once; return the seconds until all were sent, active and confirmed."""
    tenants = [Tenant(f"clinic-{number:04}", "main", BUSINESS_TYPES[number % 3]) for number in range(count)]
    took: dict[str, float] = {}
    started = time.perf_counter()

    async def are_confirmed() -> bool:
        counts = Counter[str]()
        for connection in connections:
            try:
                counts.update(dict(await connection.fetchrow("SELECT active, confirmed FROM (" + COUNTS + ") AS one")))
            except asyncpg.UndefinedTableError:
                continue
        for name in ("active", "confirmed"):
            if counts[name] >= count:
                took.setdefault(name, time.perf_counter() - started)
        return "confirmed" in took

    async with open_client("sqs", stack.env) as sqs, asyncio.TaskGroup() as tasks:
        tasks.create_task(poll_until(are_confirmed, within_s=WITHIN_S))
        await create_tenants(sqs, stack.env["SQS_SHARD_CREATION_QUEUE_URL"], tenants)
        took["sent"] = time.perf_counter() - started
    return took


async def read_shard_facts(stack: Stack, server: PostgresServer, connection: Any) -> dict[str, Any]:
    """Return the counts of one shard's tenants, and how often its schema was locked."""
    log = (stack.group.directory / f"{server.name}.log").read_text(encoding="utf-8", errors="replace")
    locks = sum(SCHEMA_LOCK in line for line in log.splitlines())
    return dict(await connection.fetchrow(COUNTS)) | {"schemaLocks": locks}


def find_problems(
    took: dict[str, float], shards: dict[str, dict[str, Any]], arguments: argparse.Namespace
) -> list[str]:
    """Return every deviation from the expected result."""
    problems = []
    homes = Counter(tenant_id for shard in shards.values() for tenant_id in shard["ids"] or ())
    if len(homes) != arguments.tenants or set(homes.values()) != {1}:
        problems.append(f"expected {arguments.tenants} tenants with one home each, got {len(homes)}")
    for name, shard in shards.items():
        if not shard["active"] == shard["confirmed"] == shard["resources"] == len(shard["ids"] or ()):
            problems.append(f"{name}: expected each tenant active and confirmed with its one row, got {shard}")
        if shard["schemaLocks"] > arguments.replicas:
            problems.append(f"{name}: expected its schema locked once a worker, got {shard['schemaLocks']}")
    if took.get("active", math.inf) > arguments.most_seconds:
        problems.append(f"expected all active within {arguments.most_seconds:g} s, got {took}")
    return problems


def show(took: dict[str, float], shards: dict[str, dict[str, Any]], problems: list[str], *, as_json: bool) -> None:
    """Print the results."""
    if as_json:
        facts = {name: {key: value for key, value in shard.items() if key != "ids"} for name, shard in shards.items()}
        print(json.dumps({"seconds": took, "shards": facts, "problems": problems}))
        return
    console = open_console()
    table = Table("shard", "tenants", "transactions that created them", "schema locks")
    for name, shard in shards.items():
        table.add_row(name, str(shard["active"]), str(shard["transactions"]), str(shard["schemaLocks"]))
    console.print(table)
    count = sum(shard["active"] for shard in shards.values())
    for name in ("sent", "active", "confirmed"):
        if name in took:
            console.print(f"{count} tenants, all {name} after {took[name]:.2f} s")
    for problem in problems:
        console.print(problem)


if __name__ == "__main__":
    main()
