"""A stack, a worker and producers, each a process, and phases of time that are measured and compared."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from support.load.chain_checker import PutPlan, count_completed, count_operations, find_differences, read_latencies_s
from support.load.chain_producer import ChainProducer, ProducerOrder
from support.load.operation_chains import ChainPlan
from support.processes.resource_usage import MemorySampler, ValueRange, cpu_seconds
from support.streams import reshard

from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.verify.comparison import StoredDeadLetter, percentile
from simplu_local.verify.shard_checker import DeadLetterReader, read_tenant_ids
from simplu_local.workload.producer import POLL_INTERVAL_S, create_tenants, open_client
from simplu_local.workload.workload import Tenant

TENANTS_WITHIN_S = 120.0
STOP_WITHIN_S = 60.0
POLL_S = 1.0
STREAM_MEMORY_BYTES = 8 * 1024**3  # no record may be trimmed before it is read: every loss must be the worker's
MANY = 1_000_000  # tenants a shard: the testbed places them in Citrus itself
PROCESS_NAMES = {
    "local.kinesis.server": "Kinesis",
    "local.sqs.server": "SQS",
    "chain_producer": "producers",
    "simplu_worker run": "worker",
    "postgres": "Postgres",
    "moto_server": "DynamoDB",
    "watchdog": "watchdog",
}


@dataclass(eq=False)
class Flow:
    """A plan and the process that puts its operations."""

    plan: ChainPlan
    producer: ChainProducer
    is_checked: bool  # whether the operations that it puts must be applied


@dataclass(frozen=True, slots=True)
class Phase:
    """A period, and the processor time used in it: by process name, as shares of one processor."""

    name: str
    begin: datetime
    end: datetime
    processors: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return (self.end - self.begin).total_seconds()


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """The measurements of a phase. *rate* is committed operations a second; durations are arrival → committed."""

    phase: Phase
    rate: float
    p50_s: float | None
    p99_s: float | None
    longest_s: float | None
    rss_bytes: ValueRange | None

    def as_json(self) -> dict[str, Any]:
        rss = self.rss_bytes
        return {
            "phase": self.phase.name,
            "seconds": self.phase.seconds,
            "operationsPerSecond": self.rate,
            "p50Seconds": self.p50_s,
            "p99Seconds": self.p99_s,
            "longestSeconds": self.longest_s,
            "rssBytes": None if rss is None else {"min": rss.least, "median": rss.median, "max": rss.most},
            "processors": dict(self.phase.processors),
        }


class Testbed:
    """A stack with workers, up while the context is entered; each shard has *tenants_per_shard* tenants from the start.

    Without *replicas* the caller starts the workers and registers the tenants.
    """

    def __init__(
        self,
        *,
        shards: int = 4,
        stream_shards: int = 8,
        tenants_per_shard: int = 10,
        replicas: int = 1,
        worker_env: Mapping[str, str] | None = None,
    ) -> None:
        self.stack = Stack(shards=shards, stream_shards=stream_shards, tenants_per_shard=MANY)
        self.homes: dict[str, str] = {}  # the shards' URLs by tenant id
        self.tenants: dict[str, list[Tenant]] = {}  # by shard id
        self.flows: list[Flow] = []
        self.phases: list[Phase] = []
        self.workers: list[WorkerProcess] = []
        self._started_count = 0
        self._tenants_per_shard = tenants_per_shard
        self._replicas = replicas
        self._worker_env = dict(worker_env or {})
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.stack)
            options = {"memory_max_bytes": STREAM_MEMORY_BYTES}
            await send_commands(self.stack.kinesis_url, SetOptions(options=options))
            env = self.stack.env
            sqs = await entered.enter_async_context(open_client("sqs", env))
            self._letters = DeadLetterReader(sqs, env["SQS_DEAD_LETTER_QUEUE_URL"])
            entered.push_async_callback(end_task, asyncio.create_task(self._letters.run()))
            for _ in range(self._replicas):
                await self.start_worker()
            self.memory = MemorySampler(lambda: self.worker.pid)
            await self._make_tenants()
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.stack.servers.values():
            server.resume()
        await self._exit.aclose()

    async def start_worker(self, env: Mapping[str, str] | None = None) -> None:
        worker_env = self.stack.env | self._worker_env | dict(env or {})
        worker = WorkerProcess(self.stack.group, worker_env, number=self._started_count)
        self._started_count += 1
        worker.start()
        await worker.wait_ready()
        self.workers.append(worker)

    async def replace_worker(self, env: Mapping[str, str] | None = None) -> None:
        await self.workers.pop(0).stop(within_s=STOP_WITHIN_S)
        await self.start_worker(env)

    async def replace_killed(self) -> None:
        self.workers.pop(0).kill()
        await self.start_worker()

    @property
    def worker(self) -> WorkerProcess:
        return self.workers[0]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.stack.servers.values()]

    def server(self, number: int = 0) -> PostgresServer:
        return list(self.stack.servers.values())[number]

    def tenants_of(self, *servers: PostgresServer) -> tuple[Tenant, ...]:
        """Return the tenants of *servers* (none given: of all servers), one of each server in turn."""
        wanted = [server.url for server in servers] or self.urls
        columns = [self.tenants[shard_id] for shard_id, server in self.stack.servers.items() if server.url in wanted]
        return tuple(tenant for row in zip(*columns, strict=True) for tenant in row)

    def urls_without(self, server: PostgresServer) -> list[str]:
        return [url for url in self.urls if url != server.url]

    # Tenants

    async def _make_tenants(self) -> None:
        registry = self.stack.citrus.registry
        for shard_id, server in self.stack.servers.items():
            tenants = [Tenant(f"clinic-{shard_id}-{one}", "main", "dental") for one in range(self._tenants_per_shard)]
            self.tenants[shard_id] = tenants
            for tenant in tenants:
                registry.place(tenant.tenant_id, registry.shards[shard_id])
                self.homes[tenant.tenant_id] = server.url
        if self.workers:
            await self.register(self.tenants_of())

    async def register(self, tenants: Sequence[Tenant]) -> None:
        """Send `SHARD_CREATION` for *tenants* and wait until the shards have them; new ones go to the first shard."""
        env = self.stack.env
        for tenant in tenants:
            self.homes.setdefault(tenant.tenant_id, self.server().url)
        async with open_client("sqs", env) as sqs:
            await create_tenants(sqs, env["SQS_SHARD_CREATION_QUEUE_URL"], tenants)
        wanted = {tenant.tenant_id for tenant in tenants}

        async def are_provisioned() -> bool:
            return wanted <= await read_tenant_ids(self.urls)

        if not await poll_until(are_provisioned, within_s=TENANTS_WITHIN_S):
            raise SystemExit(f"expected {len(tenants)} tenants on their shards within {TENANTS_WITHIN_S:g} s")

    # Load

    def start_flow(
        self,
        plan: ChainPlan,
        *,
        rate: float | None,
        count: int | None = None,
        interval_s: float = POLL_INTERVAL_S,
        late_most_s: float | None = None,
        is_checked: bool = True,
    ) -> Flow:
        """Start a producer, with a request each *interval_s*.

        With *is_checked* all operations that it puts must be applied in the end. The producer makes up for a delay, of
        *late_most_s* at most if given.
        """
        order = ProducerOrder(plan, self.stack.env["KINESIS_STREAM_NAME"], rate, count, interval_s, late_most_s)
        flow = Flow(plan, ChainProducer(self.stack.group, self.stack.env, order), is_checked)
        self.flows.append(flow)
        return flow

    async def wait_until_applied(self, urls: Sequence[str], *, within_s: float) -> bool:
        """Wait until the shards at *urls* have all operations put so far; return false after *within_s*."""
        wanted = {url: self._expected_count(url) for url in urls}
        deadline = asyncio.get_running_loop().time() + within_s
        while wanted:
            self.check_running()
            for url, count in list(wanted.items()):
                if await count_operations(url) >= count:
                    del wanted[url]
            if wanted and asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(POLL_S if wanted else 0)
        return True

    def _expected_count(self, url: str) -> int:
        tenant_ids = frozenset(tenant_id for tenant_id, home in self.homes.items() if home == url)
        return sum(flow.plan.count_of(tenant_ids, flow.producer.put_count) for flow in self.flows if flow.is_checked)

    def check_running(self) -> None:
        """Raise when a worker or a producer has ended too early."""
        for worker in self.workers:
            worker.check_running()
        for flow in self.flows:
            flow.producer.check_running()

    # Phases

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        before, begin = self._processor_seconds(), datetime.now(UTC)
        yield
        self.check_running()
        end, after = datetime.now(UTC), self._processor_seconds()
        seconds = (end - begin).total_seconds()
        # Negative when a process has ended: its time is its parent's then.
        shares = {one: max(0.0, used - before[one]) / seconds for one, used in after.most_common()}
        self.phases.append(Phase(name, begin, end, shares))

    def _processor_seconds(self) -> Counter[str]:
        return cpu_seconds({*self.stack.group.pids, os.getpid()}, process_name, with_ended=True)

    async def measure_phase(self, phase: Phase, plan: ChainPlan, urls: Sequence[str]) -> PhaseResult:
        """Measure the plan's operations of *phase* on the shards at *urls*, once they are applied."""
        durations = await read_latencies_s(urls, plan, phase.begin, phase.end)
        count = await count_completed(urls, plan, phase.begin, phase.end)
        return PhaseResult(
            phase,
            rate=count / phase.seconds,
            p50_s=percentile(durations, 0.5),
            p99_s=percentile(durations, 0.99),
            longest_s=durations[-1] if durations else None,
            rss_bytes=self.memory.range_between(phase.begin, phase.end),
        )

    async def reshard(self, count: int) -> None:
        name = self.stack.env["KINESIS_STREAM_NAME"]
        async with self.stack.aws_client("kinesis") as kinesis:
            await reshard(kinesis, name, count)

    # Result

    async def find_differences(self, ignored: Collection[str] = (), *, other_types: Collection[str] = ()) -> list[str]:
        """Return the differences from the plans: operations lost, done twice, out of order, misplaced.

        *ignored* are the ids of tenants without a plan, *other_types* the resource types of messages.
        """
        puts = [PutPlan(flow.plan, flow.producer.put_count, self.homes) for flow in self.flows if flow.is_checked]
        return await find_differences(self.urls, puts, ignored, other_types)

    async def find_last_differences(self, *, within_s: float, other_types: Collection[str] = ()) -> list[str]:
        """Wait until all that was put is applied; return the differences, dead letters and what never came included."""
        is_applied = await self.wait_until_applied(self.urls, within_s=within_s)
        differences = [] if is_applied else ["not all operations were applied in the end"]
        differences += await self.find_differences(other_types=other_types)
        if self.dead_letters:
            differences.append(f"{len(self.dead_letters)} dead letters, such as {self.dead_letters[0]}")
        return differences

    @property
    def dead_letters(self) -> Sequence[StoredDeadLetter]:
        return self._letters.dead_letters

    async def stop_workers(self) -> None:
        """End the replicas with SIGTERM; each must end with status 0."""
        for worker in self.workers:
            await worker.stop(within_s=STOP_WITHIN_S)


async def end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def process_name(line: str) -> str:
    return next((name for part, name in PROCESS_NAMES.items() if part in line), "this, Citrus")
