"""A producer and a checker that know only the contract, against a running `simplu-worker stack` and `run`.

    simplu-worker stack --env-file F
    simplu-worker run --env-file F
    python tests/acceptance/blackbox.py --env-file F --operations 6000

Exit status 0 only if every row, every outcome and every dead letter is what the contract says. With `--kills` or
`--start-worker` it runs the worker itself; `--freeze-shard` stops one Postgres server for that many seconds meanwhile,
`--kill-shard` kills another with -9 and has the stack start it again after that time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from simplu_local.demo.display import Display, print_differences, result_table
from simplu_local.demo.trial import Trial, TrialLoad, TrialSnapshot
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup, running_processes, send_signal, with_descendants
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.verify.shard_checker import shard_urls
from simplu_local.workload.workload import ALL_KINDS, Shares

STOP_WITHIN_S = 35.0
IDLE_S = 60.0
MOST = 0.9  # redeliveries leave no trace


def main() -> None:
    sys.exit(asyncio.run(run(parse_arguments())))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check a running worker against the contract, from outside.")
    parser.add_argument("--env-file", type=Path, required=True, help="what `simplu-worker stack` wrote")
    parser.add_argument("--operations", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run's records")
    parser.add_argument("--kinds", default=",".join(ALL_KINDS), help="comma-separated; default: %(default)s")
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--late-tenants", type=int, default=0, help="registered when half of the records are put")
    parser.add_argument("--unregistered", type=int, default=0, help="tenants that send and never are registered")
    parser.add_argument("--unstorable", type=float, default=Shares().unstorable, help="share of data jsonb refuses")
    parser.add_argument("--packed", type=float, default=0.3, help="share of keys with records of several operations")
    parser.add_argument("--stress", action="store_true", help="add records of 1 MB, over 10 MB, and 10,000 deep")
    parser.add_argument("--rate", type=float, default=None, help="most records a second")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until all must be applied")
    parser.add_argument("--start-worker", action="store_true", help="run the worker too, and end it with SIGTERM")
    parser.add_argument("--kills", type=int, default=0, help="kill the worker this often with -9; runs it")
    parser.add_argument("--freeze-shard", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--kill-shard", type=float, default=0.0, metavar="SECONDS")
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
        kinds=tuple(arguments.kinds.split(",")),
        shares=Shares(unstorable=arguments.unstorable),
        stress=arguments.stress,
        packed=arguments.packed,
        rate=arguments.rate,
    )
    console.print(f"seed {seed}, run {load.run}")

    display = Display(console)

    async def on_tick(snapshot: TrialSnapshot) -> None:
        display.show(snapshot, None)

    killed = asyncio.Event()
    trial = Trial(
        load,
        lambda: read_env_file(arguments.env_file),
        on_tick=on_tick,
        at_half=killed.wait,
        timeout_s=arguments.timeout,
        idle_s=IDLE_S
        + arguments.freeze_shard
        + arguments.kill_shard,  # while a shard is away nothing may be left to do
    )
    env = read_env_file(arguments.env_file)
    async with AsyncExitStack() as around:
        worker = None
        if arguments.start_worker or arguments.kills:
            worker = await around.enter_async_context(
                running_worker(env, arguments.env_file.with_suffix(".worker.log"))
            )
        async with asyncio.TaskGroup() as tasks:
            troubles = []
            if worker is not None and arguments.kills:
                kills = tasks.create_task(kill_repeatedly(trial, worker, arguments.kills, console))
                kills.add_done_callback(lambda _: killed.set())
                troubles.append(kills)
            else:
                killed.set()
            if arguments.freeze_shard:
                troubles.append(tasks.create_task(freeze(trial, shard_urls(env)[0], arguments.freeze_shard, console)))
            if arguments.kill_shard:
                troubles.append(
                    tasks.create_task(kill_shard(trial, shard_urls(env)[-1], arguments.kill_shard, console))
                )
            result = await trial.run()
            untroubled = [task for task in troubles if not task.done()]
            for task in untroubled:
                task.cancel()
    console.print(result_table(result))
    print_differences(console, result.report.differences)
    if not result.progress.is_done:
        console.print(f"expected {result.progress.expected_count} traces, found {result.progress.finished_count}")
    if untroubled:
        console.print("all was applied before all the trouble was made: give a lower --rate or more --operations")
    return 0 if result.progress.is_done and not result.report.differences and not untroubled else 1


@asynccontextmanager
async def running_worker(env: Mapping[str, str], log_path: Path) -> AsyncIterator[WorkerProcess]:
    """Run a worker; at the end it must stop on SIGTERM with status 0."""
    with ProcessGroup() as group:
        # Short leases: a killed worker's are taken over after that time.
        worker = WorkerProcess(group, {**env, "KINESIS_LEASE_DURATION_SECONDS": "2"}, log_path=log_path)
        worker.start()
        await worker.wait_ready()
        yield worker
        await worker.stop(within_s=STOP_WITHIN_S)


async def kill_repeatedly(trial: Trial, worker: WorkerProcess, count: int, console: Console) -> None:
    """Kill the worker with -9 and start it again, *count* times, spread over the first half of what it applies.

    The second half is put only then: a worker that catches up in a moment is killed as often.
    """
    for number in range(1, count + 1):
        await settled_share(trial, number / (count + 1) / 2)
        console.print(f"kill -9 of worker {worker.pid} ({number} of {count})")
        worker.kill()
        worker.start()
        await worker.wait_ready()


async def freeze(trial: Trial, url: str, seconds: float, console: Console) -> None:
    """Stop the Postgres server of *url* for a while, when a third is applied: it neither answers nor refuses."""
    await settled_share(trial, 1 / 3)
    pids = postgres_pids(urlsplit(url).port)
    console.print(f"freezing the Postgres server on port {urlsplit(url).port} for {seconds:.0f} s: {sorted(pids)}")
    send_signal(pids, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        send_signal(pids, signal.SIGCONT)
    console.print("the server goes on")


async def kill_shard(trial: Trial, url: str, seconds: float, console: Console) -> None:
    """Kill the Postgres server of *url* with -9 and start it again later, when a quarter is applied."""
    await settled_share(trial, 1 / 4)
    pids = postgres_pids(urlsplit(url).port)
    console.print(f"kill -9 of the Postgres server on port {urlsplit(url).port} for {seconds:.0f} s: {sorted(pids)}")
    stack = stack_of(pids)
    send_signal(pids, signal.SIGKILL)
    await asyncio.sleep(seconds)
    send_signal({stack}, signal.SIGUSR1)
    console.print("the stack starts it again")


def stack_of(pids: set[int]) -> int:
    """Return the process that started these of a Postgres server: it starts a killed one again at SIGUSR1."""
    return next(process.parent for process in running_processes() if process.pid in pids and process.parent not in pids)


async def settled_share(trial: Trial, share: float) -> None:
    async def settled() -> bool:
        snapshot = trial.snapshot()
        return snapshot.progress is not None and snapshot.progress.finished_count >= share * MOST * snapshot.total

    await poll_until(settled, within_s=float("inf"))


def postgres_pids(port: int | None) -> set[int]:
    """Return the processes of the Postgres server with *port* on its command line, which README.md promises."""
    table = running_processes()
    servers = {pid for pid, line in _command_lines() if "postgres" in line and re.search(rf"\b{port}\b", line)}
    return with_descendants(servers, table)


def _command_lines() -> list[tuple[int, str]]:
    ps = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    rows = (line.strip().partition(" ") for line in ps.stdout.splitlines())
    return [(int(pid), arguments) for pid, _, arguments in rows]


if __name__ == "__main__":
    main()
