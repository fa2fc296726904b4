"""Measure order events a second of a worker and of a naive loop: receive, apply in one transaction each, delete each.

    python -m benchmarks.orders [--events 10000] [--groups 500] [--runs 3] [--latency-ms 5] [--least-ratio 10]

Starts the embedded stack. Each run fills a FIFO queue for the naive loop, then one with as many groups for a worker
that was just started: the same queue server, shards, tenants and kinds of events. The naive loop writes the same rows;
it knows the shards of the tenants, keeps its connections, and receives `--receive-count` messages at a time. A worker's
time is from its first commit until its queue is empty.

Each SQS call takes `--latency-ms` longer than the local server needs, for both: a production queue is never on the same
machine. Each run also measures both without that latency, where the naive loop never waits and the processors decide;
the result is printed and not judged, unless with `--latency-ms 0`. At the end every row and the log are compared with
the events sent. Exit status 1 when the median rate of the worker is less than `--least-ratio` times that of the naive
loop, or a row differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import asyncpg
from rich.console import Console
from rich.table import Table
from support.load.console import open_console
from support.load.order_checker import compare_orders, read_first_commit_time
from support.load.order_plan import OrderPlan
from support.load.testbed import process_name
from support.processes.resource_usage import cpu_seconds

from benchmarks.targets import PerformanceTarget, print_differences
from simplu_local.aws_server.faults import ClearFaults
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.sqs.faults import SqsFault
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.order_events import OrderEvent, SendReceipt, send_events
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import Tenant, make_tenants

LEAST_RATIO = 10.0
CALLS = ("ReceiveMessage", "DeleteMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")
ALL_CALLS = 10**9
NAIVE_QUEUE = "naive.fifo"
STOP_WITHIN_S = 35.0
WITHIN_S = 120.0
APPLIED_PER_S = 100.0  # on a slow machine
POLL_S = 0.05

LOG_SQL = """
WITH logged AS (
    INSERT INTO log_rows (
        batch_id, position, tenant_no, request, kind, type_at, resource, origin_at, requested_at, received_at, digest
    )
    SELECT
        pg_current_xact_id()::text::bigint, 0, number, simplu_key($2), left($3::text, 1)::"char", 1, simplu_key($4), 1,
        $5, $6, ''
    FROM tenants WHERE id = $1
    ON CONFLICT (tenant_no, request) DO NOTHING
    RETURNING batch_id, tenant_no
)
INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
SELECT batch_id, clock_timestamp(), 1, 'o', ARRAY[tenant_no], '{order}', '{sqs}' FROM logged
"""
CREATE_SQL = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT id, business_type, 'order', $2, $3::text::jsonb, $4, $4 FROM tenants WHERE id = $1
ON CONFLICT (id, "resourceName", "resourceId") DO NOTHING
"""
MERGE_SQL = """
CREATE FUNCTION pg_temp.merge_patch(target jsonb, patch jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(patch) <> 'object' THEN patch ELSE (
        SELECT (base.members - coalesce(array_agg(key) FILTER (WHERE value = 'null'), '{}')) || coalesce(
            jsonb_object_agg(key, pg_temp.merge_patch(base.members -> key, value)) FILTER (WHERE value <> 'null'), '{}'
        )
        FROM (SELECT CASE WHEN jsonb_typeof(target) = 'object' THEN target ELSE '{}' END AS members) AS base
        LEFT JOIN jsonb_each(patch) ON true
        GROUP BY base.members
    ) END
$$
"""
PATCH_SQL = """
UPDATE resources SET data = pg_temp.merge_patch(data, $3::text::jsonb), "lastUpdated" = $4
WHERE id = $1 AND "resourceName" = 'order' AND "resourceId" = $2
"""
DELETE_SQL = """
DELETE FROM resources WHERE id = $1 AND "resourceName" = 'order' AND "resourceId" = $2
"""
FAILED_SQL = """
INSERT INTO log_outcomes (batch_id, position, tenant_no, error)
SELECT batch_id, position, tenant_no, $3 FROM log_rows
WHERE tenant_no = (SELECT number FROM tenants WHERE id = $1) AND request = simplu_key($2)
"""


