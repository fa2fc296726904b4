from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, NamedTuple

import pytest
import structlog
from botocore.exceptions import ClientError
from simulation.simulated_shards import SHARD_IDS
from simulation.simulated_world import APPLICATION, Plan, Replica, World, a_world
from simulation.simulation import settle_down, stop_all
from simulation.virtual_time import Process
from support.aws.kcl3_peer import Kcl3Peer, leader_row, migration_row, stream_row, table_migration_row, worker_row
from support.aws.kcl_peer import KclPeer, Row, reference_row

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
    for key in KEYS:
        world.put(key, [world.operation(key, f"{request}-{key}", request)])


def shares(world: World) -> list[int]:
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


LEADING = "CLIENT_VERSION_3X"


class Places(NamedTuple):
    """The tables in which a KCL 3.x has its leader and its migration state."""

    leader: str
    migration: str


BEFORE_3_5 = Places(COORDINATOR, COORDINATOR)
SINCE_3_5 = Places(APPLICATION, APPLICATION)
MOVING = Places(COORDINATOR, APPLICATION)  # the lock moves last
EVERYWHERE = pytest.mark.parametrize("places", [BEFORE_3_5, SINCE_3_5, MOVING], ids=["before 3.5", "3.5", "moving"])


@EVERYWHERE
@pytest.mark.parametrize("version", [LEADING, "CLIENT_VERSION_3X_WITH_ROLLBACK"])
def test_fleet_takes_nothing_while_a_kcl_3_leader_lives_and_all_when_it_is_dead(version: str, places: Places) -> None:
    async def work(world: World) -> None:
        leader = Process("kcl-3")
        world.start(leader, _lead(world, version, places))
        await asyncio.sleep(1)
        replica = world.start_replica()
        await asyncio.sleep(300)
        while_it_lives = set(world.owners().values()), replica.fleet.kcl_leader.is_leading, replica.fleet.trouble
        leader.is_dead = True
        await world.until(lambda: shares(world) == [8], within_s=120)

        assert while_it_lives[:2] == ({None}, True)
        assert "kcl-3-worker" in str(while_it_lives[2])
        assert "KINESIS_APPLICATION_NAME" in str(while_it_lives[2])

    play(work)


@EVERYWHERE
@pytest.mark.parametrize("version", ["CLIENT_VERSION_UPGRADE_FROM_2X", "CLIENT_VERSION_2X", "CLIENT_VERSION_INIT"])
def test_fleet_takes_its_share_when_the_kcl_3_works_as_2(version: str, places: Places) -> None:
    async def work(world: World) -> None:
        world.start(Process("kcl-3"), _lead(world, version, places))
        await asyncio.sleep(1)
        world.start_replica()
        await world.until(lambda: shares(world) == [8], within_s=5)

    play(work)


@pytest.mark.parametrize("table", [f"{APPLICATION}-WorkerMetricStats", APPLICATION], ids=["before 3.5", "3.5"])
def test_fleet_takes_nothing_between_two_leaders_of_the_kcl_3(table: str) -> None:
    async def work(world: World) -> None:
        leader = Process("kcl-3")
        world.start(leader, _lead(world, LEADING, SINCE_3_5))
        workers = Process("kcl-3-workers")
        world.start(workers, _report_metrics(world, table))
        await asyncio.sleep(1)
        replica = world.start_replica()
        await asyncio.sleep(100)
        leader.is_dead = True
        world.table.put("Leader", None, world.loop.time())  # the lock is released
        await asyncio.sleep(120)
        between = shares(world), str(replica.fleet.trouble)
        workers.is_dead = True
        await world.until(lambda: shares(world) == [8], within_s=120)

        assert between[0] == []
        assert "kcl-3-b" in between[1]

    play(work)


def test_fleet_takes_nothing_from_the_moment_at_which_a_leader_of_the_kcl_3_5_comes() -> None:
    async def work(world: World) -> None:
        replica = world.start_replica()
        await world.until(lambda: shares(world) == [8], within_s=5)
        before = replica.fleet.kcl_leader.is_leading
        world.start(Process("kcl-3"), _lead(world, LEADING, SINCE_3_5))
        await asyncio.sleep(FAILOVER_S / 5)
        led = [replica.fleet.kcl_leader.is_leading]
        for _ in range(100):
            await asyncio.sleep(1)
            led.append(replica.fleet.kcl_leader.is_leading)

        assert not before
        assert all(led)

    play(work)


@pytest.mark.parametrize(
    ("code", "most", "told"),
    [("ThrottlingException", 3, "kcl-3-worker"), ("AccessDeniedException", 100, f"table {COORDINATOR}: ")],
)
def test_fleet_takes_no_lease_before_it_saw_the_tables_of_a_kcl_3(code: str, most: int, told: str) -> None:
    async def work(world: World) -> None:
        world.start(Process("kcl-3"), _lead(world, LEADING, BEFORE_3_5))
        await asyncio.sleep(1)
        answer, refused = world.dynamodb.scan, 0

        async def refuse(**request: Any) -> dict[str, Any]:
            nonlocal refused
            if request["TableName"] == COORDINATOR and refused < most:
                refused += 1
                raise ClientError({"Error": {"Code": code, "Message": "as simulated"}}, "Scan")
            return await answer(**request)

        world.dynamodb.scan = refuse  # type: ignore[method-assign]
        replica = world.start_replica()
        await asyncio.sleep(60)

        assert (refused >= min(most, 2), shares(world), told in str(replica.fleet.trouble)) == (True, [], True)

    play(work)


