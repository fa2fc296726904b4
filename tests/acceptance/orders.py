"""Order events against a running stack: order, exactly once, poison.

    simplu-worker stack --env-file F
    simplu-worker run --env-file F
    python tests/acceptance/orders.py --env-file F --events 10000 --groups 500 --poison 1

Exit status 0 only if each group's events were applied once and in their order, and only the poison is in the
dead-letter queue. `--start-worker` runs the worker too. `--rolling-restart` runs three replicas instead, sets the
queue's maxReceiveCount to 2, and replaces one replica after the other while the events come: nothing may be in a
dead-letter queue then but the poison, neither by us nor by the queue's redrive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from acceptance.blackbox import STOP_WITHIN_S, read_env_file, running_workers
from rich.console import Console
from rich.table import Table
from support.load.console import open_console
from support.load.order_checker import OrderComparison, compare_orders, count_orders
from support.load.order_plan import OrderPlan, PlannedEvent

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.verify.comparison import percentile
from simplu_local.verify.shard_checker import DeadLetterReader, read_tenant_ids, shard_urls
from simplu_local.workload.order_events import OrderEvent, SendReceipt, send_events
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import make_tenants

TENANTS_WITHIN_S = 60.0
IDLE_S = 90.0
QUIET_S = 2.0
POLL_S = 0.3
ROLLING_REPLICAS = 3
ROLLING_RATE = 200.0
ROLLING_FROM = 0.05
ROLLING_MAX_RECEIVE_COUNT = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-file", type=Path, required=True, help="what `simplu-worker stack` wrote")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--poison", type=float, default=None, help="percent of the events; 1, in a rolling restart 0")
    parser.add_argument("--tenants", type=int, default=12)
    parser.add_argument("--rate", type=float, default=None, help="most events a second")
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run's events")
    parser.add_argument("--start-worker", action="store_true", help="run the worker too, and end it with SIGTERM")
    parser.add_argument("--rolling-restart", action="store_true", help="run three replicas and replace each under load")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Send, make the trouble that was asked for, compare; return the exit status."""
    console = open_console()
    env = read_env_file(arguments.env_file)
    async with AsyncExitStack() as around:
        sqs = await around.enter_async_context(open_client("sqs", env))
        if arguments.rolling_restart:
            await set_max_receive_count(sqs, env["SQS_ORDER_EVENTS_QUEUE_URL"], ROLLING_MAX_RECEIVE_COUNT)
        replicas = ROLLING_REPLICAS if arguments.rolling_restart else int(arguments.start_worker)
        workers = await around.enter_async_context(running_workers(env, arguments.env_file, replicas))
        trial = await OrderTrial.prepared(arguments, env, sqs, console)
        reader = DeadLetterReader(
            await around.enter_async_context(open_client("sqs", env)), env["SQS_DEAD_LETTER_QUEUE_URL"]
        )
        async with asyncio.TaskGroup() as tasks:
            letters = tasks.create_task(reader.run())
            troubles: list[asyncio.Task[None]] = []
            if arguments.rolling_restart:
                troubles.append(tasks.create_task(trial.replace_replicas(workers)))
            await trial.send(troubles)
            applied = await trial.wait_until_done(reader)
            letters.cancel()
        found = await compare_orders(shard_urls(trial.env()), [trial.plan], trial.sent, reader.dead_letters)
        leftovers = await trial.leftovers()
    result = trial.result(found, leftovers, len(workers))
    if not applied:
        result["differences"].append("not all was applied in time")
    show(result, console)
    return 1 if result["differences"] else 0


async def set_max_receive_count(sqs: Any, queue_url: str, count: int) -> None:
    answer = await sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["RedrivePolicy"])
    policy = json.loads(answer["Attributes"]["RedrivePolicy"]) | {"maxReceiveCount": count}
    await sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"RedrivePolicy": json.dumps(policy)})


