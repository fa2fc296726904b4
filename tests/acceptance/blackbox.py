"""A producer and a checker that know only the contract, against a worker beside a running `simplu-worker stack`.

    simplu-worker stack --env-file F
    python tests/acceptance/blackbox.py --env-file F --operations 6000 --kills 3

Exit status 0 only if every row, every outcome and every dead letter is what the contract says.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

from simplu_local.demo.display import Display, print_differences, result_table
from simplu_local.demo.trial import Trial, TrialLoad, TrialResult, TrialSnapshot
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.processes.worker_process import WorkerProcess

STOP_WITHIN_S = 35.0
IDLE_S = 60.0
MOST = 0.9  # redeliveries leave no trace
PACKED = 0.3  # of the keys: records of several operations


def main() -> None:
    sys.exit(asyncio.run(run(parse_arguments())))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check a running worker against the contract, from outside.")
    parser.add_argument("--env-file", type=Path, required=True, help="what `simplu-worker stack` wrote")
    parser.add_argument("--operations", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run's records")
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--late-tenants", type=int, default=0, help="registered when half of the records are put")
    parser.add_argument("--unregistered", type=int, default=0, help="tenants that send and never are registered")
    parser.add_argument("--stress", action="store_true", help="add records of 1 MB, over 10 MB, and 10,000 deep")
    parser.add_argument("--rate", type=float, default=None, help="most records a second")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until all must be applied")
    parser.add_argument("--kills", type=int, default=0, help="kill the worker this often with -9")
    return parser.parse_args()


def read_env_file(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (shlex.split(line)[0].partition("=") for line in lines if line.strip())
    return {name: value for name, _, value in pairs}


async def run(arguments: argparse.Namespace) -> int:
    """Run one trial with the trouble that *arguments* ask for; return the exit status."""
    console = Console(soft_wrap=True)
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    load = TrialLoad(
        arguments.operations,
        seed,
        run=secrets.token_hex(3),
        tenants=arguments.tenants,
        late_tenants=arguments.late_tenants,
        unregistered=arguments.unregistered,
        stress=arguments.stress,
        packed=PACKED,
        rate=arguments.rate,
    )
    console.print(f"seed {seed}, run {load.run}")

    killed = asyncio.Event()
    trial = Trial(
        load,
        lambda: read_env_file(arguments.env_file),
        on_tick=shown_on(console),
        at_half=killed.wait,
        timeout_s=arguments.timeout,
        idle_s=IDLE_S,
    )
    env = read_env_file(arguments.env_file)
    async with running_workers(env, arguments.env_file, 1) as workers, asyncio.TaskGroup() as tasks:
        killing = tasks.create_task(kill_repeatedly(trial, workers, arguments.kills, console))
        killing.add_done_callback(lambda _: killed.set())
        result = await trial.run()
        is_over = killing.done()
        killing.cancel()
    return judge(console, result, is_over=is_over)


def shown_on(console: Console) -> Callable[[TrialSnapshot], Awaitable[None]]:
    display = Display(console)

    async def on_tick(snapshot: TrialSnapshot) -> None:
        display.show(snapshot, None)

    return on_tick


def judge(console: Console, result: TrialResult, *, is_over: bool) -> int:
    """Print the result of a trial; return the exit status, which is 1 too unless its trouble *is_over*."""
    console.print(result_table(result))
    print_differences(console, result.report.differences)
    if not result.progress.is_done:
        console.print(f"expected {result.progress.expected_count} traces, found {result.progress.finished_count}")
    if not is_over:
        console.print("all was applied before all the trouble was made: give a lower --rate or more --operations")
    return 0 if result.progress.is_done and not result.report.differences and is_over else 1


@asynccontextmanager
async def running_workers(env: Mapping[str, str], env_file: Path, count: int) -> AsyncIterator[list[WorkerProcess]]:
    """Run that many replicas; at the end each must stop on SIGTERM with status 0."""
    with ProcessGroup() as group:
        # Short leases: those of a killed worker are taken over after that time, and the fleet settles soon.
        own = {**env, "KINESIS_LEASE_DURATION_SECONDS": "2"}
        workers = [
            WorkerProcess(group, own, number=number, log_path=env_file.with_suffix(f".worker-{number}.log"))
            for number in range(count)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.wait_ready()
        yield workers
        for worker in workers:
            await worker.stop(within_s=STOP_WITHIN_S)


async def kill_repeatedly(trial: Trial, workers: Sequence[WorkerProcess], count: int, console: Console) -> None:
    """Kill the first worker with -9 and start it again, *count* times, spread over the first half of what it applies.

    The second half is put only then: a worker that catches up in a moment is killed as often.
    """
    for number in range(1, count + 1):
        await settled_share(trial, number / (count + 1) / 2)
        worker = workers[0]
        console.print(f"kill -9 of worker {worker.pid} ({number} of {count})")
        worker.kill()
        worker.start()
        await worker.wait_ready()


async def settled_share(trial: Trial, share: float) -> None:
    async def settled() -> bool:
        snapshot = trial.snapshot()
        return snapshot.progress is not None and snapshot.progress.finished_count >= share * MOST * snapshot.total

    await poll_until(settled, within_s=float("inf"))


if __name__ == "__main__":
    main()
