"""Order events against a running stack while all replicas are replaced: order, exactly once, no dead letter.

    simplu-worker stack --env-file F
    python tests/acceptance/orders.py --env-file F --events 10000 --groups 500

Runs three replicas, sets the queue's maxReceiveCount to 2, and replaces one replica after the other while the events
come. Exit status 0 only if each group's events were applied once and in their order, and nothing is in a dead-letter
queue, neither by us nor by the queue's redrive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from acceptance.blackbox import STOP_WITHIN_S, read_env_file, running_workers
from rich.console import Console
from support.load.console import open_console
from support.load.order_checker import compare_orders, count_orders
from support.load.order_plan import OrderPlan

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.order_events import OrderEvent, SendReceipt, send_events
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import make_tenants

TENANTS_WITHIN_S = 60.0
IDLE_S = 90.0
QUIET_S = 2.0
POLL_S = 0.3
REPLICAS = 3
REPLACED_FROM = 0.05  # of the events: the first replica ends once so many are applied
MAX_RECEIVE_COUNT = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-file", type=Path, required=True, help="what `simplu-worker stack` wrote")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=12)
    parser.add_argument("--rate", type=float, default=200.0, help="most events a second")
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run's events")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Send, replace the replicas, compare; return the exit status."""
    console = open_console()
    env = read_env_file(arguments.env_file)
    async with AsyncExitStack() as around:
        sqs = await around.enter_async_context(open_client("sqs", env))
        await set_max_receive_count(sqs, env["SQS_ORDER_EVENTS_QUEUE_URL"], MAX_RECEIVE_COUNT)
        workers = await around.enter_async_context(running_workers(env, arguments.env_file, REPLICAS))
        trial = OrderTrial(arguments, env, sqs, console)
        await trial.create_tenants()
        async with asyncio.TaskGroup() as tasks:
            await trial.send(tasks.create_task(trial.replace_replicas(workers)))
        is_applied = await trial.wait_until_done()
        differences = await compare_orders(shard_urls(trial.env()), [trial.plan])
        differences += await trial.leftovers()
    if not is_applied:
        differences.append("not all was applied in time")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    console.print("not right" if differences else "all right: each once, in order in every group", style="bold")
    return 1 if differences else 0


async def set_max_receive_count(sqs: Any, queue_url: str, count: int) -> None:
    answer = await sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["RedrivePolicy"])
    policy = json.loads(answer["Attributes"]["RedrivePolicy"]) | {"maxReceiveCount": count}
    await sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"RedrivePolicy": json.dumps(policy)})


class OrderTrial:
    """One plan of order events on its way through a worker."""

    def __init__(self, arguments: argparse.Namespace, env: Mapping[str, str], sqs: Any, console: Console) -> None:
        seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
        run_name = f"o{secrets.token_hex(3)}"
        tenants = make_tenants(arguments.tenants, run=run_name)
        self.plan = OrderPlan(run_name, tenants, count=arguments.events, groups=arguments.groups, seed=seed)
        self._env = env
        self._queue_url = env["SQS_ORDER_EVENTS_QUEUE_URL"]
        self._env_file = arguments.env_file
        self._rate = arguments.rate
        self._sqs = sqs
        self._console = console
        console.print(f"seed {seed}, run {run_name}: {len(self.plan.steps)} steps, {len(self.plan.events)} events")

    def env(self) -> dict[str, str]:
        return read_env_file(self._env_file)

    async def create_tenants(self) -> None:
        wanted = {tenant.tenant_id for tenant in self.plan.tenants}
        await create_tenants(self._sqs, self._env["SQS_SHARD_CREATION_QUEUE_URL"], self.plan.tenants)

        async def all_there() -> bool:
            return wanted <= await read_tenant_ids(shard_urls(self.env()))

        if not await poll_until(all_there, within_s=TENANTS_WITHIN_S):
            raise SystemExit(f"{len(wanted)} tenants are not on their shards after {TENANTS_WITHIN_S:g} s")

    async def send(self, trouble: asyncio.Task[None]) -> None:
        """Send all events, the last ones when the *trouble* is over: on a slow machine too it comes under load."""

        def ignore(_: OrderEvent, __: SendReceipt) -> None:
            pass

        events = self.plan.events
        last_count = len(events) // 10
        await send_events(self._sqs, self._queue_url, events[:-last_count], on_sent=ignore, rate=self._rate)
        await trouble
        await send_events(self._sqs, self._queue_url, events[-last_count:], on_sent=ignore, rate=self._rate)

    async def replace_replicas(self, workers: Sequence[WorkerProcess]) -> None:
        async def has_begun() -> bool:
            await asyncio.sleep(POLL_S)
            return await count_orders(shard_urls(self.env()), self.plan) >= REPLACED_FROM * len(self.plan.steps)

        await poll_until(has_begun, within_s=float("inf"))
        for number, worker in enumerate(workers, start=1):
            began = asyncio.get_running_loop().time()
            await worker.stop(within_s=STOP_WITHIN_S)
            stopped_s = asyncio.get_running_loop().time() - began
            worker.start()
            await worker.wait_ready()
            self._console.print(f"replica {number} ended after {stopped_s:.1f} s, and its successor is ready")

    async def wait_until_done(self) -> bool:
        """Wait until all events have left their trace and the queue is empty; false if they do not."""
        loop = asyncio.get_running_loop()
        changed, last = loop.time(), (-1, -1)
        while True:
            now = (await count_orders(shard_urls(self.env()), self.plan), await self._left(self._queue_url))
            if now == (len(self.plan.steps), 0):
                await asyncio.sleep(QUIET_S)  # for what should not come: a dead letter
                return True
            if now != last:
                changed, last = loop.time(), now
            elif loop.time() - changed > IDLE_S:
                return False
            await asyncio.sleep(POLL_S)

    async def _left(self, queue_url: str) -> int:
        answer = await self._sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["All"])
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(answer["Attributes"][name]) for name in names)

    async def leftovers(self) -> list[str]:
        """Return what is left in the order queue, in the queue of its redrive, and in that of the dead letters."""
        answer = await self._sqs.get_queue_attributes(QueueUrl=self._queue_url, AttributeNames=["RedrivePolicy"])
        target = json.loads(answer["Attributes"]["RedrivePolicy"])["deadLetterTargetArn"].rsplit(":", 1)[-1]
        redrive_url = (await self._sqs.get_queue_url(QueueName=target))["QueueUrl"]
        counts = {
            url.rsplit("/", 1)[-1]: await self._left(url)
            for url in (self._queue_url, redrive_url, self._env["SQS_DEAD_LETTER_QUEUE_URL"])
        }
        return [f"{count} messages are left in {name}" for name, count in counts.items() if count]


if __name__ == "__main__":
    main()
