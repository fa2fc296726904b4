"""A shard of five is drained, and then put to use again, while operations of all tenants come in.

    python tests/acceptance/rebalancing.py [--tenants 60] [--rows 2000] [--rate 300]

Starts the embedded stack and the worker, with the tenants on five Postgres shards. `shards drain` empties one, and
`shards rebalance` then fills it from the four others, with ten moves at a time. Exit status 0 only if the drained shard
may be removed, no shard has over 1.1 times the mean number of tenants in the end, and every row of every shard is
right.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable

from acceptance.moving import FILL_SQL, SETTLE_S, ask, find_differences, start_command
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.targets import format_number
from support.load.testbed import Testbed

SHARDS = 5
DRAINED = 1  # the number of the shard
HOMES_SQL = "SELECT array_agg(id) FROM tenants WHERE state = 'active'"


def main() -> None:
    """Run the program and end with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=60, help="of all shards")
    parser.add_argument("--rows", type=int, default=2000, help="of each tenant")
    parser.add_argument("--rate", type=float, default=300.0, help="operations/s, of all tenants")
    parser.add_argument("--control", type=float, default=10.0, help="seconds of load before the first move")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Drain, rebalance, compare every row, and return the exit status."""
    console = open_console(piped_width=160)
    testbed = Testbed(shards=SHARDS, stream_shards=4, tenants_per_shard=arguments.tenants // SHARDS)
    async with testbed:
        for tenant in testbed.tenants_of():
            server = next(one for one in testbed.stack.servers.values() if one.url == testbed.homes[tenant.tenant_id])
            await ask(server, FILL_SQL, tenant.tenant_id, arguments.rows)
        plan = ChainPlan("all", testbed.tenants_of())
        testbed.start_flow(plan, rate=arguments.rate)
        await asyncio.sleep(2 * SETTLE_S)
        async with testbed.phase("before"):
            await asyncio.sleep(arguments.control)
        drained = list(testbed.stack.servers)[DRAINED]
        statuses = []
        counts = []
        for name, command in (("drain", ("drain", drained)), ("rebalance", ("rebalance",))):
            async with testbed.phase(name):
                statuses.append(await run_command(testbed, "shards", *command, "--apply", show=console.print))
            await find_homes(testbed)
            counts.append(Counter(testbed.homes.values()))
        differences = await find_differences(testbed)
        results = [await testbed.measure_phase(phase, plan, testbed.urls) for phase in testbed.phases]
        await testbed.stop_workers()
    for result in results:
        console.print(
            f"{result.phase.name}: {result.phase.seconds:.1f} s, arrival to commit p50 "
            f"{format_number(result.p50_s, 's')}, p99 {format_number(result.p99_s, 's')}, "
            f"longest {format_number(result.longest_s, 's')}"
        )
    numbers = [[count[url] for url in testbed.urls] for count in counts]
    console.print(f"tenants of each shard: {numbers[0]} after the drain, {numbers[1]} in the end")
    console.print(f"lost, done twice, out of order or misplaced: {len(differences) or 'nothing'}")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    is_drained = numbers[0][DRAINED] == 0 and statuses == [0, 0]
    is_even = max(numbers[1]) <= 1.1 * sum(numbers[1]) / SHARDS
    return 0 if is_drained and is_even and not differences else 1


async def run_command(testbed: Testbed, *arguments: str, show: Callable[[str], None]) -> int:
    """Run a command, show its last lines, and return its exit status."""
    began_at = time.monotonic()
    process = await start_command(testbed, *arguments)
    output, errors = await process.communicate()
    moved = output.decode().count(": equal")
    last = errors.decode().strip().splitlines()[-1:]
    show(f"{' '.join(arguments)}: {moved} moved in {time.monotonic() - began_at:.1f} s; {' '.join(last)}")
    return process.returncode or 0


async def find_homes(testbed: Testbed) -> None:
    """Note where each tenant is, as the shards have it."""
    for server in testbed.stack.servers.values():
        for tenant_id in await ask(server, HOMES_SQL) or ():
            testbed.homes[tenant_id] = server.url


if __name__ == "__main__":
    main()
