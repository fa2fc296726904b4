from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from random import Random
from typing import Any, TypeAlias, cast

import msgspec
from simulation.ledger import Ledger, Put, PutPart
from simulation.simulated_dynamodb import DynamoDb, Row
from simulation.simulated_feed import LOCATOR, SimulatedReceiver, feed_problems, pools_of
from simulation.simulated_kinesis import STREAM, KinesisClient, KinesisService
from simulation.simulated_log import RECEIVERS
from simulation.simulated_network import Network
from simulation.simulated_queue import QueueService, consume_orders
from simulation.simulated_shards import SHARD_IDS, PostgresShards, SimulatedDeadLetters, SimulatedGateway, Tenant
from simulation.virtual_time import EPOCH, Process, VirtualLoop
from support.aws.kpl_aggregates import aggregate

from simplu_local.kinesis.model import KinesisOptions
from simplu_worker.bulkheads import keep_running
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet, FleetServices, FleetSettings
from simplu_worker.consumers.kinesis.fleet.fleet_report import ReadStatus, read_status
from simplu_worker.consumers.kinesis.holding import ownership, tenant_set
from simplu_worker.consumers.kinesis.holding.ownership import TENANT_HOLDS_MAX
from simplu_worker.consumers.kinesis.holding.tenant_set import ENCODED_NAMES_MAX
from simplu_worker.consumers.kinesis.leases.lease import Lease, lease_of
from simplu_worker.consumers.kinesis.leases.lease_rules import FIXED_KBPS, GAIN, HEAVY, LIGHT
from simplu_worker.consumers.kinesis.leases.lease_table import KclLeaderWatch, LeaseTable
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderSettings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscriptions
from simplu_worker.feed.feed import ConfiguredDestination, Feed
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.types import ShardPositionRows
from simplu_worker.vocabulary import Source, TargetKind

APPLICATION = "simplu"
LOOK_EVERY_S = 0.25
RETRY_DELAYS_S = (1.0, 5.0, 15.0)
retry_delays_s: Sequence[float] = RETRY_DELAYS_S  # of stream readers, in this history

FleetMaker: TypeAlias = Callable[..., Fleet]


class ViolationError(AssertionError): ...


class Weather(StrEnum):
    FAIR = "fair"  # what was drawn
    STORM = "storm"  # and shards fail over, stream shards split and replicas are killed, again and again
    GREAT_STORM = "great storm"  # and all the rest, in a world with more of everything
    DEFECTS = "defects"  # what was drawn, and exceptions that nobody foresaw: by the doors to services, and in our code
    MOVES = "moves"  # little of the rest: tenants move, and shards lose commits around that
    RESHARDS = "reshards"  # little of the rest: stream shards are split and merged, and shards lose commits around that
    FEEDS = "feeds"  # little of the rest: tenants move, publishers die, the feed's file changes, shards lose commits
    WHOLE = "whole"  # all that the product does: order events beside the stream, the feed, moves, clocks that are wrong


class Plan(msgspec.Struct, frozen=True):
    """The decisions made before a simulation starts. The defaults are those of a quiet world."""

    lease_duration_s: float = 10.0
    initial_position: str = "TRIM_HORIZON"
    replica_count: int = 2
    stream_shard_count: int = 1
    tenant_count: int = 1
    key_count: int = 4
    record_count: int = 20
    trouble_s: float = 5.0
    event_count: int = 0
    weather: Weather = Weather.FAIR
    tenant_wait_s: float = 30.0
    skew_max_s: float = 0.0
    page_size: int = 100  # of scans
    has_pauses: bool = False  # whether people pause tenants
    has_strangers: bool = False  # whether a tenant is never registered
    has_poison: bool = False  # whether some operations fail by themselves
    names_max: int = ENCODED_NAMES_MAX  # tenants in a lease row by name
    tenant_holds_max: int = TENANT_HOLDS_MAX
    prefetch_max_bytes: int = 64 * 1024 * 1024
    operation_cost_s: float = 100e-6  # as expected; a tenth of a second of it makes a batch
    ahead_from_s: float = 30.0
    follows_kcl: bool = False  # KINESIS_KCL_FOLLOWER
    retention_s: float | None = None  # less than Kinesis allows, for records that expire within a simulation
    options: KinesisOptions = msgspec.field(default_factory=lambda: KinesisOptions(scaling_limits=False))