@dataclass(frozen=True, slots=True)
class OrderRun:
    """One run of the worker or of the naive loop."""

    contender: str
    latency_ms: int
    events: int
    seconds: float
    processor_seconds: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def client_s(self) -> float:
        """Processor time of the contender: the naive loop runs in this process."""
        return self.processor_seconds.get("worker" if self.contender == "worker" else "this, Citrus", 0.0)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000, help="for the worker")
    parser.add_argument(
        "--naive-events", type=int, default=1000, help="for the naive loop, which is slower than the worker"
    )
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--tenants", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--receive-count", type=int, default=10, help="messages a receive of the naive loop")
    parser.add_argument("--latency-ms", type=int, default=5, help="of each SQS call, for both")
    parser.add_argument("--least-ratio", type=float, default=LEAST_RATIO)
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json)
    async with OrderBenchmark(arguments) as bench:
        pairs = []
        for number in range(1, arguments.runs + 1):
            for latency_ms in dict.fromkeys((arguments.latency_ms, 0)):
                pairs.append(await bench.measure_both(f"{number}-{latency_ms}", latency_ms))
                naive, worker = pairs[-1]
                rates = f"naive loop {naive.rate:.0f} events/s, worker {worker.rate:.0f}: {ratio_of([pairs[-1]]):.1f}×"
                console.print(f"run {number}, {latency_ms} ms a call: {rates}")
        differences = await bench.find_differences()
    judged = [pair for pair in pairs if pair[0].latency_ms == arguments.latency_ms]
    what = f"median worker ÷ median naive loop at {arguments.latency_ms} ms a call"
    bound = PerformanceTarget(what, ratio_of(judged), least=arguments.least_ratio)
    show(pairs, bound, differences, console)
    if arguments.json:
        sys.stdout.write(as_json(pairs, bound, differences) + "\n")
    return 0 if bound.is_kept and not differences else 1


def ratio_of(pairs: Sequence[tuple[OrderRun, OrderRun]]) -> float:
    """Return the median rate of the worker ÷ that of the naive loop."""
    return statistics.median(worker.rate for _, worker in pairs) / statistics.median(naive.rate for naive, _ in pairs)


