from __future__ import annotations

import asyncio
from random import Random

from msgspec.structs import replace
from simulation.disasters import retire
from simulation.moves import happen_again, moments, move, with_room_for_moves
from simulation.reshards import lose, replace_replica
from simulation.simulated_world import Plan, WholePlan, World
from simulation.whole import change_file, whole_plan

EVERY_S = (0.3, 3.0)  # a move, a loss, the death of a publisher, another file, a silent receiver
AGAIN_S = (0.05, 1.5)  # after which what happened may happen once more: while the last one is being made good
LASTS_S = 30.0  # a dead publisher is replaced after nine
LOST = 0.5  # of the hand-overs
SILENT_S = (0.5, 8.0)
UNREPLICATED = 0.5  # of the histories: what was published may be lost


def with_room_for_feeds(plan: Plan, draws: Random) -> WholePlan:
    whole = whole_plan(with_room_for_moves(plan), draws)
    is_replicated = draws.random() >= UNREPLICATED
    return replace(
        whole, order_count=0, has_feed=True, is_replicated=is_replicated, record_count=120, trouble_s=LASTS_S
    )


async def keep_publishing(world: World) -> None:
    """Move a tenant, let a shard lose commits, a replica die or end, a receiver be silent or leave the file."""
    async for _ in moments(world, EVERY_S, LASTS_S):
        happen_again(world, [_move, _move, lose, lose, replace_replica, _hand_over, change_file, _silence], AGAIN_S)
    await asyncio.sleep(AGAIN_S[1])  # or the file would change after the repair


def _move(world: World) -> None:
    move(world, world.draws.choice(list(world.shards.tenants.values())))


def _hand_over(world: World) -> None:
    retire(world)
    world.start_replica()
    if world.draws.random() < LOST:
        world.loop.call_later(world.draws.uniform(*AGAIN_S), lose, world)


def _silence(world: World) -> None:
    name = world.draws.choice(world.receivers).name
    world.network.down.add(name)
    world.loop.call_later(world.draws.uniform(*SILENT_S), world.network.down.discard, name)
