"""A tenant is paused for longer than the stream keeps its records, in virtual time: none is lost or overtaken."""

from __future__ import annotations

import asyncio

import pytest
from simulation.simulated_world import FleetMaker, Plan, ViolationError, World
from simulation.simulation import settle_down, stop_all
from simulation.test_fleet_scenarios import play, put_for_both, until_well
from simulation.wrong_designs import ENDLESS_PAUSES

from simplu_worker.consumers.kinesis.fleet.fleet import Fleet

pytestmark = pytest.mark.slow

RETENTION_S = 300.0
WORLD = Plan(tenant_count=2, replica_count=2, retention_s=RETENTION_S, tenant_wait_s=2.0, tenant_holds_max=1)
FAR_AWAY_S = 10 * RETENTION_S


def tenants_are_paused(make_fleet: FleetMaker, *, kills: bool) -> None:
    """Pause all tenants, of which one has no room for a hold of its own, for ten times the retention."""

    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        for tenant in world.shards.tenants.values():
            tenant.paused_until = world.loop.time() + FAR_AWAY_S
        for first in range(20, 100, 20):
            put_for_both(world, first)
            await asyncio.sleep(RETENTION_S / 10)
            assert len(world.shards.log) == 20
        if kills:
            for replica in world.alive():
                replica.kill()
                world.start_replica()
        await asyncio.sleep(RETENTION_S)
        await settle_down(world)
        await stop_all(world)

    play(WORLD, work, make_fleet=make_fleet)


@pytest.mark.parametrize("kills", [False, True])
def test_pause_ends_before_the_stream_loses_what_waits(*, kills: bool) -> None:
    tenants_are_paused(Fleet, kills=kills)


def test_simulation_notices_a_pause_that_outlasts_the_retention() -> None:
    with pytest.raises(ViolationError):
        tenants_are_paused(ENDLESS_PAUSES, kills=False)
