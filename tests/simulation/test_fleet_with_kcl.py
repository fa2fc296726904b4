"""Our fleet and workers of the Kinesis Client Library on one table, alive, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import structlog
from simulation.simulated_world import APPLICATION, Plan, World, a_world
from simulation.simulation import settle_down, stop_all
from simulation.virtual_time import Process
from support.aws.kcl_peer import KclPeer, number, reference_row

FAILOVER_S = 10.0
COORDINATOR = f"{APPLICATION}-CoordinatorState"
PLAN = Plan(replica_count=0, stream_shard_count=8)
KEYS = [f"key-{place}" for place in range(16)]


class KclWorker:
    """A peer with the KCL's timers: it renews every third of the failover time, and takes every twice of it."""

    def __init__(self, world: World, count: int) -> None:
        self.peer = KclPeer(
            world.dynamodb,
            APPLICATION,
            f"kcl-{count}:uuid",
            now=world.loop.time,
            failover_s=FAILOVER_S,
            draws=world.draws,
        )
        self._process = Process(self.peer.me)
        world.start(self._process, self._run())

    def __repr__(self) -> str:
        return f"KclWorker({self._process!r}, {self.peer!r})"

    def stop(self) -> None:
        """End it. The KCL gives nothing back at its end: its leases stay owned until they expire."""
        self._process.is_dead = True

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            while True:
                await self.peer.take_some()
                await asyncio.sleep(2 * FAILOVER_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(FAILOVER_S / 3)
            await self.peer.renew_all()


def play(work: Callable[[World], Awaitable[None]]) -> None:
    """Run *work* in a world without replicas, with a stream and the table of a KCL application in it."""

    async def run(world: World) -> None:
        await world.open()
        world.register_all()
        world.dynamodb.table(APPLICATION)
        await work(world)
        world.check()

    with structlog.testing.capture_logs(), a_world(Random(1), PLAN) as world:
        world.loop.run_until_complete(run(world))


def put_all(world: World, request: str) -> None:
    """Put one operation of every key."""
    for key in KEYS:
        world.put(key, [world.operation(key, f"{request}-{key}", request)])


def shares(world: World) -> list[int]:
    """Return how many leases each owner has."""
    return sorted(Counter(owner for owner in world.owners().values() if owner is not None).values())


async def kcl_application(world: World) -> list[KclWorker]:
    """Let two workers of the KCL own all leases, and be through with all records that were put so far."""
    for shard in world.kinesis.stream.open_stream_shards:
        hash_keys = {
            "startingHashKey": {"S": str(shard.hash_range.start)},
            "endingHashKey": {"S": str(shard.hash_range.end)},
        }
        row = reference_row(shard.stream_shard_id, "TRIM_HORIZON") | hash_keys
        world.table.put(shard.stream_shard_id, row, world.loop.time())
    workers = [KclWorker(world, count) for count in range(2)]
    await world.until(lambda: shares(world) == [4, 4], within_s=300)
    world.ledger.excused |= {put.index for put in world.ledger.puts}
    for worker in workers:
        for lease_key in sorted(worker.peer.held):
            puts = world.ledger.by_stream_shard.get(lease_key)
            if puts:
                await worker.peer.checkpoint(lease_key, puts[-1].origin.sequence_number or "")
    return workers


def test_fleet_takes_a_kcl_application_over_while_it_runs_and_goes_on_from_its_checkpoints() -> None:
    """Beside it first, then instead of it; what the KCL was through with is not applied again."""

    async def work(world: World) -> None:
        put_all(world, "theirs")
        workers = await kcl_application(world)
        for _ in range(2):
            world.start_replica()
        await world.until(lambda: shares(world) == [2, 2, 2, 2], within_s=120)
        await asyncio.sleep(60)
        mixed = shares(world)
        ours = [set(replica.running()) for replica in world.replicas]
        theirs = [set(worker.peer.held) for worker in workers]
        put_all(world, "ours")
        for worker in workers:
            worker.stop()
        await settle_down(world)

        assert mixed == [2, 2, 2, 2]
        assert len(set.union(*ours, *theirs)) == sum(map(len, ours + theirs)) == 8
        assert {request for _, request in world.shards.log} == {f"ours-{key}" for key in KEYS}

    play(work)


def test_kcl_application_resumes_where_the_fleet_stopped() -> None:
    """Our leases are free at once, so it takes them in its next passes, at the last records that we applied."""

    async def work(world: World) -> None:
        for _ in range(2):
            world.start_replica()
        put_all(world, "ours")
        await settle_down(world)
        await stop_all(world)
        workers = [KclWorker(world, count) for count in range(2)]
        await world.until(lambda: shares(world) == [4, 4], within_s=300)
        held = {key: row for worker in workers for key, row in worker.peer.held.items()}
        last = {key: puts[-1].origin.sequence_number for key, puts in world.ledger.by_stream_shard.items()}

        assert {key: held[key]["checkpoint"]["S"] for key in last} == last

    play(work)


@pytest.mark.parametrize("version", ["CLIENT_VERSION_3X", "CLIENT_VERSION_3X_WITH_ROLLBACK"])
def test_fleet_takes_nothing_while_a_kcl_3_leader_lives_and_all_when_it_is_dead(version: str) -> None:
    """It would take back what we take. Whether it lives shows by its heartbeat, every 30 s."""

    async def work(world: World) -> None:
        leader = Process("kcl-3")
        world.start(leader, _lead(world, version))
        await asyncio.sleep(1)
        replica = world.start_replica()
        await asyncio.sleep(300)
        while_it_lives = set(world.owners().values()), replica.fleet.is_led_by_kcl, replica.fleet.trouble
        leader.is_dead = True
        await world.until(lambda: shares(world) == [8], within_s=80)

        assert while_it_lives[:2] == ({None}, True)
        assert "kcl-3-worker" in str(while_it_lives[2])
        assert "KINESIS_APPLICATION_NAME" in str(while_it_lives[2])

    play(work)


@pytest.mark.parametrize("version", ["CLIENT_VERSION_UPGRADE_FROM_2X", "CLIENT_VERSION_2X", "CLIENT_VERSION_INIT"])
def test_fleet_takes_its_share_when_the_kcl_3_works_as_2(version: str) -> None:
    """Then there is nobody who assigns leases."""

    async def work(world: World) -> None:
        world.start(Process("kcl-3"), _lead(world, version))
        await asyncio.sleep(1)
        world.start_replica()
        await world.until(lambda: shares(world) == [8], within_s=5)

    play(work)


def test_fleet_takes_what_a_dead_kcl_3_leader_left_after_its_second_look() -> None:
    """At the first look nobody knows whether it lives: 35 s later its heartbeat has not moved."""

    async def work(world: World) -> None:
        leader = Process("kcl-3")
        world.start(leader, _lead(world, "CLIENT_VERSION_3X"))
        await asyncio.sleep(1)
        leader.is_dead = True
        world.start_replica()
        await asyncio.sleep(30)
        early = shares(world)
        await world.until(lambda: shares(world) == [8], within_s=15)

        assert early == []

    play(work)


async def _lead(world: World, version: str) -> None:
    """Write what a leader of the KCL 3.x does to its coordinator table."""
    table = world.dynamodb.table(COORDINATOR, "key")
    table.put("Migration3.0", {"key": {"S": "Migration3.0"}, "cv": {"S": version}}, world.loop.time())
    beats = 0
    while True:
        beats += 1
        row = {"key": {"S": "Leader"}, "ownerName": {"S": "kcl-3-worker"}, "recordVersionNumber": {"S": f"v{beats}"}}
        table.put("Leader", row | {"leaseDuration": number(120_000)}, world.loop.time())
        await asyncio.sleep(30)