class WholePlan(Plan, frozen=True):
    order_count: int = 0  # of order events, from a queue
    has_feed: bool = False
    is_replicated: bool = True  # whether the shards' standbys are awaited, by orders and the feed
    drift_max: float = 0.0  # of the monotonic clocks of replicas


class Replica:
    """One process of the worker: its fleet, on the services of a world."""

    def __init__(self, world: World, number: int) -> None:
        plan = world.plan
        self.me = f"host:{number}:{number:04x}"
        self.process = Process(self.me)
        self.stopping = asyncio.Event()
        skew = timedelta(seconds=world.draws.uniform(-plan.skew_max_s, plan.skew_max_s))
        if drift_max := world.parts.drift_max:
            self.process.rate = 1.0 + world.draws.uniform(-drift_max, drift_max)
        pools = pools_of(world.shards) if world.shards.logs else None
        commits = None if pools is None else world.make_commits(cast("Pools", pools))
        self.gateway = gateway = SimulatedGateway(world.shards, cost_s=plan.operation_cost_s, commits=commits)
        letters = SimulatedDeadLetters(world.shards)
        table = LeaseTable(world.dynamodb, APPLICATION)
        services = FleetServices(
            Stream(KinesisClient(world.kinesis), STREAM),
            table,
            KclLeaderWatch(table, follows=plan.follows_kcl),
            cast("ShardGateway", gateway),
            letters,
            PrefetchMemory(plan.prefetch_max_bytes),
            _subscriptions(world) if world.is_pushed else None,
        )
        settings = FleetSettings(
            lease_duration_s=plan.lease_duration_s,
            initial_position=EPOCH if plan.initial_position == "AT_TIMESTAMP" else plan.initial_position,
            create_stream=True,
            stream_shard_count=1,
            reader=ReaderSettings(
                operation_max_bytes=100_000,
                list_result_limit=100,
                retries=RetryRules(retry_delays_s, timedelta(seconds=plan.tenant_wait_s)),
                ahead_from_s=plan.ahead_from_s,
            ),
        )
        draw = world.draws.random

        def utc() -> datetime:
            return world.loop.utc() + skew

        self.fleet = world.make_fleet(services, settings, me=self.me, draw=draw, utc=utc)
        # As the daemon runs it.
        run = partial(self.fleet.run, self.stopping)
        parts = [keep_running(TargetKind.LEASES, "fleet", "fleet", run, stopping=self.stopping, draw=draw)]
        if world.queue is not None:
            tenant_wait = timedelta(seconds=plan.tenant_wait_s)
            parts.append(
                consume_orders(
                    world.queue, gateway, letters, self.stopping, tenant_wait=tenant_wait, draws=world.draws, utc=utc
                )
            )
        self.feed: Feed | None = None
        if pools is not None and commits is not None and world.receivers:
            destinations = world.destinations()
            self.feed = world.make_feed(
                LOCATOR, cast("Pools", pools), commits, name=self.me, destinations=destinations, draw=draw, utc=utc
            )
            feeding = partial(self.feed.run, self.stopping)
            parts.append(keep_running(TargetKind.FEED, "feed", "feed", feeding, stopping=self.stopping, draw=draw))
        self.task = world.start(self.process, parts[0] if len(parts) == 1 else _run_all(parts))

    def __repr__(self) -> str:
        return f"Replica({self.process!r}, {self.fleet!r})"

    @property
    def is_alive(self) -> bool:
        return not (self.process.is_dead or self.stopping.is_set() or self.task.done())

    def kill(self) -> None:
        self.process.is_dead = True

    def running(self) -> list[str]:
        return [reader.stream_shard_id for reader in self.fleet.readers()]

    def bug(self) -> BaseException | None:
        return None if not self.task.done() or self.task.cancelled() else self.task.exception()


ReadUpTo = Callable[[ReadStatus, ShardPositionRows], datetime | None]