class OrderBenchmark:
    """The embedded stack with tenants on its shards, and a queue each for the worker and the naive loop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._tenants = make_tenants(arguments.tenants, run="bench")
        per_shard = -(-arguments.tenants // arguments.shards)
        self._stack = Stack(shards=arguments.shards, stream_shards=1, tenants_per_shard=per_shard)
        self._plans: list[OrderPlan] = []
        self._homes: dict[str, asyncpg.Connection] = {}
        self._latency_ms = 0
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self._stack)
            env = self._stack.env
            self._sqs = await entered.enter_async_context(open_client("sqs", env))
            attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true", "VisibilityTimeout": "30"}
            created = await self._sqs.create_queue(QueueName=NAIVE_QUEUE, Attributes=attributes)
            self._naive_url = created["QueueUrl"]
            self._orders_url = env["SQS_ORDER_EVENTS_QUEUE_URL"]
            self._worker = WorkerProcess(self._stack.group, env | {"KINESIS_STREAM_NAME": ""})
            await self._register()
            for url in shard_urls(env):
                connection = await asyncpg.connect(url, timeout=10, command_timeout=30)
                entered.push_async_callback(connection.close)
                await connection.execute(MERGE_SQL)
                for tenant_id in await read_tenant_ids([url]):
                    self._homes[tenant_id] = connection
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def measure_both(self, name: str, latency_ms: int) -> tuple[OrderRun, OrderRun]:
        """Let the naive loop and then the worker empty a queue, with *latency_ms* more for each SQS call."""
        delays = [SqsFault(action=call, kind="delay", count=ALL_CALLS, delay_ms=latency_ms) for call in CALLS]
        self._latency_ms = latency_ms
        await send_commands(self._stack.sqs_url, *(delays if latency_ms else ()))
        try:
            return await self._measure_naive(f"naive{name}"), await self._measure_worker(f"worker{name}")
        finally:
            await send_commands(self._stack.sqs_url, ClearFaults())

    async def _measure_naive(self, name: str) -> OrderRun:
        """Fill the queue of the naive loop, and let the loop empty it."""
        plan = await self._fill_queue(name, self._naive_url, self._arguments.naive_events)
        by_part = {(tenant.business_id, tenant.location_id): tenant for tenant in self._tenants}
        loop = asyncio.get_running_loop()
        before, began = self._processor_seconds(), loop.time()
        await self._naive_loop(by_part)
        seconds = loop.time() - began
        return self._make_run("naive loop", plan, seconds, before)

    async def _measure_worker(self, name: str) -> OrderRun:
        """Fill the worker's queue, start a worker, and wait until the queue is empty."""
        plan = await self._fill_queue(name, self._orders_url, self._arguments.events)
        before = self._processor_seconds()
        self._worker.start()
        await self._worker.wait_ready()

        async def is_empty() -> bool:
            self._worker.check_running()
            await asyncio.sleep(POLL_S)
            return not await self._count_left(self._orders_url)

        if not await poll_until(is_empty, within_s=WITHIN_S + len(plan.events) / APPLIED_PER_S):
            raise SystemExit(
                f"expected an empty queue, the worker left {await self._count_left(self._orders_url)} events"
            )
        ended_at = datetime.now(UTC)
        began_at = await read_first_commit_time(shard_urls(self._stack.env), plan)
        if began_at is None:
            raise SystemExit("expected commits of the worker, it emptied its queue without any")
        measured = self._make_run("worker", plan, (ended_at - began_at).total_seconds(), before)
        await self._worker.stop(within_s=STOP_WITHIN_S)
        return measured

    async def find_differences(self) -> list[str]:
        """Return the differences from the events sent."""
        return await compare_orders(shard_urls(self._stack.env), self._plans)

    async def _fill_queue(self, name: str, queue_url: str, count: int) -> OrderPlan:
        plan = OrderPlan(name, self._tenants, count=count, groups=self._arguments.groups)
        self._plans.append(plan)

        def ignore(_: OrderEvent, __: SendReceipt) -> None:
            pass

        await send_events(self._sqs, queue_url, plan.events, on_sent=ignore)
        return plan

    def _make_run(self, contender: str, plan: OrderPlan, seconds: float, before: Mapping[str, float]) -> OrderRun:
        after = self._processor_seconds()
        used = {one: max(0.0, after_s - before.get(one, 0)) for one, after_s in after.items()}
        return OrderRun(contender, self._latency_ms, len(plan.steps), seconds, used)

    # The naive loop

    async def _naive_loop(self, tenants: Mapping[tuple[str, str], Tenant]) -> None:
        """Receive, apply in one transaction each, delete each, until the queue is empty."""
        while True:
            answer = await self._sqs.receive_message(
                QueueUrl=self._naive_url,
                MaxNumberOfMessages=self._arguments.receive_count,
                WaitTimeSeconds=1,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            messages = answer.get("Messages")
            if not messages and not await self._count_left(self._naive_url):
                return
            for message in messages or ():
                await self._apply_naively(message, tenants)
                await self._sqs.delete_message(QueueUrl=self._naive_url, ReceiptHandle=message["ReceiptHandle"])

    async def _apply_naively(self, message: Mapping[str, Any], tenants: Mapping[tuple[str, str], Tenant]) -> None:
        event, system = json.loads(message["Body"]), message["Attributes"]
        in_attributes = {name: one["StringValue"] for name, one in message.get("MessageAttributes", {}).items()}
        ids = (
            in_attributes.get("BusinessId") or event["businessId"],
            in_attributes.get("LocationId") or event["locationId"],
        )
        tenant_id, order_id = tenants[ids].tenant_id, event["orderId"]
        request_id = event.get("deduplicationId") or system["MessageDeduplicationId"]
        sent_at = datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC)
        kind = {"CREATE": "create", "UPDATE": "patch", "DELETE": "delete"}[event["type"]]
        connection = self._homes[tenant_id]
        async with connection.transaction():
            log = (tenant_id, request_id, kind, order_id, sent_at, datetime.now(UTC))
            if await connection.execute(LOG_SQL, *log) == "INSERT 0 0":
                return
            data = json.dumps(event["data"])
            match kind:
                case "create":
                    done = await connection.execute(CREATE_SQL, tenant_id, order_id, data, sent_at)
                case "patch":
                    done = await connection.execute(PATCH_SQL, tenant_id, order_id, data, sent_at)
                case _:
                    done = await connection.execute(DELETE_SQL, tenant_id, order_id)
            if done.endswith(" 0"):
                error = "already_exists" if kind == "create" else "not_found"
                await connection.execute(FAILED_SQL, tenant_id, request_id, error)

    # Setup and counting

    async def _register(self) -> None:
        """Let a worker provision the tenants, and stop it."""
        self._worker.start()
        await self._worker.wait_ready()
        await create_tenants(self._sqs, self._stack.env["SQS_SHARD_CREATION_QUEUE_URL"], self._tenants)
        wanted = {tenant.tenant_id for tenant in self._tenants}

        async def are_registered() -> bool:
            return wanted <= await read_tenant_ids(shard_urls(self._stack.env))

        if not await poll_until(are_registered, within_s=WITHIN_S):
            raise SystemExit(f"expected {len(wanted)} tenants on their shards within {WITHIN_S:g} s")
        await self._worker.stop(within_s=STOP_WITHIN_S)

    async def _count_left(self, queue_url: str) -> int:
        answer = await self._sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["All"])
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(answer["Attributes"][name]) for name in names)

    def _processor_seconds(self) -> Mapping[str, float]:
        return cpu_seconds({*self._stack.group.pids, os.getpid()}, process_name)


