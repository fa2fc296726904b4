"""A leader of the KCL 3.x that has leases handed over to a worker of its own, in the midst of everything else."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from botocore.exceptions import ClientError, ReadTimeoutError
from simulation.simulated_world import APPLICATION, World
from simulation.virtual_time import Process
from support.aws.kcl3_peer import Kcl3Peer
from support.aws.kcl_peer import Row

PASSES_PER_DURATION = 10
RENEWALS_PER_DURATION = 3
FAILURES = (ClientError, ReadTimeoutError)


def hand_leases_over(world: World) -> None:
    """Have leases of replicas handed over again and again, until the trouble of the plan ends.

    It shows neither a leader nor a version, so the replicas go on taking leases, and take back what its worker leaves.
    """
    worker = Kcl3Peer(world.dynamodb, APPLICATION, "kcl-next:uuid")
    world.start(Process("kcl-leader:uuid"), _lead(world, worker.me))
    world.start(Process(worker.me), _work(world, worker))


async def _lead(world: World, next_owner: str) -> None:
    leader = Kcl3Peer(world.dynamodb, APPLICATION, "kcl-leader:uuid")
    while world.loop.time() < 2 * world.plan.trouble_s:
        await asyncio.sleep(world.draws.uniform(0.1, 1.0))
        owned = [key for key, owner in sorted(world.owners().items()) if owner in {one.me for one in world.alive()}]
        if not owned:
            continue
        with suppress(*FAILURES):
            row = await leader.read(world.draws.choice(owned))
            if "leaseOwner" in row and row["leaseOwner"]["S"] != next_owner:
                await _hand_over(world, leader, row, next_owner)


async def _hand_over(world: World, leader: Kcl3Peer, row: Row, next_owner: str) -> None:
    await leader.initiate_handoff(row, next_owner)
    await asyncio.sleep(world.draws.uniform(0, 2) * world.plan.lease_duration_s)
    row = await leader.read(row["leaseKey"]["S"])
    if row.get("leaseOwner") == {"S": next_owner} and "checkpointOwner" in row:
        await leader.assign(row, next_owner)


async def _work(world: World, worker: Kcl3Peer) -> None:
    duration_s = world.plan.lease_duration_s
    evict_at: dict[str, float] = {}
    renew_at = 0.0
    while world.loop.time() < 2 * world.plan.trouble_s + 2 * duration_s:
        await asyncio.sleep(duration_s / PASSES_PER_DURATION)
        now = world.loop.time()
        with suppress(*FAILURES):
            for lease_key in await worker.discover():
                evict_at[lease_key] = now + world.draws.uniform(0, 2) * duration_s
            if now >= renew_at:
                renew_at = now + duration_s / RENEWALS_PER_DURATION
                for lease_key in sorted(worker.held):
                    await worker.renew(lease_key)
            for lease_key in [key for key in sorted(worker.held) if evict_at.get(key, now) <= now]:
                await worker.evict(lease_key)
