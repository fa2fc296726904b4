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
LATE_S = 5.0
LETTERS_S = 0.5  # of a request with dead letters
CHAIN = Plan(replica_count=1, operation_cost_s=COST_S)
SMALL = Plan(replica_count=1, operation_cost_s=COST_S, prefetch_max_bytes=4 * 1024 * 1024)
SCENES = {
    "the share is by location": (CHAIN, [f"chain-{number}" for number in range(12)], FLOODED),
    "a reader waits for a lane of a shard that is behind": (SMALL, [f"f{number}-l" for number in range(6)], OTHER),
    "a reader waits for dead letters": (SMALL, [], OTHER),
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


async def longest_wait(world: World, loud: Sequence[str], quiet_shard: str) -> float:
    """Put six times as much as the shard takes; return for how long an operation of the quiet tenant waited at most.

    Without *loud* tenants the records are no JSON.
    """
    world.replicas[0].gateway.__class__ = LaboriousGateway
    world.shards.tenants = {one: Tenant(one, FLOODED) for one in loud} | {"quiet-l": Tenant("quiet-l", quiet_shard)}
    world.register_all()
    keys = {world.tenant_of(key): key for key in map("key-{}".format, range(200))}
    longest_s, asked = 0.0, {}
    for number in range(FLOOD_S * 10):
        named = [keys[loud[at % len(loud)]] for at in range(60)] if loud else []
        for at in range(0 if loud else 60):
            world.put(f"key-{at}", [NO_JSON])
        for at, key in enumerate([*named, keys["quiet-l"]]):
            world.put(key, [world.operation(key, f"r-{number}-{at}", str(number))])
        asked["quiet-l", f"r-{number}-{len(named)}"] = world.loop.time()
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
        waits.append(await longest_wait(world, loud, quiet_shard))

    for make_fleet in (Fleet, WRONG_ABOUT_SHARES[scene].make_fleet):
        play(plan, work, make_fleet=make_fleet)
    assert waits[0] < AT_ONCE_S < LATE_S < waits[1]