def test_fleet_leaves_the_other_rows_of_the_kcl_3_5_alone() -> None:
    async def work(world: World) -> None:
        others = [
            leader_row("kcl-3-worker", "v1"),
            migration_row(LEADING),
            table_migration_row("COMPLETE"),
            worker_row("kcl-3-a", 1_790_000_000),
            stream_row("123456789012:stream:1700000000"),
        ]
        for row in others:
            world.table.put(row["leaseKey"]["S"], row, world.loop.time())
        put_all(world, "ours")
        replicas = [world.start_replica() for _ in range(2)]
        await asyncio.sleep(60)  # nothing of the KCL moves
        await settle_down(world)
        listed = {one["streamShard"] for replica in replicas for one in replica.fleet.status()}
        await stop_all(world)

        assert [world.table.rows[row["leaseKey"]["S"]] for row in others] == others
        assert listed == world.owners().keys()
        assert len(listed) == 8

    play(work)


def test_fleet_hands_a_lease_over_when_a_kcl_3_leader_assigns_it_to_another_worker() -> None:
    async def work(world: World) -> None:
        replica, leader, worker, lease_key = await _led_replica(world)
        counter = world.leases()[lease_key].counter
        await leader.initiate_handoff(await leader.read(lease_key), worker.me)
        begun_early = await worker.discover()
        await world.until(lambda: lease_key not in replica.running(), within_s=FAILOVER_S)
        await asyncio.sleep(1)
        handed_over = world.leases()[lease_key]
        begun = await worker.discover()
        renewed = []
        for _ in range(30):
            await asyncio.sleep(FAILOVER_S / 3)
            renewed.append(await worker.renew(lease_key))

        assert (begun_early, begun) == ([], [lease_key])
        assert (handed_over.owner, handed_over.checkpoint_owner) == (worker.me, None)
        assert handed_over.counter > counter
        assert handed_over.checkpoint == world.ledger.by_stream_shard[lease_key][-1].position
        assert all(renewed)
        assert lease_key not in replica.running()
        assert len(replica.running()) == 7

    play(work)


@pytest.mark.slow(1)
def test_fleet_loses_a_lease_that_a_kcl_3_leader_assigns_because_its_hand_over_takes_too_long() -> None:
    async def work(world: World) -> None:
        replica, leader, worker, lease_key = await _led_replica(world)
        world.network.slow = dict.fromkeys(SHARD_IDS, 60.0)
        put_all(world, "slow")
        await asyncio.sleep(1)
        await leader.initiate_handoff(await leader.read(lease_key), worker.me)
        counter = world.leases()[lease_key].counter
        await world.until(lambda: world.leases()[lease_key].counter > counter, within_s=FAILOVER_S)
        is_assigned = await leader.assign(await leader.read(lease_key), worker.me)
        begun = await worker.discover()
        renewed = []
        for _ in range(20):
            await asyncio.sleep(FAILOVER_S / 3)
            renewed.append(await worker.renew(lease_key))

        assert is_assigned
        assert begun == [lease_key]
        assert all(renewed)
        assert lease_key not in replica.running()

    play(work)


async def _led_replica(world: World) -> tuple[Replica, Kcl3Peer, Kcl3Peer, str]:
    put_all(world, "ours")
    replica = world.start_replica()
    await settle_down(world)
    world.start(Process("kcl-3"), _lead(world, LEADING, SINCE_3_5))
    await world.until(lambda: replica.fleet.kcl_leader.is_leading, within_s=60)
    leader, worker = (Kcl3Peer(world.dynamodb, APPLICATION, name) for name in ("kcl-3-worker", "kcl-3-next"))
    return replica, leader, worker, min(key for key, puts in world.ledger.by_stream_shard.items() if puts)


async def _lead(world: World, version: str, places: Places) -> None:
    _put(world, places.migration, lambda key_name: migration_row(version, key_name=key_name))
    beats = 0
    while True:
        beats += 1
        _put(world, places.leader, partial(_leader_row, beats))
        await asyncio.sleep(30)


def _leader_row(beats: int, key_name: str) -> Row:
    return leader_row("kcl-3-worker", f"v{beats}", key_name=key_name)


async def _report_metrics(world: World, table: str) -> None:
    while True:
        for worker in ("kcl-3-a", "kcl-3-b"):
            updated_at = int(world.loop.utc().timestamp())
            _put(world, table, partial(_worker_row, worker, updated_at), key_name="wid")
        await asyncio.sleep(30)


def _worker_row(worker: str, updated_at: int, key_name: str) -> Row:
    return worker_row(worker, updated_at, key_name=key_name)


def _put(world: World, table: str, row_of: Callable[[str], Row], *, key_name: str = "key") -> None:
    own_key = "leaseKey" if table == APPLICATION else key_name
    row = row_of(own_key)
    world.dynamodb.table(table, own_key).put(row[own_key]["S"], row, world.loop.time())