class OrderTrial:
    """One plan of order events on its way through a worker."""

    def __init__(self, arguments: argparse.Namespace, env: Mapping[str, str], sqs: Any, console: Console) -> None:
        seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
        run_name = f"o{secrets.token_hex(3)}"
        poison = arguments.poison if arguments.poison is not None else 0.0 if arguments.rolling_restart else 1.0
        self.tenants = make_tenants(arguments.tenants, run=run_name)
        self.plan = OrderPlan(
            run_name, self.tenants, count=arguments.events, groups=arguments.groups, poison_percent=poison, seed=seed
        )
        self.sent: dict[str, PlannedEvent] = {}
        self.sent_count = 0
        self.queue_url = env["SQS_ORDER_EVENTS_QUEUE_URL"]
        self._env_file = arguments.env_file
        self._rate = arguments.rate or (ROLLING_RATE if arguments.rolling_restart else None)
        self._sqs = sqs
        self._console = console
        console.print(f"seed {seed}, run {run_name}: {self.plan}")

    @classmethod
    async def prepared(
        cls, arguments: argparse.Namespace, env: Mapping[str, str], sqs: Any, console: Console
    ) -> OrderTrial:
        trial = cls(arguments, env, sqs, console)
        wanted = {tenant.tenant_id for tenant in trial.tenants}
        await create_tenants(sqs, env["SQS_SHARD_CREATION_QUEUE_URL"], trial.tenants)

        async def all_there() -> bool:
            return wanted <= await read_tenant_ids(shard_urls(trial.env()))

        if not await poll_until(all_there, within_s=TENANTS_WITHIN_S):
            raise SystemExit(f"{len(wanted)} tenants are not on their shards after {TENANTS_WITHIN_S:g} s")
        return trial

    def env(self) -> dict[str, str]:
        return read_env_file(self._env_file)

    # Sending

    async def send(self, troubles: Sequence[asyncio.Task[None]]) -> None:
        """Send all events, the last ones when the *troubles* are over: on a slow machine too these come under load."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        places = iter(self.plan.planned)  # the sender keeps the order

        def on_sent(event: OrderEvent, taken: SendReceipt) -> None:
            planned = next(places)
            assert planned.event is event
            self.sent_count += 1
            self.sent.setdefault(taken.message_id, planned)  # of one that the queue drops it is the first one's

        events = [planned.event for planned in self.plan.planned]
        last_count = len(events) // 10 if troubles else 0
        first, last = events[: len(events) - last_count], events[len(events) - last_count :]
        await send_events(self._sqs, self.queue_url, first, on_sent=on_sent, rate=self._rate)
        await asyncio.gather(*troubles)
        await send_events(self._sqs, self.queue_url, last, on_sent=on_sent, rate=self._rate)
        seconds = loop.time() - began
        self._console.print(f"{self.sent_count} events sent in {seconds:.1f} s: {self.sent_count / seconds:.0f}/s")

    # Trouble

    async def replace_replicas(self, workers: list[WorkerProcess]) -> None:
        await self._applied_share(ROLLING_FROM)
        for number, worker in enumerate(workers, start=1):
            began = asyncio.get_running_loop().time()
            await worker.stop(within_s=STOP_WITHIN_S)
            stopped_s = asyncio.get_running_loop().time() - began
            worker.start()
            await worker.wait_ready()
            self._console.print(f"replica {number} ended after {stopped_s:.1f} s, and its successor is ready")

    async def _applied_share(self, share: float) -> None:
        async def reached() -> bool:
            await asyncio.sleep(POLL_S)
            return await count_orders(shard_urls(self.env()), self.plan) >= share * len(self.plan.steps)

        await poll_until(reached, within_s=float("inf"))

    # The end

    async def wait_until_done(self, reader: DeadLetterReader) -> bool:
        """Wait until all events and all poison have left their trace and the queue is empty; false if they do not."""
        loop = asyncio.get_running_loop()
        poison = {message_id for message_id, planned in self.sent.items() if planned.reasons}
        changed, last = loop.time(), (-1, -1, -1)
        while True:
            applied = await count_orders(shard_urls(self.env()), self.plan)
            letters = len(poison & {letter.position[1] for letter in reader.dead_letters})
            left = await self._left(self.queue_url)
            now = (applied, letters, left)
            if now == (len(self.plan.steps), len(poison), 0):
                await asyncio.sleep(QUIET_S)  # for what should not come: one more dead letter
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

    async def leftovers(self) -> dict[str, int]:
        """Return how many messages are in the order queue and in the queue of its redrive."""
        answer = await self._sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["RedrivePolicy"])
        target = json.loads(answer["Attributes"]["RedrivePolicy"])["deadLetterTargetArn"].rsplit(":", 1)[-1]
        redrive_url = (await self._sqs.get_queue_url(QueueName=target))["QueueUrl"]
        return {url.rsplit("/", 1)[-1]: await self._left(url) for url in (self.queue_url, redrive_url)}

    def result(self, found: OrderComparison, leftovers: Mapping[str, int], replicas: int) -> dict[str, Any]:
        differences = list(found.differences)
        differences += [f"{count} messages are left in {name}" for name, count in leftovers.items() if count]
        seconds = 0.0
        if found.first_at is not None and found.last_at is not None:
            seconds = (found.last_at - found.first_at).total_seconds()
        return {
            "events": self.sent_count,
            "groups": self.plan.group_count,
            "applied": len(self.plan.steps),
            "poison": dict(Counter("/".join(sorted(one.reasons)) for one in self.plan.planned if one.reasons)),
            "sentAgain": sum(one.step is None and not one.reasons for one in self.plan.planned),
            "deadLettersTwice": found.repeated_letters,
            "replicasStarted": replicas,
            "secondsOfCommits": seconds,
            "eventsPerSecond": len(self.plan.steps) / seconds if seconds else None,
            "p50Seconds": percentile(found.latencies_s, 0.5),
            "p99Seconds": percentile(found.latencies_s, 0.99),
            "longestSeconds": percentile(found.latencies_s, 1.0),
            "differences": differences,
        }


def show(result: Mapping[str, Any], console: Console) -> None:
    table = Table("what", "")
    for name, value in result.items():
        if name != "differences":
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)
    for difference in result["differences"]:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    good = not result["differences"]
    console.print("all right: each once, in order in every group" if good else "not right", style="bold")


if __name__ == "__main__":
    main()
