"""Replicas that follow a leader of the Kinesis Client Library 3.x, which assigns their leases, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import structlog
from simulation.simulated_world import APPLICATION, Plan, World, a_world
from simulation.simulation import settle_down
from simulation.virtual_time import Process
from support.aws.kcl3_peer import Kcl3Peer, leader_row, migration_row, table_migration_row, worker_row

STREAM_SHARDS = 8
PLAN = Plan(replica_count=0, stream_shard_count=STREAM_SHARDS, follows_kcl=True)
KEYS = [f"key-{place}" for place in range(16)]
FAILOVER_S = 10.0
PASS_S = 20.0  # of the leader
FRESH_S = 60.0  # of the metrics of a worker
GRACEFUL_S = 30.0 + FAILOVER_S
LEADING, UPGRADING, ROLLED_BACK = "CLIENT_VERSION_3X", "CLIENT_VERSION_UPGRADE_FROM_2X", "CLIENT_VERSION_2X"
KCL = "kcl-3:uuid"


class Leader:
    """A worker of the KCL 3.x that leads: it assigns by number to all workers with fresh metrics, and reads nothing.

    *pays_itself*: it is among those workers.
    """

    def __init__(self, world: World, *, version: str = LEADING, pays_itself: bool = True) -> None:
        self.process = Process(KCL)
        self.worker = Kcl3Peer(world.dynamodb, APPLICATION, KCL)
        self._world = world
        self._pays_itself = pays_itself
        self._begun: dict[str, float] = {}  # hand-overs, by lease
        self._beats = 0
        self._seen: dict[str, tuple[str, float]] = {}  # counter of a lease, and since when
        self.set_version(version)
        self._put("TableMigration3.5", table_migration_row("COMPLETE"))
        world.start(self.process, self._run())

    def set_version(self, version: str) -> None:
        self._put("Migration3.0", migration_row(version))

    def _put(self, key: str, row: dict[str, object]) -> None:
        self._world.table.put(key, row, self._world.loop.time())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._hold())
            while True:
                await self._pass()
                await asyncio.sleep(PASS_S)

    async def _beat(self) -> None:
        while True:
            self._beats += 1
            self._put("Leader", leader_row(KCL, f"v{self._beats}"))
            if self._pays_itself:
                self._put(KCL, worker_row(KCL, int(self._world.loop.utc().timestamp())))
            await asyncio.sleep(30)

    async def _hold(self) -> None:
        while True:
            await self.worker.discover()
            for lease_key in sorted(self.worker.held):
                await self.worker.renew(lease_key)
            await asyncio.sleep(FAILOVER_S / 3)

    async def _pass(self) -> None:
        now, utc = self._world.loop.time(), self._world.loop.utc().timestamp()
        rows = {key: dict(row) for key, row in self._world.table.rows.items()}
        workers = {key for key, row in rows.items() if "lut" in row and utc - int(row["lut"]["N"]) < FRESH_S}
        leases = {key: row for key, row in rows.items() if "leaseCounter" in row}
        counts = Counter(dict.fromkeys(workers, 0))
        counts.update(row["leaseOwner"]["S"] for row in leases.values() if "leaseOwner" in row)
        for key, row in sorted(leases.items()):
            counter, since = self._seen.get(key, ("", now))
            self._seen[key] = row["leaseCounter"]["N"], since if counter == row["leaseCounter"]["N"] else now
            is_expired = now - self._seen[key][1] > FAILOVER_S
            is_late = "checkpointOwner" in row and now - self._begun.get(key, now) > GRACEFUL_S
            if workers and ("leaseOwner" not in row or is_expired or is_late):
                emptiest = min(workers, key=lambda one: (counts[one], one))
                if await self.worker.assign(row, emptiest):
                    counts[emptiest] += 1
        if len(workers) < 2:
            return
        fullest, emptiest = (pick(workers, key=lambda one: (counts[one], one)) for pick in (max, min))
        for key, row in sorted(leases.items()):
            if row.get("leaseOwner") == {"S": fullest} and "checkpointOwner" not in row:
                if counts[fullest] > counts[emptiest] + 1 and await self.worker.initiate_handoff(row, emptiest):
                    self._begun[key] = now
                return


def play(work: Callable[[World], Awaitable[None]]) -> None:
    async def run(world: World) -> None:
        await world.open()
        world.register_all()
        world.dynamodb.table(APPLICATION)
        await work(world)
        world.check()

    with structlog.testing.capture_logs(), a_world(Random(1), PLAN) as world:
        world.loop.run_until_complete(run(world))


def put_all(world: World, request: str) -> None:
    for key in KEYS:
        world.put(key, [world.operation(key, f"{request}-{key}", request)])


def owner_counts(world: World) -> Counter[str | None]:
    return Counter(world.owners().values())


def test_follower_reads_what_the_leader_assigns_and_nothing_else() -> None:
    async def work(world: World) -> None:
        leader = Leader(world, pays_itself=False)
        replica = world.start_replica()
        await asyncio.sleep(2)
        before = world.owners()
        await world.until(lambda: owner_counts(world) == {replica.me: STREAM_SHARDS}, within_s=3 * PASS_S)
        put_all(world, "assigned")
        await world.until(lambda: not world.ledger.unsettled(), within_s=30)
        row = world.table.rows[replica.me]

        assert set(before.values()) <= {None, replica.me}
        assert (replica.fleet.kcl_leader.is_leading, replica.fleet.trouble) == (True, None)
        assert world.loop.utc().timestamp() - int(row["lut"]["N"]) < 15
        assert "opr" in row
        assert leader.worker.held == {}

    play(work)


@pytest.mark.slow(2)
def test_follower_hands_over_what_the_leader_takes_and_takes_nothing_back() -> None:
    async def work(world: World) -> None:
        replica = world.start_replica()
        put_all(world, "before")
        await settle_down(world)
        leader = Leader(world)
        await world.until(lambda: len(leader.worker.held) == STREAM_SHARDS / 2, within_s=20 * PASS_S)
        held = {key: row["checkpoint"]["S"] for key, row in leader.worker.held.items()}
        last = {key: puts[-1].origin.sequence_number for key, puts in world.ledger.by_stream_shard.items()}
        shares = []
        for _ in range(10):
            await asyncio.sleep(PASS_S)
            shares.append((owner_counts(world), set(replica.running())))

        assert {key: held[key] for key in held if key in last} == {key: last[key] for key in held if key in last}
        assert {counts[replica.me] for counts, _ in shares} == {STREAM_SHARDS / 2}
        assert all(running.isdisjoint(leader.worker.held) for _, running in shares)

    play(work)


@pytest.mark.slow(1)
def test_followers_take_all_when_the_leader_is_dead_though_each_reports_metrics() -> None:
    async def work(world: World) -> None:
        leader = Leader(world)
        replicas = [world.start_replica() for _ in range(2)]
        await world.until(lambda: len(leader.worker.held) == 2, within_s=20 * PASS_S)
        leader.process.is_dead = True
        died_at = world.loop.time()
        mine = {replica.me for replica in replicas}
        await world.until(lambda: set(world.owners().values()) == mine, within_s=180)
        put_all(world, "alone")
        await settle_down(world)

        assert world.loop.time() - died_at < 240
        assert sorted(owner_counts(world).values()) == [4, 4]

    play(work)


def test_follower_rolls_back_with_the_fleet_and_forward_again() -> None:
    """In a mode of 2.x it takes its share as a peer; while the fleet upgrades it reports, so that the KCL can go on."""

    async def work(world: World) -> None:
        leader = Leader(world, version=UPGRADING)
        replica = world.start_replica()
        leader.process.is_dead = True  # nothing assigns; its rows stay
        await world.until(lambda: owner_counts(world)[replica.me] == STREAM_SHARDS, within_s=60)
        while_upgrading = replica.me in world.table.rows
        leader.set_version(LEADING)
        await asyncio.sleep(1)
        follower = Leader(world)
        await world.until(lambda: len(follower.worker.held) == STREAM_SHARDS / 2, within_s=20 * PASS_S)
        follower.process.is_dead = True
        follower.set_version(ROLLED_BACK)
        await world.until(lambda: owner_counts(world)[replica.me] == STREAM_SHARDS, within_s=60)

        assert while_upgrading

    play(work)


def test_follower_that_stops_gets_nothing_more() -> None:
    async def work(world: World) -> None:
        Leader(world, pays_itself=False)
        first, second = world.start_replica(), world.start_replica()
        await world.until(lambda: sorted(owner_counts(world).values()) == [4, 4], within_s=20 * PASS_S)
        first.stopping.set()
        await world.until(lambda: owner_counts(world) == {second.me: STREAM_SHARDS}, within_s=2 * PASS_S)
        await first.task

        assert first.me not in world.table.rows

    play(work)


def test_follower_ends_the_hand_over_of_a_lease_that_it_has_lost() -> None:
    async def work(world: World) -> None:
        leader = Leader(world, pays_itself=False)
        first, second = world.start_replica(), world.start_replica()
        await world.until(lambda: len(first.running()) == 4 == len(second.running()), within_s=20 * PASS_S)
        lease_key = min(first.running())
        lost = dict(world.table.rows[lease_key]) | {"leaseOwner": {"S": KCL}, "checkpointOwner": {"S": second.me}}
        world.table.put(lease_key, lost, world.loop.time())
        await world.until(lambda: "checkpointOwner" not in world.table.rows[lease_key], within_s=3)

        assert world.owners()[lease_key] == KCL
        assert leader.worker.held.keys() <= {lease_key}

    play(work)
