"""Run the demo: the worker's main job on an embedded stack, shown while it runs and compared row by row at the end."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Sequence

from rich.console import Console

from simplu_local.demo.display import Display, print_conclusion, print_differences, result_table
from simplu_local.demo.trial import Trial, TrialLoad, TrialResult, TrialSnapshot
from simplu_local.processes.loopback import StackError
from simplu_local.processes.worker_process import WorkerEndedError, WorkerProcess
from simplu_local.stack.stack import Stack

ORDERS = 500
HISTORIES = ("dental", "gym")  # business types whose resources keep their versions
STOP_WITHIN_S = 35.0  # SHUTDOWN_GRACE_SECONDS's default, and some seconds for Python's exit


async def run_demo(
    *,
    operations: int = 2000,
    tenants: int = 10,
    shards: int = 3,
    replicas: int = 1,
    hold: bool = False,
    console: Console,
    seed: int | None = None,
) -> int:
    """Run the demo and return the exit status: 0 only if every row of every shard equals the model.

    *seed* repeats an earlier run's records. Cancelling the demo stops and removes everything.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    load = TrialLoad(operations, seed, "demo", tenants=tenants, orders=ORDERS, histories=HISTORIES)
    console.print(f"starting {shards} Postgres servers, a local AWS, a local Citrus and {replicas} worker(s) …")
    try:
        async with Stack(shards=shards) as stack:
            workers = [WorkerProcess(stack.group, stack.env, number=number) for number in range(replicas)]
            result = await _run(stack, workers, load, console)
            if hold:
                await _hold(stack, workers, console)
            console.print("compared all rows; stopping the workers and the stack …")
            for worker in workers:
                await worker.stop(within_s=STOP_WITHIN_S)
    except (StackError, WorkerEndedError) as error:
        return _fail(console, error)
    except ExceptionGroup as errors:
        # From within the trial: a worker that ended is a finding, every other exception a bug of ours.
        ended, others = errors.split(WorkerEndedError)
        if others is not None or ended is None:
            raise
        return _fail(console, _first_of(ended))
    return print_conclusion(console, result, was_held=hold)


def _fail(console: Console, error: BaseException) -> int:
    console.print(f"the demo failed: {error}", style="red", markup=False, soft_wrap=True)
    return 1


def _first_of(errors: BaseExceptionGroup[WorkerEndedError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(stack: Stack, workers: Sequence[WorkerProcess], load: TrialLoad, console: Console) -> TrialResult:
    for worker in workers:
        worker.start()
    for worker in workers:
        await worker.wait_ready()
    console.print(
        f"ready; sending {load.operations} operations and {load.orders} order events of "
        f"{load.tenants} tenants (seed {load.seed})",
        soft_wrap=True,
    )
    trial_display = Display(console)
    with trial_display.open() as display:

        async def on_tick(snapshot: TrialSnapshot) -> None:
            for worker in workers:
                worker.check_running()
            lags = [await worker.read_kinesis_lag_s() for worker in workers]
            display.show(snapshot, max((lag for lag in lags if lag is not None), default=None))

        result = await Trial(load, lambda: stack.env, on_tick=on_tick).run()
    console.print(result_table(result))
    print_differences(console, result.report.differences)
    return result


async def _hold(stack: Stack, workers: Sequence[WorkerProcess], console: Console) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    env_file = stack.group.directory / "env"
    stack.write_env_file(env_file)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    lines = [
        "All services stay up until Ctrl-C:",
        *(f"  status page  {worker.url}/   (log {worker.log_path})" for worker in workers),
        f"  token        {stack.env['API_TOKEN']}",
        f"  environment  set -a; . {env_file}; set +a",
        *(f"  shard        psql {url}" for url in stack.env["STACK_POSTGRES_URLS"].split()),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    try:
        while not stop.is_set():
            for worker in workers:
                worker.check_running()
            try:
                await asyncio.wait_for(stop.wait(), timeout=1)
            except TimeoutError:
                continue
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
