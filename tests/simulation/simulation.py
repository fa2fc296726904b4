"""One simulation: its seed decides the plan, the records and the disasters; in the end every record must be settled.

First trouble, for some seconds. Then everything is repaired, and all unsettled records must be settled. Then the
replicas stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random

from msgspec.structs import replace
from simulation import simulated_world
from simulation.defects import a_defect
from simulation.disasters import STORMS, draw_trouble, storm, strike
from simulation.feeds import keep_publishing, with_room_for_feeds
from simulation.moves import keep_moving, with_room_for_moves
from simulation.reshards import keep_resharding, with_room_for_reshards
from simulation.simulated_faults import Fault
from simulation.simulated_network import Trouble
from simulation.simulated_push import PushFaults
from simulation.simulated_world import RETRY_DELAYS_S, FleetMaker, Plan, ViolationError, Weather, World, a_world
from simulation.whole import bounded_reads, end_faults_of_feed, live, whole_plan

from simplu_local.kinesis.model import KinesisOptions
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END

WELL_WITHIN_S = 60.0
UNKNOWN_AFTER_S = 330.0  # for records of tenants that never come: 60 s, and a few looks at those held together
# Where children of stream shards read their parents again, five reads a second in all, in little memory.
BACKFILLED_AFTER_S = 240.0
BACKFILLED_IN_GREAT_STORM_S = 400.0
QUICK_RETRIES_S = (0.1, 0.2, 0.3)
POISONED_TENANTS_MAX = 3
GIVEN_UP_AFTER_S = 30.0  # for an operation that fails by itself: its tries are 21 s apart
STOPPED_WITHIN_S = 10.0
STATUS_PAUSE_S = 0.5
STATUS_PAUSE_GROWTH = 1.15
PAUSES = 6
RECORDS_AT_ONCE = (1,) * 12 + (2, 4)  # more than one: packed as the Kinesis Producer Library does
REQUEST_IDS = ("own",) * 18 + ("none", "reused")
BAD_RECORDS = 0.03
PUT_AGAIN = 0.03
POISONED = 0.02  # records whose operation fails by itself
PAUSED = 0.25  # simulations in which people pause tenants
AT_ONCE = 0.3  # records put right behind the one before


def simulate(
    seed: int,
    *,
    weather: Weather = Weather.FAIR,
    make_fleet: FleetMaker = Fleet,
    twist: Callable[[World], None] | None = None,
) -> World:
    draws = Random(seed)
    # By draws of its own: what the others decide stays as it was.
    cost_s = Random(f"cost {seed}").choice([100e-6, 0.03, 0.2])
    has_pauses = Random(f"pauses {seed}").random() < PAUSED
    plan = replace(draw_plan(draws), weather=weather, operation_cost_s=cost_s, has_pauses=has_pauses)
    if weather is Weather.GREAT_STORM:
        plan = enlarged(plan, draws)
    if weather is Weather.MOVES:
        plan = with_room_for_moves(plan)
    if weather is Weather.RESHARDS:
        plan = with_room_for_reshards(plan)
    if weather is Weather.FEEDS:
        plan = with_room_for_feeds(plan, draws)
    if weather is Weather.WHOLE:
        plan = whole_plan(plan, draws)
    with _retrying(seed), bounded_reads(draws, plan), a_world(draws, plan, make_fleet=make_fleet) as world:
        if twist is not None:
            twist(world)
        is_defect_drawn = weather is Weather.DEFECTS
        defect: AbstractContextManager[list[str]] = nullcontext([])
        with a_defect(Random(f"defect {seed}")) if is_defect_drawn else defect as world.defects:
            world.loop.run_until_complete(_run(world))
        world.network.faults.fired[Fault.DEFECT] += is_defect_drawn
        world.network.faults.felt[Fault.DEFECT] += len(world.defects)
    return world


@contextmanager
def _retrying(seed: int) -> Iterator[None]:
    simulated_world.retry_delays_s = Random(f"retries {seed}").choice([RETRY_DELAYS_S, QUICK_RETRIES_S])
    try:
        yield
    finally:
        simulated_world.retry_delays_s = RETRY_DELAYS_S


def draw_plan(draws: Random) -> Plan:
    draw, choice = draws.random, draws.choice
    initial_position = choice(["TRIM_HORIZON", "TRIM_HORIZON", "AT_TIMESTAMP", "LATEST"])
    return Plan(
        lease_duration_s=choice([1.5, 2.0, 3.0]),
        initial_position=initial_position,
        replica_count=draws.randint(1, 3),
        stream_shard_count=choice([1, 1, 2, 3]),
        tenant_count=draws.randint(1, 5),
        key_count=draws.randint(2, 8),
        record_count=draws.randint(10, 60),
        trouble_s=draws.uniform(2.0, 7.0),
        event_count=draws.randint(2, 9),
        tenant_wait_s=choice([2.0, 30.0]),
        skew_max_s=0.0 if initial_position == "LATEST" else choice([0.0, 5.0]),
        page_size=choice([2, 100, 100]),
        has_strangers=draw() < 0.03,
        has_poison=draw() < 0.1,
        names_max=choice([1, 2, 1000]),
        tenant_holds_max=choice([0, 1, 1000]),
        ahead_from_s=choice([0.0, 0.0, 1.0, 30.0]),
        prefetch_max_bytes=choice([12 * 1024, 64 * 1024 * 1024]),
        options=KinesisOptions(
            scaling_limits=False,
            iterator_ttl_ms=choice([1000, 300_000]),
            page_size=choice([1, 2, 1000]),
            update_delay_ms=choice([0, 50, 500]),
            end_with_last_records=draw() < 0.5,
            null_next_iterator=draw() < 0.5,
        ),
    )


def enlarged(plan: Plan, draws: Random) -> Plan:
    return replace(
        plan,
        replica_count=draws.randint(2, 4),
        stream_shard_count=draws.randint(1, 3),
        tenant_count=draws.randint(4, 12),
        key_count=draws.randint(4, 24),
        record_count=draws.randint(80, 200),
        trouble_s=draws.uniform(4.0, 12.0),
        event_count=draws.randint(6, 16),
    )


async def _run(world: World) -> None:
    await world.open()
    watching = asyncio.create_task(watch_read_status(world))
    if world.plan.initial_position == "LATEST":  # what comes before it was first seen is not read
        await world.until(lambda: all(one.fleet.is_set_up for one in world.replicas), within_s=WELL_WITHIN_S)
    world.network.trouble = draw_trouble(world)
    world.kinesis.false_ends = world.draws.choice([0.0, 0.0, 0.0, 0.05])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(produce(world))
        if world.plan.weather is Weather.MOVES:
            tasks.create_task(keep_moving(world))
        elif world.plan.weather is Weather.RESHARDS:
            tasks.create_task(keep_resharding(world))
        elif world.plan.weather is Weather.FEEDS:
            tasks.create_task(keep_publishing(world))
        elif world.plan.weather is Weather.WHOLE:
            tasks.create_task(live(world))
        elif world.plan.weather in STORMS:
            tasks.create_task(storm(world))
        if world.plan.has_pauses:
            tasks.create_task(pause_tenants(world))
        for _ in range(world.plan.event_count):
            await asyncio.sleep(world.draws.uniform(0, 2 * world.plan.trouble_s / world.plan.event_count))
            strike(world)
    _repair(world)
    await settle_down(world)
    world.ledger.check_fates()
    watching.cancel()
    await stop_all(world)


async def watch_read_status(world: World) -> None:
    pause_s = STATUS_PAUSE_S
    while True:
        await asyncio.sleep(pause_s)
        world.check_read_status()
        pause_s *= STATUS_PAUSE_GROWTH


async def produce(world: World) -> None:
    """Put the records of the plan, some of them in aggregates, bad, without or with a reused request id, or twice."""
    plan, draws = world.plan, world.draws
    put_before: list[tuple[str, list[bytes]]] = []
    spared = set(list(world.shards.tenants)[POISONED_TENANTS_MAX:])
    for number in range(plan.record_count):
        if draws.random() >= AT_ONCE:
            await asyncio.sleep(draws.uniform(0, 2 * plan.trouble_s / plan.record_count))
        key = f"key-{draws.randrange(plan.key_count)}"
        count = draws.choice(RECORDS_AT_ONCE)
        records = [_record(world, key, f"{number}.{place}") for place in range(count)]
        if put_before and draws.random() < PUT_AGAIN:
            key, records = draws.choice(put_before)  # as a producer does that had no answer
        if plan.has_poison and draws.random() < POISONED and world.tenant_of(key) not in spared:
            request_id = f"r-{number}.poison"
            world.shards.poison.add(request_id)
            world.network.faults.fired[Fault.FAILS_BY_ITSELF] += 1
            records = [world.operation(key, request_id, str(number))]
        else:
            put_before.append((key, records))
        world.put(key, records)


async def pause_tenants(world: World) -> None:
    draws = Random(f"pauses {world.plan}")  # its own, as above
    for _ in range(PAUSES):
        await asyncio.sleep(draws.uniform(0, world.plan.trouble_s / PAUSES))
        tenant = draws.choice(list(world.shards.tenants.values()))
        for_s = draws.choice([0.0, 1.0, 5.0, 20.0])
        tenant.paused_until = world.loop.time() + for_s
        world.network.faults.fired[Fault.PAUSED] += bool(for_s)


async def settle_down(world: World) -> None:
    plan = world.plan
    within_s = WELL_WITHIN_S + (UNKNOWN_AFTER_S + plan.tenant_wait_s if plan.has_strangers else 0.0)
    within_s += GIVEN_UP_AFTER_S * len(world.shards.poison)
    within_s += BACKFILLED_IN_GREAT_STORM_S if plan.weather is Weather.GREAT_STORM else BACKFILLED_AFTER_S
    deadline = world.loop.time() + within_s
    while True:
        await world.until(lambda: not world.problems(), within_s=deadline - world.loop.time())
        owners = world.owners()
        await asyncio.sleep(plan.lease_duration_s * 1.5)
        if owners == world.owners() and not world.problems():
            return


async def stop_all(world: World) -> None:
    """Stop all replicas: then no lease has an owner, and every checkpoint is at the last record.

    After a defect in the middle of that, a lease may have to expire, and records to be read again, as after a kill.
    """
    defect_count = len(world.defects)
    left = [replica.task for replica in world.replicas if not replica.process.is_dead]
    for replica in world.alive():
        replica.stopping.set()
    await world.until(lambda: all(task.done() for task in left), within_s=STOPPED_WITHIN_S)
    if len(world.defects) > defect_count:
        return
    for key, lease in world.leases().items():
        if lease.checkpoint == SHARD_END:
            continue
        if lease.owner is not None:
            raise ViolationError(f"{key} is still owned by {lease.owner}")
        puts = world.ledger.by_stream_shard.get(key)
        if puts and lease.checkpoint != puts[-1].position:
            raise ViolationError(f"{key} stopped at {lease.checkpoint.checkpoint}, before its last record")


def _record(world: World, key: str, number: str) -> bytes:
    if world.draws.random() < BAD_RECORDS:
        return b"not an operation " + number.encode()
    request_ids = {"own": f"r-{number}", "none": None, "reused": "r-reused"}
    return world.operation(key, request_ids[world.draws.choice(REQUEST_IDS)], number)


def _repair(world: World) -> None:
    world.network.trouble = Trouble(stale=0.2)
    world.network.down.clear()
    world.network.slow.clear()
    world.kinesis.false_ends = 0.0
    world.kinesis.push_faults = PushFaults()
    strangers = list(world.shards.tenants)[:1] if world.plan.has_strangers else []
    for tenant in world.shards.tenants.values():
        world.shards.let_go_on(tenant)
        if tenant.created_at is None and tenant.tenant_id not in strangers:
            tenant.created_at = world.loop.utc()
    for replica in world.replicas:
        world.loop.resume(replica.process)
    end_faults_of_feed(world)
    while len(world.alive()) < min(2, world.plan.replica_count):
        world.start_replica()
