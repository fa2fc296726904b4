from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from botocore.exceptions import ClientError
from simulation.simulated_faults import Fault
from simulation.simulated_kinesis import STREAM
from simulation.simulated_network import Trouble
from simulation.simulated_shards import CITRUS, LETTERS, SHARD_IDS
from simulation.simulated_world import Weather, World

REPLICAS_MAX = 4
RESHARDS = {"SplitShard": Fault.SPLIT, "MergeShards": Fault.MERGED, "UpdateShardCount": Fault.SCALED}
SERVICES = (*SHARD_IDS, *SHARD_IDS, CITRUS, LETTERS, "dynamodb", "kinesis")

log = structlog.get_logger(__name__)


def strike(world: World) -> None:
    _let_happen(world, EVENTS)


async def storm(world: World) -> None:
    world.kinesis.false_ends = world.draws.choice([0.0, 0.1, 0.4])
    count, events = STORMS[world.plan.weather]
    for _ in range(count):
        await asyncio.sleep(world.draws.uniform(0, 2 * world.plan.trouble_s / count))
        _let_happen(world, events)


def _let_happen(world: World, events: Sequence[Callable[[World], None]]) -> None:
    event = world.draws.choice(events)
    log.info("disaster.happened", what=event.__name__)
    event(world)


def draw_trouble(world: World) -> Trouble:
    draw, choice = world.draws.random, world.draws.choice
    level = choice([0.0, 0.02, 0.1])
    return Trouble(
        request_lost=level * draw(),
        answer_lost=level * draw(),
        throttled=level * draw(),
        stale=choice([0.0, 0.5]),
        longest_s=choice([0.05, 1.0, 4.0]),
        foreign=choice([0.0, 0.002, 0.02]) if world.plan.weather is Weather.DEFECTS else 0.0,
    )


def reshard(world: World, action: str, **arguments: Any) -> None:
    fault = RESHARDS[action]
    world.network.faults.fired[fault] += 1
    with suppress(ClientError):
        world.kinesis.do(action, StreamName=STREAM, **arguments)
        world.network.faults.felt[fault] += 1


def split(world: World) -> None:
    shard = world.draws.choice(list(world.kinesis.stream.open_stream_shards))
    middle = (shard.hash_range.start + shard.hash_range.end) // 2
    reshard(world, "SplitShard", ShardToSplit=shard.stream_shard_id, NewStartingHashKey=str(middle))


def merge(world: World) -> None:
    shards = list(world.kinesis.stream.open_stream_shards)
    if len(shards) > 1:
        at = world.draws.randrange(len(shards) - 1)
        first, second = (shard.stream_shard_id for shard in shards[at : at + 2])
        reshard(world, "MergeShards", ShardToMerge=first, AdjacentShardToMerge=second)


def scale(world: World, count: int) -> None:
    reshard(world, "UpdateShardCount", TargetShardCount=count, ScalingType="UNIFORM_SCALING")


def _scale(world: World) -> None:
    scale(world, world.draws.choice([1, 2, 4]))


def kill(world: World) -> None:
    if alive := world.alive():
        replica = world.draws.choice(alive)
        world.network.faults.note(Fault.KILLED, is_felt=bool(replica.running()))
        replica.kill()


def _suspend(world: World) -> None:
    running = [replica for replica in world.alive() if not replica.process.is_stopped]
    if running:
        process = world.draws.choice(running).process
        process.is_stopped = True
        delay_s = world.plan.lease_duration_s * world.draws.uniform(0.3, 2.5)

        def resume() -> None:
            world.network.faults.note(Fault.SUSPENDED, is_felt=bool(process.put_by))
            world.loop.resume(process)

        world.loop.call_later(delay_s, resume)


def retire(world: World) -> None:
    if alive := world.alive():
        replica = world.draws.choice(alive)
        world.network.faults.note(Fault.RETIRED, is_felt=bool(replica.running()))
        replica.stopping.set()


