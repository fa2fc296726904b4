"""What is held and what goes on, with a chain of changes for every resource, seen from outside.

    python tests/acceptance/holding.py late-tenant [--operations 5000]
    python tests/acceptance/holding.py reshard [--seconds 20] [--read fan-out]

`late-tenant`: a tenant is registered after its first operations were sent. `reshard`: while one Postgres server is
frozen the stream is split and merged again; the tenants of the other shards must go on in the children. Exit status 0
only if every row is right in the end and the others were prompt meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from rich.console import Console
from support.load.chain_checker import count_held
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.targets import LoadReport, PerformanceTarget
from support.load.testbed import Flow, Testbed

from simplu_local.workload.workload import Tenant

PROMPT_S = 2.0
CHILDREN_WITHIN_S = 10.0  # the parents' leases say what is pending, the children's are made and taken
HELD_WITHIN_S = 30.0
APPLIED_WITHIN_S = 60.0
WARM_UP_S = 3.0
LEASE_DURATION_S = 3.0
RESTARTED_WITHIN_S = 10.0  # a killed worker, on a machine that does other things too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=("late-tenant", "reshard"))
    parser.add_argument("--operations", type=int, default=5000, help="of the late tenant")
    parser.add_argument("--rate", type=float, default=300.0, help="operations/s of the others")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--prompt-seconds", type=float, default=PROMPT_S, help="most, p99 of the others")
    parser.add_argument(
        "--children-seconds", type=float, default=CHILDREN_WITHIN_S, help="until the others go on there"
    )
    parser.add_argument("--stream-shards", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--read", choices=("polling", "fan-out"), default="polling")
    parser.add_argument("--kill-worker", action="store_true", help="with kill -9, when everything is held")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    console = open_console()
    worker_env = {"KINESIS_LEASE_DURATION_SECONDS": str(LEASE_DURATION_S), "KINESIS_READ": arguments.read}
    testbed = Testbed(shards=3, stream_shards=arguments.stream_shards, tenants_per_shard=4, worker_env=worker_env)
    async with testbed, asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(testbed.memory.run(), name="memory")
        steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=arguments.rate)
        await asyncio.sleep(WARM_UP_S)
        async with testbed.phase("control"):
            await asyncio.sleep(arguments.seconds)
        scenario = late_tenant if arguments.scenario == "late-tenant" else reshard
        results = await scenario(testbed, steady, arguments, console)
        await testbed.stop_workers()
        sampling.cancel()
    results.print(console)
    return results.status


async def late_tenant(testbed: Testbed, steady: Flow, arguments: argparse.Namespace, console: Console) -> LoadReport:
    tenant = Tenant("late", "main", "gym")
    console.print(f"{arguments.operations} operations of a tenant that nobody knows")
    late = testbed.start_flow(ChainPlan("late", (tenant,)), rate=1000.0, count=arguments.operations)
    async with testbed.phase("held"):
        await late.producer.wait_until_done(within_s=APPLIED_WITHIN_S + arguments.operations / 500)
        await asyncio.sleep(arguments.seconds)
    if arguments.kill_worker:
        await kill_worker(testbed, console)
    console.print("it is registered")
    async with testbed.phase("registered"):
        await testbed.register([tenant])
        reached = await testbed.wait_until_applied(testbed.urls, within_s=HELD_WITHIN_S)
    async with testbed.phase("afterwards"):
        await asyncio.sleep(arguments.seconds)
    results = await conclude(testbed, steady, f"a tenant registered {arguments.operations} operations late")
    results.targets.append(PerformanceTarget("held ones applied after the registration", float(reached), least=1))
    bound_promptness(results, arguments)
    return results


async def reshard(testbed: Testbed, steady: Flow, arguments: argparse.Namespace, console: Console) -> LoadReport:
    """Split all stream shards and merge them again while a Postgres server is frozen."""
    lost = testbed.server()
    others = testbed.urls_without(lost)
    console.print(f"freezing {lost.database}")
    lost.suspend()
    async with testbed.phase("one shard frozen"):
        await asyncio.sleep(arguments.seconds)
    reached: dict[str, bool] = {}
    for name, count in (("split", 2 * arguments.stream_shards), ("merged", arguments.stream_shards)):
        await testbed.reshard(count)
        console.print(f"{name}: {count} stream shards")
        async with testbed.phase(f"one shard frozen, {name}"):
            await asyncio.sleep(arguments.seconds)
            reached[name] = await testbed.wait_until_applied(others, within_s=arguments.children_seconds)
        if arguments.kill_worker and name == "split":
            await kill_worker(testbed, console)
    console.print("it goes on")
    resumed_at = testbed.phases[-1].end
    lost.resume()
    async with testbed.phase("catching up"):
        await testbed.wait_until_applied(testbed.urls, within_s=HELD_WITHIN_S)
        await asyncio.sleep(arguments.seconds)
    results = await conclude(testbed, steady, "resharded while one shard is frozen")
    kept = await count_held(lost.url, resumed_at)
    results.facts["operations held"] = kept.count
    for name, value in reached.items():
        results.targets.append(
            PerformanceTarget(f"others applied all while it was frozen: {name}", float(value), least=1)
        )
    results.targets.append(
        PerformanceTarget("last held operation, after SIGCONT", kept.seconds, HELD_WITHIN_S, unit="s")
    )
    bound_promptness(results, arguments)
    return results


async def kill_worker(testbed: Testbed, console: Console) -> None:
    console.print(f"kill -9 of worker {testbed.worker.pid}")
    testbed.worker.kill()
    testbed.worker.start()
    await testbed.worker.wait_ready()


async def conclude(testbed: Testbed, steady: Flow, title: str) -> LoadReport:
    await steady.producer.stop()
    applied = await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
    urls = testbed.urls_without(testbed.server())
    results = LoadReport(title, [await testbed.measure_phase(phase, steady.plan, urls) for phase in testbed.phases])
    results.targets.append(PerformanceTarget("all was applied in the end", float(applied), least=1))
    results.differences = await testbed.find_differences()
    if testbed.dead_letters:
        results.differences.append(f"{len(testbed.dead_letters)} dead letters, such as {testbed.dead_letters[0]}")
    return results


def bound_promptness(results: LoadReport, arguments: argparse.Namespace) -> None:
    """Promise that the others never waited long; a restart keeps them waiting once."""
    prompt_s, restarted = arguments.prompt_seconds, arguments.kill_worker
    for measured in results.phases[1:]:
        name = measured.phase.name
        if not restarted:
            results.targets.append(PerformanceTarget(f"{name}: p99 of the others", measured.p99_s, prompt_s, unit="s"))
        longest = arguments.children_seconds + (RESTARTED_WITHIN_S + LEASE_DURATION_S if restarted else 0)
        results.targets.append(
            PerformanceTarget(f"{name}: longest of the others", measured.longest_s, longest, unit="s")
        )


if __name__ == "__main__":
    main()
