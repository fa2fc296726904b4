"""One simulation: a seed decides what is there, what is put, what breaks and when; then it must all come right.

First trouble, for some seconds; then everything is repaired and what is owed must be settled; then the replicas stop.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import structlog
from botocore.exceptions import ClientError
from kpl_aggregates import aggregate
from ledger import Ledger
from replicas import APPLICATION, FleetMaker, Replica, Surroundings
from simulated_dynamodb import DynamoDb
from simulated_kinesis import STREAM, KinesisService
from simulated_network import Network, Trouble
from simulated_shards import SHARD_IDS, PostgresShards, Tenant
from virtual_time import EPOCH, VirtualLoop

from simplu_worker.consumers.kinesis.fleet import Fleet
from simplu_worker.consumers.kinesis.leases import Lease, lease_of
from simplu_worker.consumers.kinesis.positions import SHARD_END
from simplu_worker.local.kinesis_model import Options

QUIET_WITHIN_S = 40.0
UNKNOWN_AFTER_S = 75.0  # for records of tenants that never come: 60 s, and what asking takes
STOPPED_WITHIN_S = 10.0
LOOK_EVERY_S = 0.25
REPLICAS_MAX = 4
RECORDS_AT_ONCE = (1,) * 12 + (2, 4)  # more than one: packed as the Kinesis Producer Library does

log = structlog.get_logger(__name__)


class ViolationError(AssertionError):
    """A simulation broke a rule."""


class Plan(msgspec.Struct, frozen=True):
    """What a seed decides beforehand."""

    lease_duration_s: float
    initial_position: str
    replica_count: int
    stream_shard_count: int
    tenant_count: int
    key_count: int
    record_count: int
    trouble_s: float
    event_count: int
    tenant_wait_s: float
    skew_max_s: float
    page_size: int
    has_strangers: bool  # whether a tenant is never registered


def plan_of(draws: Random) -> Plan:
    """Draw a plan."""
    initial_position = draws.choice(["TRIM_HORIZON", "TRIM_HORIZON", "AT_TIMESTAMP", "LATEST"])
    return Plan(
        lease_duration_s=draws.choice([1.5, 2.0, 3.0]),
        initial_position=initial_position,
        replica_count=draws.randint(1, 3),
        stream_shard_count=draws.choice([1, 1, 2, 3]),
        tenant_count=draws.randint(1, 3),
        key_count=draws.randint(2, 6),
        record_count=draws.randint(10, 40),
        trouble_s=draws.uniform(2.0, 7.0),
        event_count=draws.randint(2, 9),
        tenant_wait_s=draws.choice([2.0, 30.0]),
        skew_max_s=0.0 if initial_position == "LATEST" else draws.choice([0.0, 5.0]),
        page_size=draws.choice([2, 100, 100]),
        has_strangers=draws.random() < 0.03,
    )


class Simulation:
    """The world of one seed."""

    def __init__(self, seed: int, loop: VirtualLoop, *, make_fleet: FleetMaker = Fleet) -> None:
        self.draws = Random(seed)
        self.plan = plan = plan_of(self.draws)
        self.loop = loop
        self.network = Network(loop, self.draws)
        self.kinesis = KinesisService(self.network, self._options())
        tenant_wait = timedelta(seconds=plan.tenant_wait_s)
        self.shards = PostgresShards(self.network, tenant_wait=tenant_wait)
        self.dynamodb = DynamoDb(self.network, page_size=plan.page_size)
        self.around = Surroundings(
            loop,
            self.draws,
            self.kinesis,
            self.dynamodb,
            self.shards,
            lease_duration_s=plan.lease_duration_s,
            initial_position=EPOCH if plan.initial_position == "AT_TIMESTAMP" else plan.initial_position,
            tenant_wait=tenant_wait,
            skew_max_s=plan.skew_max_s,
            make_fleet=make_fleet,
        )
        self.ledger = Ledger(self.shards, tenant_wait=tenant_wait, is_closed=self._is_closed)
        self.table = self.dynamodb.table(APPLICATION)
        self.table.watch = self.ledger.watch_lease
        self.replicas: list[Replica] = []
        for number in range(plan.tenant_count):
            tenant_id = f"b{number}-l"
            self.shards.tenants[tenant_id] = Tenant(tenant_id, self.draws.choice(SHARD_IDS))

    def __repr__(self) -> str:
        return f"Simulation(at {self.loop.time():.3f} s, {self.plan}, {self.kinesis.stream}, {self.replicas})"

    async def run(self) -> None:
        """Run it to its end. Raises ViolationError."""
        self.kinesis.do("CreateStream", StreamName=STREAM, ShardCount=self.plan.stream_shard_count)
        await asyncio.sleep(0.1)
        for _ in range(self.plan.replica_count):
            self.start_replica()
        if self.plan.initial_position == "LATEST":  # what comes before it was first seen is not read
            await self._until(lambda: all(one.fleet.is_set_up for one in self.replicas), within_s=QUIET_WITHIN_S)
        self.network.trouble = self._trouble()
        self.kinesis.false_ends = self.draws.choice([0.0, 0.0, 0.0, 0.05])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._produce())
            await self._break_things()
        self._repair()
        await self._settle_down()
        self.ledger.check_fates()
        await self._stop_all()
        self.check()

    def check(self) -> None:
        """Raise when a rule was broken, or something failed."""
        bugs = [bug for replica in self.replicas if (bug := replica.bug()) is not None]
        if self.ledger.violations or bugs or self.loop.failures:
            problems = [*self.ledger.violations[:3], *map(repr, bugs), *map(repr, self.loop.failures)]
            raise ViolationError("; ".join(problems)) from next(iter([*bugs, *self.loop.failures]), None)

    def start_replica(self) -> None:
        """Start one more replica."""
        self.replicas.append(Replica(self.around, len(self.replicas)))

    def alive(self) -> list[Replica]:
        """Return the replicas that are to go on."""
        return [replica for replica in self.replicas if replica.is_alive]

    def leases(self) -> dict[str, Lease]:
        """Return the leases as the table has them."""
        found = {key: lease_of(row) for key, row in self.table.rows.items()}
        return {key: lease for key, lease in found.items() if lease is not None}

    def problems(self) -> list[str]:
        """Return what is not as it must be when all is well for a while."""
        leases = self.leases()
        unfinished = {key: lease for key, lease in leases.items() if lease.checkpoint != SHARD_END}
        open_keys = {shard.stream_shard_id for shard in self.kinesis.stream.open_stream_shards}
        alive = {replica.me: replica for replica in self.alive()}
        problems = [] if self.kinesis.stream.status == "ACTIVE" else ["the stream is being resharded"]
        problems += [f"{key} is owed" for key in self.ledger.unsettled()]
        problems += [f"{key} has no lease" for key in sorted(open_keys - unfinished.keys())]
        problems += [f"{key} has not ended" for key in sorted(unfinished.keys() - open_keys)]
        problems += [f"{key} is owned by {one.owner}" for key, one in unfinished.items() if one.owner not in alive]
        for me, replica in alive.items():
            owned = sorted(key for key, lease in unfinished.items() if lease.owner == me)
            if owned != replica.running():
                problems.append(f"{me} owns {owned} and reads {replica.running()}")
            problems += [f"{me} has not passed {key}" for key in owned if not self._is_passed(replica, unfinished[key])]
        counts = Counter(lease.owner for lease in unfinished.values())
        by_replica = [counts[me] for me in alive]
        if not by_replica or max(by_replica) - min(by_replica) > 1:
            problems.append(f"the leases are not even: {by_replica}")
        return problems

    def _is_passed(self, replica: Replica, lease: Lease) -> bool:
        """Whether a replica knows that nothing is owed of what was put so far."""
        puts = self.ledger.by_stream_shard.get(lease.lease_key)
        checkpoints = [reader.checkpoint for reader in replica.fleet.readers() if reader.stream_shard_id == lease.lease_key]
        reached = [lease.checkpoint, *(checkpoint for checkpoint in checkpoints if checkpoint is not None)]
        return not puts or max(reached) == puts[-1].position

    async def _until(self, is_reached: Callable[[], bool], *, within_s: float) -> None:
        deadline = self.loop.time() + within_s
        while not is_reached():
            self.check()
            if self.loop.time() > deadline:
                raise ViolationError(f"not well {within_s} s later: {self.problems()}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _settle_down(self) -> None:
        """Wait until all is well and stays so: no lease changes hands any more."""
        within_s = QUIET_WITHIN_S + (UNKNOWN_AFTER_S + self.plan.tenant_wait_s if self.plan.has_strangers else 0.0)
        deadline = self.loop.time() + within_s
        while True:
            await self._until(lambda: not self.problems(), within_s=deadline - self.loop.time())
            owners = self._owners()
            await asyncio.sleep(self.plan.lease_duration_s * 1.5)
            if owners == self._owners() and not self.problems():
                return

    def _owners(self) -> dict[str, str | None]:
        return {key: lease.owner for key, lease in self.leases().items() if lease.checkpoint != SHARD_END}

    async def _stop_all(self) -> None:
        for replica in self.alive():
            replica.stopping.set()
        left = {replica.task for replica in self.replicas if not replica.process.is_dead}
        await self._until(lambda: all(task.done() for task in left), within_s=STOPPED_WITHIN_S)
        for key, lease in self.leases().items():
            if lease.owner is not None and lease.checkpoint != SHARD_END:
                raise ViolationError(f"{key} is still owned by {lease.owner}")
            puts = self.ledger.by_stream_shard.get(key)
            if puts and lease.checkpoint != SHARD_END and lease.checkpoint != puts[-1].position:
                raise ViolationError(f"{key} stopped at {lease.checkpoint.checkpoint}, before its last record")

    async def _produce(self) -> None:
        pause_s = self.plan.trouble_s / self.plan.record_count
        keys = [f"key-{number}" for number in range(self.plan.key_count)]
        put_before: list[tuple[str, list[bytes]]] = []
        for number in range(self.plan.record_count):
            await asyncio.sleep(self.draws.uniform(0, 2 * pause_s))
            key = self.draws.choice(keys)
            count = self.draws.choice(RECORDS_AT_ONCE)
            records = [self._record(f"{number}.{place}", key) for place in range(count)]
            if put_before and self.draws.random() < 0.03:
                key, records = self.draws.choice(put_before)  # a producer that had no answer puts it again
            put_before.append((key, records))
            self._put(key, records)

    def _put(self, key: str, records: list[bytes]) -> None:
        arrived_at = datetime.fromtimestamp(self.kinesis.now_ms / 1000, UTC)
        record = records[0] if len(records) == 1 else aggregate([(key, None, one) for one in records])
        data = base64.b64encode(record).decode()
        answer = self.kinesis.do("PutRecord", StreamName=STREAM, PartitionKey=key, Data=data)
        self.ledger.note_put(records, key, answer, arrived_at)

    def _record(self, number: str, key: str) -> bytes:
        if self.draws.random() < 0.03:
            return b"not an operation " + number.encode()
        tenants = list(self.shards.tenants)
        tenant_id = tenants[hash_of(key) % len(tenants)]
        business_id, _, location_id = tenant_id.partition("-")
        request_id = self.draws.choice([f"r-{number}"] * 18 + [None, "r-reused"])
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

    async def _break_things(self) -> None:
        for _ in range(self.plan.event_count):
            await asyncio.sleep(self.draws.uniform(0, 2 * self.plan.trouble_s / self.plan.event_count))
            event = self.draws.choice(EVENTS)
            log.info("event", event_name=event.__name__)
            event(self)

    def _repair(self) -> None:
        """Let everything be well again, and two replicas at least run."""
        self.network.trouble = Trouble(stale=0.2)
        self.kinesis.false_ends = 0.0
        self.network.down.clear()
        strangers = list(self.shards.tenants)[:1] if self.plan.has_strangers else []
        for tenant in self.shards.tenants.values():
            tenant.is_active = True
            if tenant.created_at is None and tenant.tenant_id not in strangers:
                tenant.created_at = self.loop.utc()
        for replica in self.replicas:
            self.loop.resume(replica.process)
        while len(self.alive()) < min(2, self.plan.replica_count):
            self.start_replica()

    def _options(self) -> Options:
        return Options(
            scaling_limits=False,
            iterator_ttl_ms=self.draws.choice([1000, 300_000]),
            page_size=self.draws.choice([1, 2, 1000]),
            update_delay_ms=self.draws.choice([0, 50, 500]),
            end_with_last_records=self.draws.random() < 0.5,
            null_next_iterator=self.draws.random() < 0.5,
        )

    def _trouble(self) -> Trouble:
        level = self.draws.choice([0.0, 0.02, 0.1])
        return Trouble(
            request_lost=level * self.draws.random(),
            answer_lost=level * self.draws.random(),
            throttled=level * self.draws.random(),
            stale=self.draws.choice([0.0, 0.5]),
            longest_s=self.draws.choice([0.05, 1.0, 4.0]),
        )

    def _is_closed(self, stream_shard_id: str) -> bool:
        return not self.kinesis.stream.find(stream_shard_id).is_open


def hash_of(key: str) -> int:
    """Return a number that is the same in every process, as `hash` is not."""
    return sum(key.encode())


def _later(simulation: Simulation, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
    simulation.loop.call_later(delay_s, action, *arguments)


def kill(simulation: Simulation) -> None:
    """Kill a replica."""
    if alive := simulation.alive():
        simulation.draws.choice(alive).kill()


def suspend(simulation: Simulation) -> None:
    """Stop a replica for about as long as a lease lasts, or longer."""
    running = [replica for replica in simulation.alive() if not replica.process.is_stopped]
    if running:
        process = simulation.draws.choice(running).process
        process.is_stopped = True
        delay_s = simulation.plan.lease_duration_s * simulation.draws.uniform(0.3, 2.5)
        _later(simulation, delay_s, simulation.loop.resume, process)


def retire(simulation: Simulation) -> None:
    """Ask a replica to stop."""
    if alive := simulation.alive():
        simulation.draws.choice(alive).stopping.set()


def start(simulation: Simulation) -> None:
    """Start a replica."""
    if len(simulation.alive()) < REPLICAS_MAX:
        simulation.start_replica()


def split(simulation: Simulation) -> None:
    """Split a stream shard in the middle."""
    shard = simulation.draws.choice(list(simulation.kinesis.stream.open_stream_shards))
    middle = (shard.hash_range.start + shard.hash_range.end) // 2
    _reshard(simulation, "SplitShard", ShardToSplit=shard.stream_shard_id, NewStartingHashKey=str(middle))


def merge(simulation: Simulation) -> None:
    """Merge two neighbours."""
    shards = list(simulation.kinesis.stream.open_stream_shards)
    if len(shards) > 1:
        at = simulation.draws.randrange(len(shards) - 1)
        first, second = (shard.stream_shard_id for shard in shards[at : at + 2])
        _reshard(simulation, "MergeShards", ShardToMerge=first, AdjacentShardToMerge=second)


def scale(simulation: Simulation) -> None:
    """Change the number of stream shards."""
    count = simulation.draws.choice([1, 2, 4])
    _reshard(simulation, "UpdateShardCount", TargetShardCount=count, ScalingType="UNIFORM_SCALING")


def _reshard(simulation: Simulation, action: str, **arguments: Any) -> None:
    with suppress(ClientError):  # it is being resharded already
        simulation.kinesis.do(action, StreamName=STREAM, **arguments)


def outage(simulation: Simulation) -> None:
    """Take a service away for a while."""
    service = simulation.draws.choice([*SHARD_IDS, *SHARD_IDS, "citrus", "letters", "dynamodb", "kinesis"])
    simulation.network.down.add(service)
    _later(simulation, simulation.draws.uniform(0.2, 3.0), simulation.network.down.discard, service)


def register(simulation: Simulation) -> None:
    """Register a tenant."""
    strangers = list(simulation.shards.tenants.values())[1 if simulation.plan.has_strangers else 0 :]
    unregistered = [tenant for tenant in strangers if tenant.created_at is None]
    if unregistered:
        simulation.draws.choice(unregistered).created_at = simulation.loop.utc()


def move(simulation: Simulation) -> None:
    """Fence a tenant for a while; it goes on at the same shard or at another."""
    tenant = simulation.draws.choice(list(simulation.shards.tenants.values()))

    def activate() -> None:
        tenant.shard_id = simulation.draws.choice(SHARD_IDS)
        tenant.is_active = True

    tenant.is_active = False
    _later(simulation, simulation.draws.uniform(0.1, 2.0), activate)


def change_trouble(simulation: Simulation) -> None:
    """Let the network become better or worse."""
    simulation.network.trouble = simulation._trouble()


def expire_iterators(simulation: Simulation) -> None:
    """Let every iterator expire."""
    simulation.kinesis.account.expire_iterators()


EVENTS: list[Callable[[Simulation], None]] = [
    kill,
    suspend,
    suspend,
    retire,
    start,
    start,
    split,
    split,
    merge,
    scale,
    outage,
    register,
    register,
    register,
    move,
    change_trouble,
    expire_iterators,
]


def simulate(
    seed: int, *, make_fleet: FleetMaker = Fleet, twist: Callable[[Simulation], None] | None = None
) -> Simulation:
    """Run the simulation of *seed*; *twist* changes its world before it starts. Raises ViolationError."""
    loop = VirtualLoop()
    try:
        simulation = Simulation(seed, loop, make_fleet=make_fleet)
        if twist is not None:
            twist(simulation)
        try:
            loop.run_until_complete(simulation.run())
        finally:
            _end(simulation, loop)
    finally:
        loop.close()
    return simulation


def _end(simulation: Simulation, loop: VirtualLoop) -> None:
    """End all tasks, also of the dead: not as they would, but so that nothing is left."""
    for replica in simulation.replicas:
        replica.process.is_dead = False
        loop.resume(replica.process)
    while tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
