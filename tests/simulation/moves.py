from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from msgspec.structs import replace
from simulation.simulated_network import Trouble
from simulation.simulated_shards import SHARD_IDS, Tenant
from simulation.simulated_world import Plan, World

EVERY_S = (0.5, 3.0)  # a move begins: readers need some time to know both shards again
FENCED_S = (0.02, 0.3)
LOSS = 0.3  # how likely a shard loses commits around a move
LOSSES = (0, 1, 1, 2, 5, 1000)
LASTS_S = 15.0
AGAIN = 0.4


def with_room_for_moves(plan: Plan) -> Plan:
    """Return a plan with more records, and fewer other things to happen, so that readers mostly know their rows."""
    return replace(
        plan,
        replica_count=min(2, plan.replica_count),
        stream_shard_count=1,
        tenant_count=max(2, plan.tenant_count),
        record_count=200,
        trouble_s=LASTS_S,
        event_count=1,
        has_strangers=False,
        page_size=100,
        options=replace(plan.options, page_size=1000),
    )


async def keep_moving(world: World) -> None:
    async for _ in moments(world, EVERY_S, LASTS_S):
        move(world, world.draws.choice(list(world.shards.tenants.values())))


async def moments(world: World, every_s: tuple[float, float], lasts_s: float) -> AsyncIterator[None]:
    world.network.trouble = Trouble(longest_s=0.05)
    for tenant in world.shards.tenants.values():
        tenant.created_at = world.loop.utc()
    ends_at = world.loop.time() + lasts_s
    while world.loop.time() < ends_at:
        await asyncio.sleep(world.draws.uniform(*every_s))
        yield


def happen_again(world: World, events: Sequence[Callable[[World], None]], again_s: tuple[float, float]) -> None:
    happen = world.draws.choice(events)
    happen(world)
    if world.draws.random() < AGAIN:
        world.loop.call_later(world.draws.uniform(*again_s), happen, world)


def move(world: World, tenant: Tenant) -> None:
    """Move a tenant to the other shard, and perhaps let one of the two lose commits around that."""
    draws, loop, source = world.draws, world.loop, tenant.shard_id
    target = next(shard_id for shard_id in SHARD_IDS if shard_id != source)
    fenced_at, fenced_for = draws.uniform(0, 0.2), draws.uniform(*FENCED_S)
    if draws.random() < LOSS:
        at_s = draws.uniform(0, fenced_at + 2 * fenced_for)
        loop.call_later(at_s, world.shards.fail_over, draws.choice(SHARD_IDS), draws.choice(LOSSES))
    loop.call_later(fenced_at, world.shards.fence, tenant)
    loop.call_later(fenced_at + fenced_for, world.shards.move, tenant, target)
