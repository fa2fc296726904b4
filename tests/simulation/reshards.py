from __future__ import annotations

from msgspec.structs import replace
from simulation.disasters import kill, merge, split
from simulation.moves import LOSSES, happen_again, moments, with_room_for_moves
from simulation.simulated_shards import SHARD_IDS
from simulation.simulated_world import Plan, World

EVERY_S = (0.3, 2.5)  # a reshard, a loss, or the death of a replica
AGAIN_S = (0.1, 1.5)  # after which what happened may happen once more: to the children, or in the midst of a recovery
LASTS_S = 12.0
OPEN_MAX = 4


def with_room_for_reshards(plan: Plan) -> Plan:
    """Return a plan with more records, and fewer other things to happen; small pages let a parent's records last."""
    return replace(
        with_room_for_moves(plan), record_count=120, trouble_s=LASTS_S, stream_shard_count=plan.stream_shard_count
    )


async def keep_resharding(world: World) -> None:
    """Split or merge stream shards, let a Postgres shard lose commits, or a replica die, every moment."""
    async for _ in moments(world, EVERY_S, LASTS_S):
        happen_again(world, [_reshard, _reshard, lose, lose, replace_replica], AGAIN_S)


def _reshard(world: World) -> None:
    has_room = len(world.kinesis.stream.open_stream_shards) < OPEN_MAX
    (split if has_room else merge)(world)


def lose(world: World) -> None:
    world.shards.fail_over(world.draws.choice(SHARD_IDS), world.draws.choice(LOSSES))


def replace_replica(world: World) -> None:
    kill(world)
    world.start_replica()