def _start(world: World) -> None:
    has_room = len(world.alive()) < REPLICAS_MAX
    world.network.faults.note(Fault.STARTED, is_felt=has_room)
    if has_room:
        world.start_replica()


def _take_away(world: World) -> None:
    service = world.draws.choice(SERVICES)
    world.network.faults.fired[Fault.AWAY] += 1
    world.network.down.add(service)
    world.loop.call_later(world.draws.uniform(0.2, 6.0), world.network.down.discard, service)


def _flap(world: World) -> None:
    shard_id = world.draws.choice(SHARD_IDS)
    at_s = 0.0
    world.network.faults.fired[Fault.AWAY] += 1
    for _ in range(world.draws.randint(2, 4)):
        world.loop.call_later(at_s, world.network.down.add, shard_id)
        at_s += world.draws.uniform(0.5, 3.0)
        world.loop.call_later(at_s, world.network.down.discard, shard_id)
        at_s += world.draws.uniform(0.1, 1.5)


def _slow(world: World) -> None:
    shard_id = world.draws.choice(SHARD_IDS)
    world.network.faults.fired[Fault.SLOW] += 1
    world.network.slow[shard_id] = world.draws.uniform(0.5, 4.0)
    world.loop.call_later(world.draws.uniform(1.0, 6.0), world.network.slow.pop, shard_id, None)


def fail_over(world: World) -> None:
    shard_id = world.draws.choice(SHARD_IDS)
    lost_count = world.draws.choice([0, 1, 1, 2, 5, 1000])
    world.network.down.add(shard_id)

    def promote() -> None:
        world.shards.fail_over(shard_id, lost_count)
        world.network.down.discard(shard_id)

    if world.draws.random() < 0.3:  # nobody notices
        promote()
    else:
        world.loop.call_later(world.draws.uniform(0.1, 4.0), promote)


def _register(world: World) -> None:
    tenants = list(world.shards.tenants.values())[1 if world.plan.has_strangers else 0 :]
    unregistered = [tenant for tenant in tenants if tenant.created_at is None]
    world.network.faults.note(Fault.REGISTERED_LATE, is_felt=bool(unregistered))
    if unregistered:
        world.draws.choice(unregistered).created_at = world.loop.utc()


def _move(world: World) -> None:
    tenant = world.draws.choice(list(world.shards.tenants.values()))

    world.shards.fence(tenant)
    world.loop.call_later(
        world.draws.uniform(0.1, 2.0), lambda: world.shards.move(tenant, world.draws.choice(SHARD_IDS))
    )


def _change_trouble(world: World) -> None:
    world.network.trouble = draw_trouble(world)


def _expire_iterators(world: World) -> None:
    world.network.faults.fired[Fault.ITERATORS_EXPIRED] += 1
    world.kinesis.account.expire_iterators()


EVENTS: tuple[Callable[[World], None], ...] = (
    kill,
    _suspend,
    _suspend,
    retire,
    _start,
    _start,
    split,
    split,
    merge,
    _scale,
    _take_away,
    _take_away,
    _flap,
    _flap,
    _slow,
    fail_over,
    fail_over,
    _register,
    _register,
    _register,
    _move,
    _move,
    _change_trouble,
    _expire_iterators,
)
EVENTS_OF_STORM: tuple[Callable[[World], None], ...] = (
    fail_over,
    fail_over,
    fail_over,
    split,
    split,
    kill,
    _start,
    _move,
)
EVENTS_OF_GREAT_STORM: tuple[Callable[[World], None], ...] = (
    *EVENTS_OF_STORM,
    merge,
    merge,
    _scale,
    _start,
    _move,
    _flap,
    _suspend,
    _take_away,
    retire,
    _slow,
    _register,
)
STORMS = {Weather.STORM: (8, EVENTS_OF_STORM), Weather.GREAT_STORM: (16, EVENTS_OF_GREAT_STORM)}
