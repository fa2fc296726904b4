"""Send a load to a running stack and worker: tenants and records; wait until they are applied, and compare."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from simplu_local.processes.loopback import poll_until
from simplu_local.stack.aws import put_businesses
from simplu_local.stack.histories import keep_histories
from simplu_local.verify.comparison import ComparisonReport
from simplu_local.verify.shard_checker import ApplyProgress, DeadLetterReader, ShardChecker, read_tenant_ids, shard_urls
from simplu_local.workload.order_events import OrderEvent, SendReceipt, send_events
from simplu_local.workload.order_workload import OrderItem, OrderWorkload
from simplu_local.workload.packing import pack_some
from simplu_local.workload.producer import Position, create_tenants, open_client, put_items, wait_for_stream
from simplu_local.workload.workload import ALL_KINDS, STRESS_COUNT, Item, Shares, Tenant, Workload, make_tenants

TICK_S = 0.5
TENANTS_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TrialLoad:
    """The load to send. *run* distinguishes the tenants' ids from those of other runs against the same stack.

    *late_tenants* are registered after half of the records; *unregistered* tenants never. *stress* adds records of
    extreme size and depth. *rate* is the maximum of records a second. *orders* is the number of order events. Records
    of a share *packed* of the partition keys are put together, as arrays and lines. The resources of the business types
    *histories* keep their versions.
    """

    operations: int
    seed: int
    run: str
    tenants: int = 10
    late_tenants: int = 0
    unregistered: int = 0
    kinds: tuple[str, ...] = ALL_KINDS
    shares: Shares = field(default_factory=Shares)
    stress: bool = False
    rate: float | None = None
    orders: int = 0
    packed: float = 0.0
    histories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialSnapshot:
    """The progress of a trial. *progress* is `None` before the first query of the shards."""

    phase: str
    produced: int
    total: int
    elapsed_s: float
    progress: ApplyProgress | None


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of a trial. *produced* counts records and order events, *orders* the order events alone.

    *elapsed_s* is from the first record put to the last one seen applied.
    """

    report: ComparisonReport
    progress: ApplyProgress
    produced: int
    elapsed_s: float
    put: Mapping[Position, Item]
    orders: int = 0


