"""Measure what the feed costs a worker that is idle, with hundreds of Postgres shards.

    python -m benchmarks.idling [--shards 500] [--seconds 120] [--turns 1]

Two stacks at the same time have each a worker, and one server with so many databases, each a shard. They take turns: in
one the worker has a webhook as the feed's destination, in the other none. Prints the mean of what the former takes
more, and each value. Exit status 1 when it is above the target.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec
from support.load.console import open_console
from support.load.testbed import Testbed
from support.postgres.databases import copy_shard, make_template

from benchmarks.feeding import TO_WEBHOOK, WORKER_ENV, Env, Feed
from benchmarks.targets import PerformanceTarget, format_number
from simplu_local.postgres.server import PostgresPrograms, PostgresServer

MORE_MOST: Final = 0.03
SETTLED_S: Final = 180.0  # until the connections that only a start needs are closed
CONNECTIONS_MORE: Final = 900  # than shards, while a worker starts
MORE: Final = "worker, of a core more with the feed, idle"


class Side(NamedTuple):
    """A stack and what its worker is told, without the feed and with it."""

    testbed: Testbed
    without: Env
    with_feed: Env


@asynccontextmanager
async def started_side(shards: int) -> AsyncIterator[Side]:
    """Start a stack, a server with so many shards, and a worker."""
    async with Testbed(shards=1, stream_shards=2, tenants_per_shard=1, replicas=0) as testbed:
        group, connections = testbed.stack.group, shards + CONNECTIONS_MORE
        settings = {"max_connections": f"{connections}", "shared_buffers": "256MB", "autovacuum": "off"}
        programs = await asyncio.to_thread(PostgresPrograms.find, group.directory)
        server = PostgresServer(group, programs, database="first", settings=settings)
        await server.start()
        await make_template(server)
        addresses = [await copy_shard(server, f"idle-{number}") for number in range(shards)]
        places = [{"shardId": one.shard_id, "connectionString": one.connection_string} for one in addresses]
        path = group.directory / "map.json"
        path.write_bytes(msgspec.json.encode({"shards": places, "tenants": {}}))
        env = {"CITRUS_SERVER_URL": "", "CITRUS_API_KEY": "", "SHARD_MAP_FILE": str(path)}
        env |= WORKER_ENV | {"DATABASE_MAX_CONNECTIONS": f"{connections - 100}"}  # some are for other programs
        await testbed.start_worker(env)
        yield Side(testbed, env, env | await Feed(testbed).env(TO_WEBHOOK))
        await testbed.stop_workers()


async def measure_turn(chosen: Side, beside: Side, seconds: float) -> tuple[float, float]:
    """Return the shares of a core that a worker with the feed takes and one without, at the same time."""
    await asyncio.gather(chosen.testbed.replace_worker(chosen.with_feed), beside.testbed.replace_worker(beside.without))
    await asyncio.sleep(SETTLED_S)
    async with chosen.testbed.phase("with"), beside.testbed.phase("without"):
        await asyncio.sleep(seconds)
    return chosen.testbed.phases[-1].processors["worker"], beside.testbed.phases[-1].processors["worker"]


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(piped_width=120)
    found: list[float] = []
    async with started_side(arguments.shards) as one, started_side(arguments.shards) as other:
        for chosen, beside in [(one, other), (other, one)] * arguments.turns:
            with_feed, without = await measure_turn(chosen, beside, arguments.seconds)
            console.print(f"{arguments.shards} shards: with {with_feed:.4f}, without {without:.4f} of a core")
            found.append(with_feed - without)
    target = PerformanceTarget(MORE, statistics.mean(found), most=MORE_MOST)
    each = ", ".join(format_number(value, target.unit) for value in found)
    console.print(f"{target.what}: {format_number(target.value, target.unit)} ({each}); target: {target}")
    return 0 if target.is_kept else 1


def main() -> None:
    """Run the benchmark and end with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--turns", type=int, default=1)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
