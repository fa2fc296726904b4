"""Replicas that read by push, through faults of their subscriptions and all that else may happen to a fleet.

SIMULATION_FAN_OUT_SEED=17 runs one seed, and 100:200 some of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from random import Random

import pytest
import structlog
from msgspec.structs import replace
from simulation.simulated_network import Trouble
from simulation.simulated_push import PushFaults
from simulation.simulated_world import FleetMaker, Plan, ViolationError, Weather, World, a_world
from simulation.simulation import simulate
from simulation.wrong_fan_out import WRONG_ABOUT_FAN_OUT, WrongAboutFanOut
from support.slow import slow_after

from simplu_local.kinesis.model import KinesisOptions
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.stream.positions import Position

VARIABLE = "SIMULATION_FAN_OUT_SEED"
SEEDS = 12
PUT_COUNT = 330  # records
SEEDS_UNTIL_FOUND = 20


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def read_by_push(world: World) -> None:
    draws = Random(world.draws.random())
    world.is_pushed = True
    world.plan.options.subscription_ms = draws.choice([8_000, 300_000])
    level = draws.choice([0.0, 0.1, 0.2])
    world.kinesis.push_faults = PushFaults(
        refused=draws.choice([0.0, level, 1.0]), silent=level, ends=level, repeats=level, taken=level, draws=draws
    )


def seeds() -> range:
    first, _, end = os.environ.get(VARIABLE, f"0:{SEEDS}").partition(":")
    return range(int(first), int(end or int(first) + 1))


@pytest.mark.parametrize("seed", slow_after(3, seeds()))
def test_nothing_is_lost_doubled_or_out_of_order_by_push(seed: int) -> None:
    simulate(seed, weather=list(Weather)[seed % 2], twist=read_by_push)


async def play(world: World, longest_s: float) -> None:
    """Put records for some time, often at first, a tenant late; in the end all are settled though the faults go on."""
    await world.open()
    first, *others = world.shards.tenants.values()
    for tenant in others:
        tenant.created_at = world.loop.utc()
    watching = asyncio.create_task(watch_read_status(world))
    world.network.trouble = Trouble(longest_s=longest_s)
    for number in range(PUT_COUNT):
        key = f"key-{number % 9}"
        world.put(key, [world.operation(key, f"r-{number}", str(number))])
        await asyncio.sleep(0.05 if number < 300 else 1.0)
        if number == 150:
            first.created_at = world.loop.utc()
    await world.until(lambda: not world.problems(), within_s=100.0)
    watching.cancel()


async def watch_read_status(world: World) -> None:
    """Check what the replicas tell about their progress, and that no reader goes back, or takes a record again."""
    reached: dict[str, Position] = {}
    while True:
        await asyncio.sleep(0.05)
        world.check_read_status()
        for reader in (reader for replica in world.alive() for reader in replica.fleet.readers()):
            if reader.cursor.read_records > PUT_COUNT:
                world.ledger.violate(
                    f"{reader.stream_shard_id}: {reader.cursor.read_records} records, of {PUT_COUNT} put"
                )
            if (read_to := reader.progress.read_to) is not None:
                before = reached.setdefault(reader.stream_shard_id, read_to.position)
                if read_to.position < before:
                    world.ledger.violate(f"{reader.stream_shard_id} is read at {read_to}, behind {before}")
                reached[reader.stream_shard_id] = max(before, read_to.position)


def is_noticed(seed: int, make_fleet: FleetMaker, wrong: WrongAboutFanOut) -> bool:
    options = KinesisOptions(scaling_limits=False, heartbeat_ms=300 if wrong.longest_s > 1 else 5000)
    plan = Plan(replica_count=1, tenant_count=3, options=options)
    with a_world(Random(seed), plan, make_fleet=make_fleet) as world:
        world.is_pushed = True
        world.kinesis.push_faults = replace(wrong.faults, draws=Random(seed))
        try:
            world.loop.run_until_complete(play(world, wrong.longest_s))
        except ViolationError:
            return True
    return False


@pytest.mark.slow(1)
@pytest.mark.parametrize("design", WRONG_ABOUT_FAN_OUT)
def test_simulation_notices_when_reading_by_push_is_wrong(design: str) -> None:
    wrong = WRONG_ABOUT_FAN_OUT[design]
    found = next((seed for seed in range(SEEDS_UNTIL_FOUND) if is_noticed(seed, wrong.make_fleet, wrong)), None)
    assert found is not None
    assert not is_noticed(found, Fleet, wrong)