class World:
    """All there is in one simulation. Everything random in it comes from *draws*."""

    def __init__(self, loop: VirtualLoop, draws: Random, plan: Plan, make_fleet: FleetMaker) -> None:
        self.loop = loop
        self.draws = draws
        # Its own, by the text of a plan as it was with one member more: histories stay what they are.
        self._form_draws = Random(f"forms {plan}".replace(", options=", ", cpu_share=0.0, options="))
        self.plan = plan
        self.parts = parts = plan if isinstance(plan, WholePlan) else WholePlan()
        self.make_fleet = make_fleet
        self.network = Network(loop, draws)
        self.kinesis = KinesisService(self.network, plan.options)
        tenant_wait = timedelta(seconds=plan.tenant_wait_s)
        self.shards = PostgresShards(self.network, tenant_wait=tenant_wait)
        self.dynamodb = DynamoDb(self.network, page_size=plan.page_size)
        self.ledger = Ledger(self.shards, tenant_wait=tenant_wait, is_closed=self.kinesis.is_closed)
        self.table = self.dynamodb.table(APPLICATION)
        self.table.watch = self._watch_lease
        self.is_pushed = False  # whether replicas read by push
        self.queue: QueueService | None = None
        self.receivers: list[SimulatedReceiver] = []
        self.make_feed: Callable[..., Feed] = Feed
        self.make_commits: Callable[..., ReplicationWaiter] = ReplicationWaiter
        self._judged: tuple[object, list[str]] | None = None  # what the feed was judged by, and the problems
        self.defects: list[str] = []  # the places of the exceptions that nobody foresaw
        self.left_out: set[str] = set()  # receivers that are not in the file of the feed
        self.read_up_to: ReadUpTo = lambda status, rows: status.up_to([rows])  # what a replica answers
        self.replicas: list[Replica] = []
        self._processes: list[Process] = []
        for number in range(plan.tenant_count):
            tenant_id = f"b{number}-l"
            self.shards.tenants[tenant_id] = Tenant(tenant_id, draws.choice(SHARD_IDS))
        if parts.has_feed or parts.order_count:
            self.shards.keep_logs(draws, is_replicated=parts.is_replicated)
        if parts.order_count:
            self.queue = QueueService(self.network, visibility_s=draws.choice([5, 10, 30]))
        if parts.has_feed:
            self.receivers = [SimulatedReceiver(name, self.network, draws) for name in RECEIVERS]

    def __repr__(self) -> str:
        return f"World(at {self.loop.time():.3f} s, {self.plan}, {self.kinesis.stream}, {self.replicas})"

    async def open(self) -> None:
        self.kinesis.do("CreateStream", StreamName=STREAM, ShardCount=self.plan.stream_shard_count)
        if self.plan.retention_s is not None:
            self.kinesis.stream.retention_hours = self.plan.retention_s / 3600  # type: ignore[assignment]  # a fraction
        await asyncio.sleep(0.1)
        for _ in range(self.plan.replica_count):
            self.start_replica()

    def start(self, process: Process, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._processes.append(process)
        return self.loop.start(process, work)

    def start_replica(self) -> Replica:
        replica = Replica(self, len(self.replicas))
        self.replicas.append(replica)
        return replica

    def alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.is_alive]

    def leases(self) -> dict[str, Lease]:
        found = {key: lease_of(row) for key, row in self.table.rows.items()}
        return {key: lease for key, lease in found.items() if lease is not None}

    def owners(self) -> dict[str, str | None]:
        return {key: lease.owner for key, lease in self.leases().items() if lease.checkpoint != SHARD_END}

    def register_all(self) -> None:
        for tenant in self.shards.tenants.values():
            tenant.created_at = tenant.created_at or self.loop.utc()

    def put(self, key: str, records: Sequence[bytes]) -> None:
        """Put one record into the stream, in one of the forms that it may have where there are more *records*."""
        arrived_at = datetime.fromtimestamp(self.kinesis.now_ms / 1000, UTC)
        record, parts = _packed(key, records, self._form_draws)
        data = base64.b64encode(record).decode()
        answer = self.kinesis.do("PutRecord", StreamName=STREAM, PartitionKey=key, Data=data)
        self.ledger.note_put(parts, key, answer, arrived_at)

    def put_order(self, body: str, group_id: str, deduplication_id: str) -> None:
        assert self.queue is not None
        arrived_at = datetime.fromtimestamp(self.queue.now_ms / 1000, UTC)
        sequence_number = self.queue.send(body, group_id, deduplication_id)
        self.ledger.note_order(body, group_id, sequence_number, arrived_at)

    def destinations(self) -> list[ConfiguredDestination]:
        return [one.configured() for one in self.receivers if one.name not in self.left_out]

    def tenant_of(self, key: str) -> str:
        tenants = list(self.shards.tenants)
        return tenants[sum(key.encode()) % len(tenants)]

    def operation(self, key: str, request_id: str | None, number: str) -> bytes:
        business_id, _, location_id = self.tenant_of(key).partition("-")
        message = {
            "operation": "update",
            "businessId": business_id,
            "locationId": location_id,
            "resourceType": "item",
            "resourceId": key,
            "requestId": request_id,
            "timestamp": "2026-01-01T00:00:00Z",
            "data": {"n": number},
        }
        return msgspec.json.encode(message)

    def _watch_lease(self, key: str, before: Row | None, after: Row | None) -> None:
        writer = self.dynamodb.sender
        is_replica = any(replica.me == writer for replica in self.replicas)
        self.ledger.watch_lease(key, before, after, replica=writer if is_replica else None)

    def check(self) -> None:
        bugs = [bug for replica in self.replicas if (bug := replica.bug()) is not None]
        if self.ledger.violations or bugs or self.loop.failures:
            problems = [*self.ledger.violations[:3], *map(repr, bugs), *map(repr, self.loop.failures)]
            raise ViolationError("; ".join(problems)) from next(iter([*bugs, *self.loop.failures]), None)

    def check_read_status(self) -> None:
        """Check that no replica calls a time read up to, before which an operation of the tenant arrived that is open.

        Also none that its shard has lost, whoever knows of that. The clock of a replica may be fast.
        """
        first_open: dict[str, Put] = {}  # by tenant
        for put in reversed(self.ledger.open_operations()):
            assert put.operation is not None
            if put.origin.source is Source.SQS:
                continue
            first_open[put.operation.tenant_id] = put
        for replica in self.alive() if first_open else []:
            leases = replica.fleet.leases()
            for tenant_id, put in first_open.items():
                if (rows := self.shards.positions_at_home(tenant_id)) is None:
                    continue  # the answer is that the tenant has no home now
                up_to = self.read_up_to(read_status(leases, tenant_id), rows)
                if up_to is not None and put.origin.arrived_at < up_to - timedelta(seconds=self.plan.skew_max_s):
                    self.ledger.violate(f"{replica.me} has read up to {up_to}, and record {put.index} is open")

    async def until(self, is_reached: Callable[[], object], *, within_s: float) -> None:
        deadline = self.loop.time() + within_s
        while not is_reached():
            self.check()
            if self.loop.time() > deadline:
                raise ViolationError(f"not reached within {within_s:g} s: {self.problems()}")
            await asyncio.sleep(LOOK_EVERY_S)
        self.check()

    def problems(self) -> list[str]:
        leases = self.leases()
        unfinished = {key: lease for key, lease in leases.items() if lease.checkpoint != SHARD_END}
        open_keys = {shard.stream_shard_id for shard in self.kinesis.stream.open_stream_shards}
        alive = {replica.me: replica for replica in self.alive()}
        problems = [] if self.kinesis.stream.status == "ACTIVE" else ["the stream is being resharded"]
        problems += [f"{key} is unsettled" for key in self.ledger.unsettled()]
        problems += [f"{key} has no lease" for key in sorted(open_keys - unfinished.keys())]
        problems += [f"{key} has not ended" for key in sorted(unfinished.keys() - open_keys)]
        problems += [f"{key} is owned by {one.owner}" for key, one in unfinished.items() if one.owner not in alive]
        for me, replica in alive.items():
            owned = sorted(key for key, lease in unfinished.items() if lease.owner == me)
            if owned != replica.running():
                problems.append(f"{me} owns {owned} and reads {replica.running()}")
            problems += [f"{me} has not passed {key}" for key in owned if not self._is_passed(replica, unfinished[key])]
        loads = {key: FIXED_KBPS + (lease.throughput_kbps or 0.0) for key, lease in unfinished.items()}
        by_replica = {me: [loads[key] for key, one in unfinished.items() if one.owner == me] for me in alive}
        if not are_even(by_replica.values()):
            problems.append(f"the leases are not even, nor their loads: {by_replica}")
        if self.queue is not None and (left_count := self.queue.message_count):
            problems.append(f"the queue has {left_count} messages")
        return problems or self._feed_problems()

    def _feed_problems(self) -> list[str]:
        logs = self.shards.logs.values()
        seen = (*(len(one.came) for one in self.receivers), *((len(one.batches), one.timeline) for one in logs))
        if self._judged is None or self._judged[0] != seen:
            self._judged = seen, [text for one in self.receivers for text in feed_problems(one, self.shards)]
        return self._judged[1]

    def _is_passed(self, replica: Replica, lease: Lease) -> bool:
        puts = self.ledger.by_stream_shard.get(lease.lease_key)
        readers = [reader for reader in replica.fleet.readers() if reader.stream_shard_id == lease.lease_key]
        checkpoints = [reader.progress.checkpoint for reader in readers]
        reached = [lease.checkpoint, *(checkpoint for checkpoint in checkpoints if checkpoint is not None)]
        return not puts or max(reached) == puts[-1].position

    def end(self) -> None:
        """End all tasks, also of the dead: not as they would, but so that nothing is left."""
        for process in self._processes:
            process.is_dead = False
            self.loop.resume(process)
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks))


