"""Others' operations are applied at once beside a chain that floods a shard, and beside a shard that is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from simulation.simulated_shards import SHARD_IDS, SimulatedDeadLetters, SimulatedGateway, Tenant
from simulation.simulated_world import Plan, World
from simulation.test_fleet_scenarios import play, until_well
from simulation.wrong_designs import WRONG_ABOUT_SHARES

from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.types import PositionClaim

FLOODED, OTHER = SHARD_IDS
COST_S = 0.01
FLOOD_S = 15
AT_ONCE_S = 2.5
LATE_S = 4.0
LETTERS_S = 0.5  # of a request with dead letters
CHAIN = Plan(replica_count=1, operation_cost_s=COST_S)
SMALL = Plan(replica_count=1, operation_cost_s=COST_S, prefetch_max_bytes=4 * 1024 * 1024)
MEDIUM = Plan(replica_count=1, operation_cost_s=COST_S, prefetch_max_bytes=8 * 1024 * 1024)
LETTERS = "a reader waits for dead letters"
SCENES = {
    "the share is by location": (CHAIN, [f"chain-{number}" for number in range(12)], FLOODED),
    "a reader waits for a lane of a shard that is behind": (SMALL, [f"f{number}-l" for number in range(6)], OTHER),
    LETTERS: (MEDIUM, ["f0-l"], OTHER),
}
NO_JSON = b"?" * 1000


class LaboriousGateway(SimulatedGateway):
    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        await asyncio.sleep(COST_S * len(operations) if shard_id == FLOODED else 0.0)
        return await super().apply(shard_id, operations, claim=claim)


async def store_slowly(
    queue: SimulatedDeadLetters,
    letters: Sequence[DeadLetter],
    *,
    stopping: asyncio.Event,
    store: Any = SimulatedDeadLetters.store,
) -> None:
    await asyncio.sleep(LETTERS_S)
    await store(queue, letters, stopping=stopping)


async def longest_wait(world: World, loud: Sequence[str], quiet_shard: str, *, is_spoiled: bool) -> float:
    """Put six times as much as the shard takes; return for how long an operation of the quiet tenant waited at most.

    Of *spoiled* records half are no JSON, and half have the request id of another one.
    """
    world.replicas[0].gateway.__class__ = LaboriousGateway
    loud_shard = OTHER if is_spoiled else FLOODED
    world.shards.tenants = {one: Tenant(one, loud_shard) for one in loud} | {"quiet-l": Tenant("quiet-l", quiet_shard)}
    world.register_all()
    keys = {world.tenant_of(key): key for key in map("key-{}".format, range(200))}
    longest_s, asked = 0.0, {}
    for number in range(FLOOD_S * 10):
        for at, key in enumerate([keys[loud[at % len(loud)]] for at in range(60)] + [keys["quiet-l"]]):
            record = world.operation(key, f"r-{number}-{at}", str(number))
            if is_spoiled and at < 60:
                record = NO_JSON if at % 2 else world.operation(key, "same", f"{number}-{at}" + "x" * 1000)
            world.put(key, [record])
        asked["quiet-l", f"r-{number}-60"] = world.loop.time()
        await asyncio.sleep(0.1)
        asked = {name: put_at for name, put_at in asked.items() if name not in world.shards.log}
        longest_s = max([longest_s, *(world.loop.time() - put_at for put_at in asked.values())])
    await until_well(world, within_s=600.0)
    return longest_s


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_others_are_late_only_where_the_rule_is_left_out(scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedDeadLetters, "store", store_slowly)
    plan, loud, quiet_shard = SCENES[scene]
    waits: list[float] = []

    async def work(world: World) -> None:
        waits.append(await longest_wait(world, loud, quiet_shard, is_spoiled=scene == LETTERS))

    for make_fleet in (Fleet, WRONG_ABOUT_SHARES[scene].make_fleet):
        play(plan, work, make_fleet=make_fleet)
    assert waits[0] < AT_ONCE_S < LATE_S < waits[1]
