"""A simulated fleet whose feed changes hands, shards and files, while the Postgres shards lose commits."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random

from msgspec.structs import replace
from simulation.moves import moments, move, with_room_for_moves
from simulation.reshards import lose, replace_replica
from simulation.simulated_world import Plan, WholePlan, World
from simulation.whole import change_file, whole_plan

EVERY_S = (0.2, 2.0)  # a move, a loss, the death of a publisher, or another file
AGAIN_S = (0.05, 1.5)  # after which what happened may happen once more: while the last one is being made good
AGAIN = 0.4
LASTS_S = 20.0  # a dead publisher is replaced after seconds


def with_room_for_feeds(plan: Plan, draws: Random) -> WholePlan:
    """Return a plan with the feed, without order events, and with fewer other things to happen."""
    whole = whole_plan(with_room_for_moves(plan), draws)
    return replace(whole, order_count=0, has_feed=True, record_count=120, trouble_s=LASTS_S)


async def keep_publishing(world: World) -> None:
    """Move a tenant, let a shard lose commits, a replica die, or a receiver leave the file, every moment."""
    async for _ in moments(world, EVERY_S, LASTS_S):
        happen = world.draws.choice([_move, _move, lose, lose, replace_replica, change_file])
        happen(world)
        if world.draws.random() < AGAIN:
            world.loop.call_later(world.draws.uniform(*AGAIN_S), partial(happen, world))
    await asyncio.sleep(AGAIN_S[1])  # or the file would change after the repair


def _move(world: World) -> None:
    move(world, world.draws.choice(list(world.shards.tenants.values())))