def are_even(loads: Collection[Sequence[float]]) -> bool:
    """Return whether replicas have as many leases as others, or loads of which a move would not make more even ones."""
    counts = [len(one) for one in loads]
    if not counts or max(counts) - min(counts) <= 1:
        return bool(counts)
    heaviest, lightest = max(loads, key=sum), min(loads, key=sum)
    gap, mean = sum(heaviest) - sum(lightest), sum(map(sum, loads)) / len(loads)
    return gap <= (HEAVY - LIGHT) * mean or min(heaviest) > gap - GAIN * mean


async def _run_all(parts: Sequence[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(part)


def _subscriptions(world: World) -> Subscriptions:
    client = KinesisClient(world.kinesis)
    return Subscriptions(client, Stream(client, STREAM), APPLICATION)


def bound_sets(names_max: int, tenant_holds_max: int) -> None:
    """Bound the sets of held tenants: a world has too few tenants for the constants of the worker."""
    tenant_set.ENCODED_NAMES_MAX, ownership.TENANT_HOLDS_MAX = names_max, tenant_holds_max  # type: ignore[misc]  # Final elsewhere


@contextmanager
def a_world(draws: Random, plan: Plan, *, make_fleet: FleetMaker = Fleet) -> Iterator[World]:
    loop = VirtualLoop()
    bound_sets(plan.names_max, plan.tenant_holds_max)
    try:
        world = World(loop, draws, plan, make_fleet)
        try:
            yield world
        finally:
            world.end()
    finally:
        bound_sets(ENCODED_NAMES_MAX, TENANT_HOLDS_MAX)
        loop.close()


def _packed(key: str, records: Sequence[bytes], draws: Random) -> tuple[bytes, list[PutPart]]:
    if len(records) == 1:
        return records[0], [PutPart(records[0])]
    is_lines = any(one.startswith(b"{") for one in records[:2])
    form = draws.choice(["lines", "aggregate", "both"] if is_lines else ["aggregate"])
    if form == "aggregate":
        parts = [PutPart(one, place) for place, one in enumerate(records)]
        return aggregate([(key, None, one) for one in records]), parts
    lines, count = b"\n".join(records), len(records)
    parts = [PutPart(one, 0, index, count - 1 - index) for index, one in enumerate(records)]
    if form == "lines":
        return lines, parts
    return aggregate([(key, None, lines), (key, None, records[-1])]), [*parts, PutPart(records[-1], 1)]
