"""Replicas that come and go while the stream is resharded: nothing lost, doubled or out of order, seen from outside.

    python tests/acceptance/fleet.py --operations 20000 --stream-shards 16 [--read fan-out]

Starts the embedded stack and the replicas itself. While a producer sends, the fleet goes 1 → 4 → 2 replicas, one is
killed with -9, one is frozen for longer than a lease lasts and goes on, one is stopped in order, and the stream goes
from N stream shards to 2N and down to N/2. Then every row, outcome and dead letter is compared with the model. Exit
status 0 only if all is right.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

from acceptance.blackbox import judge, settled_share, shown_on
from rich.console import Console
from support.streams import reshard

from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.demo.trial import Trial, TrialLoad
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack

STOP_WITHIN_S = 35.0
IDLE_S = 60.0
HALF_STEPS = 4  # the last one that is due before half of the records are sent

Step = Callable[[], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--stream-shards", type=int, default=16)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--rate", type=float, default=400.0, help="most records a second")
    parser.add_argument("--lease-duration", type=float, default=3.0)
    parser.add_argument("--read", choices=("polling", "fan-out"), default="polling")
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run's records")
    sys.exit(asyncio.run(run(parser.parse_args(), Console(soft_wrap=True, highlight=False))))


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the trial with everything that happens to the fleet; return the exit status."""
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    load = TrialLoad(
        arguments.operations, seed, run=secrets.token_hex(3), tenants=arguments.tenants, rate=arguments.rate
    )
    console.print(f"seed {seed}, run {load.run}")
    async with Stack(shards=3, stream_shards=arguments.stream_shards) as stack:
        # Nothing may be trimmed unread: a loss must be the fleet's.
        await send_commands(stack.kinesis_url, SetOptions(options={"memory_max_bytes": 2 * 1024**3}))
        # On a slow machine each step takes longer: the second half is put once the first half of them is done.
        is_half_done = asyncio.Event()
        trial = Trial(
            load, lambda: stack.env, on_tick=shown_on(console), at_half=is_half_done.wait, timeout_s=600, idle_s=IDLE_S
        )
        env = {"KINESIS_LEASE_DURATION_SECONDS": str(arguments.lease_duration), "KINESIS_READ": arguments.read}
        fleet = _Fleet(stack, arguments.lease_duration, env, console)
        await fleet.start(1)
        async with asyncio.TaskGroup() as tasks:
            happening = tasks.create_task(happen(trial, fleet, arguments.stream_shards, is_half_done))
            result = await trial.run()
            through = happening.done()
            happening.cancel()
        await fleet.stop_all()
    return judge(console, result, is_over=through)


async def happen(trial: Trial, fleet: _Fleet, stream_shards: int, is_half_done: asyncio.Event) -> None:
    """Do one thing after the other to the fleet and the stream, while the first two thirds are sent or later.

    Set *is_half_done* after those that are due before half is sent.
    """
    steps: list[Step] = [
        lambda: fleet.start(3),
        lambda: fleet.reshard(2 * stream_shards),
        fleet.kill,
        fleet.freeze,
        lambda: fleet.reshard(stream_shards),
        fleet.stop_one,
        lambda: fleet.reshard(stream_shards // 2),
    ]
    for number, step in enumerate(steps, start=1):
        await settled_share(trial, number / (len(steps) + 3))
        await step()
        if number == HALF_STEPS:
            is_half_done.set()


class _Fleet:
    """The replicas, and what is done to them."""

    def __init__(self, stack: Stack, lease_duration_s: float, env: Mapping[str, str], console: Console) -> None:
        self._stack = stack
        self._env = env
        self._duration_s = lease_duration_s
        self._console = console
        self._numbers = itertools.count()
        self._workers: list[WorkerProcess] = []

    async def start(self, count: int) -> None:
        env = self._stack.env | dict(self._env)
        for _ in range(count):
            worker = WorkerProcess(self._stack.group, env, number=next(self._numbers))
            worker.start()
            await worker.wait_ready()
            self._workers.append(worker)
        self._console.print(f"{len(self._workers)} replicas")

    async def kill(self) -> None:
        worker = self._workers.pop(0)
        self._console.print(f"kill -9 of {worker.pid}; {len(self._workers)} replicas")
        worker.kill()

    async def freeze(self) -> None:
        """Stop one for longer than its leases last; then it goes on as if nothing had been."""
        worker = self._workers[0]
        seconds = 2 * self._duration_s + 1
        self._console.print(f"freezing {worker.pid} for {seconds:g} s")
        worker.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.send_signal(signal.SIGCONT)
        self._console.print("it goes on")

    async def stop_one(self) -> None:
        worker = self._workers.pop()
        self._console.print(f"SIGTERM to {worker.pid}; {len(self._workers)} replicas")
        await worker.stop(within_s=STOP_WITHIN_S)

    async def stop_all(self) -> None:
        """Stop those that are left in order; each must end with status 0."""
        for worker in self._workers:
            worker.check_running()
            await worker.stop(within_s=STOP_WITHIN_S)

    async def reshard(self, count: int) -> None:
        name = self._stack.env["KINESIS_STREAM_NAME"]
        async with self._stack.aws_client("kinesis") as kinesis:
            await reshard(kinesis, name, count)
        self._console.print(f"resharded to {count} stream shards")


if __name__ == "__main__":
    main()
