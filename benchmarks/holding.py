"""Measure the cost of trouble for other tenants: a lost Postgres shard, a growing backlog, unregistered tenants.

    python -m benchmarks.holding [--rate 2000] [--seconds 60] [--freeze-seconds 60]
    python -m benchmarks.holding --backlog 1000000
    python -m benchmarks.holding --unknown-tenants 100000

Starts the embedded stack, a worker and the producers, each a separate process. The first phase is the control: the
same load without trouble. The next phases are compared with it: operations a second and arrival → committed, both from
the rows of tenants on the other shards, and the memory of the worker. At the end every row of every shard is compared
with the records that were put. Exit status 1 when a target is missed or a row differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console
from support.load.chain_checker import count_held
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, Testbed

from benchmarks.targets import LoadReport, PerformanceTarget
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.workload.workload import Tenant

P99_MOST_RATIO = 2.0
RATE_LEAST_RATIO = 0.9
HELD_WITHIN_S = 30.0
PROMPT_S = 2.0
WARM_UP_S = 10.0
UNKNOWN_TENANT_MARGIN_S = 60.0  # architecture, idea 7
APPLIED_WITHIN_S = 120.0
RSS_GROWTH_MIB = 64.0
RSS_GROWTH_UNKNOWN_MIB = 128.0  # 8 stream shards with a thousand names and two bitmaps each, and the prefetch
GIVEN_UP_PER_S = 200.0  # on a slow machine, like the next constant
APPLIED_PER_S = 500.0


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rate", type=float, default=None, help="operations/s; by default 2000, and 200 in the two modes below"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of the control")
    parser.add_argument("--freeze-seconds", type=float, default=60.0)
    parser.add_argument("--catch-up-seconds", type=float, default=HELD_WITHIN_S)
    parser.add_argument("--p99-ratio", type=float, default=P99_MOST_RATIO, help="maximum, relative to the control")
    parser.add_argument("--rate-ratio", type=float, default=RATE_LEAST_RATIO, help="minimum, relative to the control")
    parser.add_argument("--prompt-seconds", type=float, default=PROMPT_S, help="maximum, p99 of other tenants")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--stream-shards", type=int, default=8)
    parser.add_argument("--backlog", type=int, metavar="N", help="put N records while one shard is lost")
    parser.add_argument("--away", choices=("frozen", "killed", "stopped"), default="frozen", help="how a shard is lost")
    parser.add_argument("--unknown-tenants", type=int, metavar="N", help="put N records, each of another tenant")
    parser.add_argument("--tenant-wait", type=float, default=5.0, help="TENANT_WAIT_SECONDS, with --unknown-tenants")
    parser.add_argument(
        "--fill-rate", type=float, default=None, help="records/s of the two modes; by default 8000 and 2000"
    )
    parser.add_argument("--padding-bytes", type=int, default=0, help="make every record with data that much longer")
    parser.add_argument("--rss-growth-mib", type=float, help="maximum beyond the control's; by default 64 and 128")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json)
    if arguments.backlog:
        results = await grow_backlog(arguments, console)
    elif arguments.unknown_tenants:
        results = await send_unknown(arguments, console)
    else:
        results = await freeze(arguments, console)
    results.print(console)
    if arguments.json:
        print(results.as_json())
    return results.status


async def freeze(arguments: argparse.Namespace, console: Console) -> LoadReport:
    """Take one Postgres server away under load, and bring it back."""
    rate = arguments.rate or 2000.0
    async with run_testbed(arguments) as testbed:
        lost = testbed.server()
        steady = testbed.start_flow(
            ChainPlan("steady", testbed.tenants_of(), padding_bytes=arguments.padding_bytes), rate=rate
        )
        await asyncio.sleep(min(WARM_UP_S, arguments.seconds))
        console.print(f"control: {rate:g} operations/s for {arguments.seconds:g} s")
        async with testbed.phase("control"):
            await asyncio.sleep(arguments.seconds)
        console.print(f"{lost.database} is {arguments.away} for {arguments.freeze_seconds:g} s")
        await take_away(lost, arguments.away)
        async with testbed.phase(f"one shard {arguments.away}"):
            await asyncio.sleep(arguments.freeze_seconds)
        console.print(f"{lost.database} comes back")
        await bring_back(lost)
        async with testbed.phase("catching up"):
            await asyncio.sleep(arguments.catch_up_seconds)
        # Once more without trouble, to compare with the control.
        async with testbed.phase("afterwards"):
            await asyncio.sleep(min(arguments.seconds, HELD_WITHIN_S))
        await steady.producer.stop()
        results = await conclude(
            testbed, f"{rate:g} operations/s, one of {arguments.shards} shards {arguments.away}", steady
        )
        frozen = testbed.phases[1]
        kept = await count_held(lost.url, frozen.end)
    results.facts["operations held"] = kept.count
    results.add_latency_targets(results.phases[1], most_ratio=arguments.p99_ratio, least_ratio=arguments.rate_ratio)
    results.targets.append(
        PerformanceTarget("last held operation, after the shard came back", kept.seconds, HELD_WITHIN_S, unit="s")
    )
    results.add_memory_targets(arguments.rss_growth_mib or RSS_GROWTH_MIB)
    return results


async def grow_backlog(arguments: argparse.Namespace, console: Console) -> LoadReport:
    """Let the stream grow while one shard is lost."""
    count, rate = arguments.backlog, arguments.rate or 200.0
    fill_rate = arguments.fill_rate or 8000.0
    patience_s = APPLIED_WITHIN_S + count / APPLIED_PER_S
    async with run_testbed(arguments) as testbed:
        lost = testbed.server()
        others = [one for one in testbed.stack.servers.values() if one is not lost]
        steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=rate)
        await asyncio.sleep(min(WARM_UP_S, arguments.seconds))
        async with testbed.phase("control"):
            await asyncio.sleep(arguments.seconds)
        console.print(f"{lost.database} is {arguments.away}; {count} records follow, {fill_rate:g} a second")
        await take_away(lost, arguments.away)
        # All tenants of the lost shard, and one of each other shard.
        plan = ChainPlan(
            "backlog",
            (*testbed.tenants_of(lost), *testbed.tenants_of(*others)[: len(others)]),
            padding_bytes=arguments.padding_bytes,
        )
        backlog = testbed.start_flow(plan, rate=fill_rate, count=count)
        async with testbed.phase("backlog grows"):
            await backlog.producer.wait_until_done(within_s=patience_s)
            reached = await testbed.wait_until_applied(testbed.urls_without(lost), within_s=patience_s)
        others_applied = PerformanceTarget("other shards applied all in the meantime", float(reached), least=1)
        async with testbed.phase("backlog stays"):
            await asyncio.sleep(arguments.seconds)
        console.print(f"{lost.database} comes back")
        await bring_back(lost)
        async with testbed.phase("catching up"):
            await testbed.wait_until_applied(testbed.urls, within_s=patience_s)
        async with testbed.phase("afterwards"):
            await asyncio.sleep(min(arguments.seconds, HELD_WITHIN_S))
        await steady.producer.stop()
        results = await conclude(testbed, f"a backlog of {count} records, one shard {arguments.away}", steady)
        kept = await count_held(lost.url, testbed.phases[2].end)
    results.facts["operations held"] = kept.count
    results.facts["seconds until the last of them was applied"] = kept.seconds
    results.targets.append(others_applied)
    results.targets.append(
        PerformanceTarget(
            "backlog stays: p99 of other tenants", results.phases[2].p99_s, arguments.prompt_seconds, unit="s"
        )
    )
    results.add_memory_targets(arguments.rss_growth_mib or RSS_GROWTH_MIB)
    return results


async def send_unknown(arguments: argparse.Namespace, console: Console) -> LoadReport:
    """Send records of unregistered tenants, along with records of other tenants."""
    count: int = arguments.unknown_tenants
    rate, fill_rate = arguments.rate or 200.0, arguments.fill_rate or 2000.0
    tenants = tuple(Tenant(f"unknown-{number}", "nowhere", "gym") for number in range(count))
    plan = ChainPlan("unknown", tenants, types=1, resources=1)
    async with run_testbed(arguments, {"TENANT_WAIT_SECONDS": str(arguments.tenant_wait)}) as testbed:
        steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=rate)
        await asyncio.sleep(min(WARM_UP_S, arguments.seconds))
        async with testbed.phase("control"):
            await asyncio.sleep(arguments.seconds)
        console.print(f"{count} records of as many unregistered tenants follow, {fill_rate:g} a second")
        unknown = testbed.start_flow(plan, rate=fill_rate, count=count, is_checked=False)
        async with testbed.phase("records arrive"):
            await unknown.producer.wait_until_done(within_s=APPLIED_WITHIN_S + 2 * count / fill_rate)
        wait_s = arguments.tenant_wait + UNKNOWN_TENANT_MARGIN_S

        async def is_any_given_up() -> bool:
            testbed.check_running()
            await asyncio.sleep(0.5)
            return bool(testbed.dead_letters)

        async def are_given_up() -> bool:
            testbed.check_running()
            await asyncio.sleep(0.5)
            return len(testbed.dead_letters) >= count

        async with testbed.phase("records wait"):
            await poll_until(is_any_given_up, within_s=wait_s + APPLIED_WITHIN_S)
        async with testbed.phase("records become dead letters"):
            await poll_until(are_given_up, within_s=APPLIED_WITHIN_S + count / GIVEN_UP_PER_S)
        async with testbed.phase("afterwards"):
            await asyncio.sleep(min(arguments.seconds, HELD_WITHIN_S))
        await steady.producer.stop()
        results = await conclude(testbed, f"{count} unregistered tenants beside {rate:g} operations/s", steady)
        letters = testbed.dead_letters
    reasons = Counter(letter.reason for letter in {letter.position: letter for letter in letters}.values())
    numbers = {plan.number_of(str(json.loads(one.record or b"{}").get("requestId"))) for one in letters}
    results.facts["dead letters, repeated ones included"] = len(letters)
    results.targets.append(
        PerformanceTarget("dead letters with unknown_tenant", reasons["unknown_tenant"], most=count, least=count)
    )
    results.targets.append(
        PerformanceTarget("records with a dead letter", len(numbers & set(range(count))), most=count, least=count)
    )
    for measured in results.phases[1:]:
        name = measured.phase.name
        results.targets.append(
            PerformanceTarget(f"{name}: p99 of other tenants", measured.p99_s, arguments.prompt_seconds, unit="s")
        )
    results.add_memory_targets(arguments.rss_growth_mib or RSS_GROWTH_UNKNOWN_MIB)
    return results


@asynccontextmanager
async def run_testbed(
    arguments: argparse.Namespace, worker_env: dict[str, str] | None = None
) -> AsyncIterator[Testbed]:
    """Run a testbed and sample the worker's memory; at the end the worker must stop with status 0."""
    testbed = Testbed(shards=arguments.shards, stream_shards=arguments.stream_shards, worker_env=worker_env)
    async with testbed, asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(testbed.memory.run(), name="memory")
        yield testbed
        await testbed.stop_workers()
        sampling.cancel()


async def conclude(testbed: Testbed, title: str, steady: Flow) -> LoadReport:
    """Wait until all operations are applied; return the measurements of each phase on the other shards, and targets."""
    applied = await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
    urls = testbed.urls_without(testbed.server())
    results = LoadReport(title, [await testbed.measure_phase(phase, steady.plan, urls) for phase in testbed.phases])
    results.targets.append(PerformanceTarget("all operations applied in the end", float(applied), least=1))
    results.differences = await testbed.find_differences()
    all_known = all(flow.is_checked for flow in testbed.flows)
    if strays := [one for one in testbed.dead_letters if all_known or one.reason != "unknown_tenant"]:
        results.differences.append(f"{len(strays)} dead letters, such as {strays[0]}")
    return results


async def take_away(server: PostgresServer, how: str) -> None:
    """Suspend, kill or stop a Postgres server, as *how* names it."""
    match how:
        case "frozen":
            server.suspend()
        case "killed":
            await server.kill()
        case _:
            await server.stop()


async def bring_back(server: PostgresServer) -> None:
    """Resume a suspended server, or start an ended one."""
    server.resume()
    await server.start()


if __name__ == "__main__":
    main()
