"""Measure the cost of histories: time of the worker and of Postgres, and bytes a version.

    python -m benchmarks.history [--seconds 60] [--sizes 50 500] [--most-ratio 2.2]

Two shards of one server, with fsync, have the same tenants, and one of them a history of every resource type. They get
the same batches of the mix of `benchmarks.writing`, with UUIDs for ids, by turns. Printed are the median ratio of
batches by the clock, the ratios of the processor time of the worker and of the backends, and the bytes of a version
with its index beside the mean document. At the end both must have the same resources, and the newest version of each
resource its document. Exit status 1 when they differ, or when Postgres needs over `--most-ratio` times as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final
from uuid import NAMESPACE_OID, uuid5

import msgspec
import uvloop
from support.load.console import log_errors_only, open_console
from support.postgres.databases import SHARD_ID, TEMPLATE, execute, make_template
from support.processes.resource_usage import cpu_seconds

from benchmarks.throughput.page import markdown_table
from benchmarks.writing import CONTENT_SQL, DURABLE, INSERT, TYPES, BatchLoad, fetch
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.schema.schema_check import write_types
from simplu_worker.shards.schema.type_files import read_type

TENANTS: Final = 200
SIZE_SQL: Final = """
SELECT
    pg_total_relation_size('resource_versions') / count(*) AS bytes, count(*) AS versions,
    (SELECT avg(pg_column_size(document || '{}')) FROM resource_history WHERE change <> 'delete') AS document,
    (
        SELECT count(*)
        FROM resources
        LEFT JOIN resource_history AS newest ON
            newest.tenant_id = id AND resource_type = "resourceName" AND resource_id = "resourceId"
            AND replaced_at IS NULL
        WHERE newest.document IS DISTINCT FROM data
    ) AS differing,
    (SELECT count(*) FROM operations WHERE operation <> 'list') AS operations
FROM resource_versions
"""


class Turns:
    """The two shards, and what batches took on each: by the clock, of the worker, of its backend."""

    def __init__(self, pools: list[ShardPool]) -> None:
        self.pools = pools
        self._writers = [ShardWriter(pool, tenant_wait=timedelta(minutes=15)) for pool in pools]
        self._load = BatchLoad(TENANTS)

    async def measure(self, size: int, seconds: float) -> list[list[float]]:
        """Return the median seconds of batches without and with a history, the worker's and the servers' sums."""
        took: tuple[list[float], list[float]] = ([], [])
        worker = [0.0, 0.0]
        before = await self._server_s()
        while not took[0] or sum(map(sum, took)) < seconds:
            batch = [as_sent(one) for one in self._load.next_batch(size)]
            for which in (0, 1) if len(took[0]) % 2 else (1, 0):
                began, began_s = time.perf_counter(), time.process_time()
                outcomes = await self._writers[which].apply(batch)
                took[which].append(time.perf_counter() - began)
                worker[which] += time.process_time() - began_s
                if any(one.failure for one in outcomes):
                    raise SystemExit(f"expected every operation to succeed, got {set(outcomes)}")
        after = await self._server_s()
        server = [now - then for now, then in zip(after, before, strict=True)]
        return [[statistics.median(one) for one in took], worker, server]

    async def _server_s(self) -> list[float]:
        used = []
        for pool in self.pools:
            async with pool.connection() as connection:
                used.append(float(cpu_seconds([connection.get_server_pid()], lambda _: "backend")["backend"]))
        return used


def as_sent(operation: Operation) -> Operation:
    """Return *operation* with UUIDs in place of its ids."""
    resource_id = operation.resource_id and str(uuid5(NAMESPACE_OID, operation.resource_id))
    request_id = str(uuid5(NAMESPACE_OID, operation.request_id))
    return msgspec.structs.replace(operation, resource_id=resource_id, request_id=request_id)


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console()
    types = [{"name": name, "history": {"keep": "forever"}} for name in TYPES]
    gym = {"name": "gym", "defaultSettings": {}, "staffResourceType": "trainer", "resourceTypes": types}
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="history", settings=DURABLE)
        await server.start()
        await make_template(server)
        await execute(server.url_of(TEMPLATE), INSERT, TENANTS)
        async with AsyncExitStack() as exits:
            pools = []
            for name in ("plain", "kept"):
                pools.append(
                    ShardPool(ShardAddress(SHARD_ID, await server.create_database(name, template=TEMPLATE)), size=1)
                )
                exits.push_async_callback(pools[-1].close)
            async with pools[1].transaction() as connection:
                await write_types(connection, {"gym": read_type(json.dumps(gym))})
            turns = Turns(pools)
            await turns.measure(1000, 0.0)
            lines, most = [], 0.0
            for size in arguments.sizes:
                measured = await turns.measure(size, arguments.seconds / len(arguments.sizes))
                ratios = [with_it / without for without, with_it in measured]
                most = max(most, ratios[2])
                lines.append([str(size), *(f"{one:.3f}" for one in ratios)])
            console.print(markdown_table(["operations a batch", "clock", "worker", "Postgres"], lines))
            contents = [dict(await fetch(pool.address.connection_string, CONTENT_SQL)) for pool in pools]
            sizes = await fetch(pools[1].address.connection_string, SIZE_SQL)
    console.print(
        f"{sizes['versions']} versions of {sizes['bytes']} bytes each; a document has {sizes['document']:.0f}"
    )
    is_right = contents[0] == contents[1] and not sizes["differing"]
    return 0 if is_right and most <= arguments.most_ratio else 1


def main() -> None:
    """Run the benchmark."""
    log_errors_only()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of applying, in all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 500], help="operations a batch")
    parser.add_argument("--most-ratio", type=float, default=2.2)
    sys.exit(uvloop.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