def show(
    pairs: Sequence[tuple[OrderRun, OrderRun]], bound: PerformanceTarget, differences: Sequence[str], console: Console
) -> None:
    """Print all runs for people."""
    names = ("this, Citrus", "worker", "Postgres", "SQS")
    table = Table("ms a call", "", "events", "seconds", "events/s", *(f"{name}: ms" for name in names))
    table.caption = "columns on the right: processor time an event"
    for pair in pairs:
        for one in pair:
            used = [f"{1000 * one.processor_seconds.get(name, 0) / one.events:.2f}" for name in names]
            table.add_row(
                str(one.latency_ms), one.contender, str(one.events), f"{one.seconds:.2f}", f"{one.rate:.0f}", *used
            )
    console.print(table)
    ratios = ", ".join(f"{ratio_of([pair]):.1f} at {pair[0].latency_ms} ms" for pair in pairs)
    kept = "kept" if bound.is_kept else "MISSED"
    console.print(f"{bound.what}: {bound.value:.1f}, promised {bound}: {kept}; run by run {ratios}")
    print_differences(console, differences)


def as_json(pairs: Sequence[tuple[OrderRun, OrderRun]], bound: PerformanceTarget, differences: Sequence[str]) -> str:
    """Return the results as JSON for programs."""
    runs = [
        {
            one.contender: {
                "latencyMs": one.latency_ms,
                "events": one.events,
                "seconds": one.seconds,
                "eventsPerSecond": one.rate,
                "processorMicrosecondsPerEvent": one.client_s / one.events * 1e6,
            }
            for one in pair
        }
        for pair in pairs
    ]
    answer = {"runs": runs, "ratio": bound.value, "kept": bound.is_kept, "differences": list(differences)}
    return json.dumps(answer, indent=2)


if __name__ == "__main__":
    main()