class Trial:
    """Runs one load. *env* is called for every query: Citrus may add a shard.

    *at_half* is awaited when half of the records are put, and the late tenants are registered: what must happen while
    there is more to apply.
    """

    def __init__(
        self,
        load: TrialLoad,
        env: Callable[[], Mapping[str, str]],
        *,
        on_tick: Callable[[TrialSnapshot], Awaitable[None]],
        at_half: Callable[[], Awaitable[object]] | None = None,
        timeout_s: float = 600.0,
        idle_s: float = 60.0,
    ) -> None:
        self.load = load
        tenants = make_tenants(load.tenants, run=load.run)
        unknown = [Tenant(f"unknown-{load.run}-{number}", "nowhere", "gym") for number in range(load.unregistered)]
        self.workload = Workload(load.seed, tenants, kinds=load.kinds, shares=load.shares, unregistered=unknown)
        self._env = env
        self._on_tick = on_tick
        self._at_half = at_half
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        early_count = load.tenants - load.late_tenants
        self._early, self._late = self.workload.tenants[:early_count], self.workload.tenants[early_count:]
        self._orders = OrderWorkload(load.seed, self._early, self.workload.model)
        closing_count = self.workload.closing_count()
        self._total = load.operations + closing_count + (STRESS_COUNT if load.stress else 0) + load.orders
        self._phase = "starting"
        self._produced = 0
        self._started_at: float | None = None
        self._progress: ApplyProgress | None = None

    async def run(self) -> TrialResult:
        """Send the load, wait, and compare; may be cancelled at any time."""
        env = self._env()
        async with AsyncExitStack() as stack:
            kinesis = await stack.enter_async_context(open_client("kinesis", env))
            sqs = await stack.enter_async_context(open_client("sqs", env))
            dead_letter_sqs = await stack.enter_async_context(open_client("sqs", env))
            reader = DeadLetterReader(dead_letter_sqs, env["SQS_DEAD_LETTER_QUEUE_URL"])
            checker = ShardChecker(lambda: shard_urls(self._env()), self.workload.model, reader)
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(reader.run(), name="dead-letters"),
                    tasks.create_task(self._tick(checker), name="ticks"),
                ]
                result = await self._run_load(kinesis, sqs, checker)
                for task in background:
                    task.cancel()
        return result

    async def _run_load(self, kinesis: Any, sqs: Any, checker: ShardChecker) -> TrialResult:
        env, load = self._env(), self.load
        clock = asyncio.get_running_loop().time
        foreign = await read_tenant_ids(shard_urls(env))
        queue_url, stream = env["SQS_SHARD_CREATION_QUEUE_URL"], env["KINESIS_STREAM_NAME"]
        self._phase = "registering"
        await wait_for_stream(kinesis, stream)
        await self._put_businesses(env)
        await create_tenants(sqs, queue_url, self._early, seed=load.seed)
        await self._wait_for_tenants(self._early)
        if load.histories:
            await keep_histories(env, load.histories)
        self._phase = "producing"
        self._started_at = clock()

        def record_put(pairs: Sequence[tuple[Position, Item]]) -> None:
            checker.record_put(pairs)
            self._produced += len(pairs)

        async with asyncio.TaskGroup() as tasks:
            if load.orders:
                tasks.create_task(self._send_orders(sqs, checker), name="orders")
            items, draws = self._items(), Random(load.seed)
            put = partial(
                put_items,
                kinesis,
                stream,
                on_put=record_put,
                rate=load.rate,
                pack=lambda items: pack_some(items, draws, load.packed),
            )
            await put(_first(items, load.operations // 2))
            if self._late:
                await create_tenants(sqs, queue_url, self._late, seed=load.seed)
            if self._at_half is not None:
                await self._at_half()
            await put(items)
        self._phase = "applying"
        progress = await checker.wait_until_applied(
            timeout_s=self._timeout_s, idle_s=self._idle_s, on_progress=self._set_progress
        )
        elapsed_s = clock() - self._started_at
        self._phase = "comparing"
        report = await checker.compare(foreign=foreign)
        return TrialResult(report, progress, self._produced, elapsed_s, checker.put, load.orders)

    async def _put_businesses(self, env: Mapping[str, str]) -> None:
        table = env.get("DYNAMODB_BUSINESS_INFO_TABLE")
        if table is None:
            return
        endpoint = {"AWS_ENDPOINT_URL_DYNAMODB": env["DYNAMODB_ENDPOINT"]} if "DYNAMODB_ENDPOINT" in env else {}
        businesses: dict[str, tuple[str, list[str]]] = {}
        for tenant in self.workload.tenants:
            businesses.setdefault(tenant.business_id, (tenant.business_type, []))[1].append(tenant.location_id)
        async with open_client("dynamodb", {**env, **endpoint}) as dynamodb:
            await put_businesses(dynamodb, table, businesses)

    def _items(self) -> Iterator[Item]:
        if self.load.stress:
            yield from self.workload.stress()
        yield from self.workload.items(self.load.operations)

    async def _send_orders(self, sqs: Any, checker: ShardChecker) -> None:
        env, items = self._env(), list(self._orders.items(self.load.orders))
        for name, is_urgent in (("SQS_ORDER_EVENTS_QUEUE_URL", False), ("SQS_PRIORITY_QUEUE_URL", True)):
            queue_url, chosen = env[name], [item for item in items if item.is_urgent == is_urgent]
            by_event = {id(item.event): item for item in chosen}

            def record_sent(
                event: OrderEvent, receipt: SendReceipt, *, name: str = queue_name(queue_url), by: Any = by_event
            ) -> None:
                item: OrderItem = by[id(event)]
                record = Item(event.group_id, event.body.encode(), item.verdict)
                checker.record_put([((name, receipt.message_id), record)])
                checker.record_window(item.moment, receipt.earliest, receipt.latest)
                self._produced += 1

            await send_events(sqs, queue_url, (item.event for item in chosen), on_sent=record_sent)

    async def _wait_for_tenants(self, tenants: Iterable[Tenant]) -> None:
        """Wait until the worker has provisioned *tenants*, for a time; the comparison reports missing ones."""
        wanted = {tenant.tenant_id for tenant in tenants}

        async def are_provisioned() -> bool:
            return wanted <= await read_tenant_ids(shard_urls(self._env()))

        await poll_until(are_provisioned, within_s=TENANTS_TIMEOUT_S)

    def _set_progress(self, progress: ApplyProgress) -> None:
        self._progress = progress

    async def _tick(self, checker: ShardChecker) -> None:
        while True:
            if self._phase == "producing":  # `wait_until_applied` reads the progress of later phases
                self._progress = await checker.read_progress()
            await self._on_tick(self.snapshot())
            await asyncio.sleep(TICK_S)

    def snapshot(self) -> TrialSnapshot:
        """Return the progress of the trial."""
        now = asyncio.get_running_loop().time()
        elapsed_s = 0.0 if self._started_at is None else now - self._started_at
        return TrialSnapshot(self._phase, self._produced, self._total, elapsed_s, self._progress)


def queue_name(queue_url: str) -> str:
    """Return the name of the queue at *queue_url*."""
    return queue_url.rstrip("/").rsplit("/", 1)[-1]


def _first(items: Iterator[Item], count: int) -> Iterator[Item]:
    for _, item in zip(range(count), items, strict=False):
        yield item
