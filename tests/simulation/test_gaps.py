"""A Postgres shard that is put back beyond the stream's retention is held, and no other shard is, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from simulation.disasters import split
from simulation.simulated_shards import SHARD_IDS
from simulation.simulated_world import FleetMaker, Plan, ViolationError, World
from simulation.simulation import settle_down, stop_all
from simulation.test_fleet_scenarios import is_all_read, play, put_for_both, until_well
from simulation.wrong_designs import WRONG_ABOUT_GAPS

from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.recovery import shard_positions

pytestmark = pytest.mark.slow

RETENTION_S = 300.0
EXPIRED_AFTER_S = RETENTION_S + 30.0
ROWS_FRESH_AFTER_S = 60.0
SELF_TRUST = "what a reader has read itself proves that its fleet was not stopped"
BACK, OTHER = SHARD_IDS  # the shard that is put back, and the other one
WORLD = Plan(tenant_count=2, replica_count=2, retention_s=RETENTION_S, tenant_wait_s=2.0)


@pytest.fixture(autouse=True)
def _quick_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_positions, "IDLE_WRITE_AFTER_S", 20.0)


def play_gap(work: Callable[[World], Awaitable[None]], make_fleet: FleetMaker = Fleet) -> None:
    play(WORLD, work, make_fleet=make_fleet)


def own_puts(world: World, shard_id: str, first: int = 0) -> set[int]:
    here = {one.tenant_id for one in world.shards.tenants.values() if one.shard_id == shard_id}
    return {put.index for put in world.ledger.puts[first:] if put.operation and put.operation.tenant_id in here}


def put_for_other(world: World, first: int) -> None:
    own = [
        key for key in map("key-{}".format, range(8)) if world.shards.tenants[world.tenant_of(key)].shard_id == OTHER
    ]
    for number in range(first, first + 20):
        key = own[number % len(own)]
        world.put(key, [world.operation(key, f"r-{number}", str(number))])


def is_settled(world: World, shard_id: str) -> bool:
    own = own_puts(world, shard_id)
    return all(world.ledger.is_settled(world.ledger.puts[index]) for index in own)


def gap_holds(world: World) -> set[str]:
    readers = [reader for replica in world.alive() for reader in replica.fleet.readers()]
    return {hold.name for reader in readers for hold in reader.progress.holds() if hold.reason == "gap"}


def has_open_gap(world: World) -> bool:
    return any(row.has_open_gap for (shard_id, _), row in world.shards.positions.items() if shard_id == BACK)


async def replace_all(world: World, *, after_s: float = 0.0) -> None:
    for replica in world.alive():
        replica.kill()
    await asyncio.sleep(after_s)
    for _ in range(WORLD.replica_count):
        world.start_replica()
    await world.until(lambda: is_all_read(world), within_s=60)


async def accept(world: World) -> None:
    assert world.shards.accept_gaps(BACK) > 0
    await settle_down(world)
    await stop_all(world)


def shard_is_put_back_beyond_retention(make_fleet: FleetMaker, *, waits: bool, is_early: bool = False) -> None:
    """Put a shard back; the stream has the second half of what it lost. Its holds may last longer than the stream.

    An early backup has a row at the beginning of the stream.
    """

    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        await asyncio.sleep(0 if is_early else ROWS_FRESH_AFTER_S)
        backup = world.shards.back_up(BACK)
        put_for_both(world, 20)
        await until_well(world)
        await asyncio.sleep(EXPIRED_AFTER_S)
        put_for_both(world, 40)
        await until_well(world)
        world.ledger.excused |= {index for index in own_puts(world, BACK, 20) if index < 40}
        world.shards.restore(backup, is_held_back=True)
        put_for_both(world, 60)
        await world.until(lambda: BACK in gap_holds(world), within_s=30)
        await world.until(lambda: is_settled(world, OTHER), within_s=10)
        await replace_all(world)
        await world.until(lambda: BACK in gap_holds(world), within_s=30)
        if waits:
            await asyncio.sleep(EXPIRED_AFTER_S)
            world.ledger.excused |= {index for index in own_puts(world, BACK, 40) if index < 80}
            await replace_all(world)
            put_for_both(world, 80)
            await asyncio.sleep(30)
            await world.until(lambda: is_settled(world, OTHER), within_s=10)
        assert not is_settled(world, BACK)
        await accept(world)

    play_gap(work, make_fleet)


@pytest.mark.parametrize(("waits", "is_early"), [(False, False), (False, True), (True, False)])
def test_shard_that_was_put_back_beyond_retention_is_held_until_the_gap_is_accepted(
    *, waits: bool, is_early: bool
) -> None:
    shard_is_put_back_beyond_retention(Fleet, waits=waits, is_early=is_early)


@pytest.mark.parametrize(
    ("design", "waits"),
    [("a shard goes on over a gap", False), ("a gap is known to the reader alone that found it", True)],
)
def test_simulation_notices_operations_over_a_gap(design: str, *, waits: bool) -> None:
    with pytest.raises(ViolationError, match="over a gap"):
        shard_is_put_back_beyond_retention(WRONG_ABOUT_GAPS[design], waits=waits)


@pytest.mark.parametrize("is_early", [False, True])
def test_idle_shard_that_was_put_back_is_marked_before_its_first_operation(*, is_early: bool) -> None:
    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        await asyncio.sleep(0 if is_early else ROWS_FRESH_AFTER_S)
        backup = world.shards.back_up(BACK)
        put_for_both(world, 20)
        await until_well(world)
        await asyncio.sleep(EXPIRED_AFTER_S)
        world.ledger.excused |= own_puts(world, BACK, 20)
        world.shards.restore(backup, is_held_back=True)
        await world.until(lambda: has_open_gap(world), within_s=30)
        assert gap_holds(world) == set()
        await accept(world)

    play_gap(work)


@pytest.mark.parametrize("is_gone", [False, True])
def test_shard_that_was_put_back_to_before_a_split_is_held(*, is_gone: bool) -> None:
    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        backup = world.shards.back_up(BACK)
        put_for_both(world, 20)
        await until_well(world)
        await asyncio.sleep(RETENTION_S - 50)
        put_for_both(world, 40)
        split(world)
        await until_well(world)
        await asyncio.sleep(EXPIRED_AFTER_S + 90 if is_gone else 100)
        put_for_both(world, 60)
        await until_well(world)
        lost_before = 60 if is_gone else 40
        world.ledger.excused |= {index for index in own_puts(world, BACK, 20) if index < lost_before}
        world.shards.restore(backup, is_held_back=True)
        put_for_both(world, 80)
        await world.until(lambda: BACK in gap_holds(world), within_s=30)
        await replace_all(world)
        await asyncio.sleep(20)
        if not is_gone:  # now it goes, with its row on the other shard
            await asyncio.sleep(EXPIRED_AFTER_S + 90)
            assert (OTHER, "shardId-000000000000") not in world.shards.positions
            world.ledger.excused |= own_puts(world, BACK, 20)
            put_for_both(world, 100)
            await asyncio.sleep(20)
        assert not is_settled(world, BACK)
        await accept(world)

    play_gap(work)


# What must not be held


def fleet_is_stopped_beyond_retention(make_fleet: FleetMaker) -> None:
    """Kill all while the row of one shard is behind the checkpoint; start again when the stream has neither."""

    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        put_for_other(world, 20)
        await until_well(world)
        await asyncio.sleep(6)
        rows = {row.pending_from for (shard_id, _), row in world.shards.positions.items() if shard_id == BACK}
        last = world.ledger.puts[-1].position
        assert rows != {f"{last.number}/0"}
        assert world.leases()["shardId-000000000000"].checkpoint == last
        for replica in world.alive():
            replica.kill()
        await asyncio.sleep(EXPIRED_AFTER_S)
        put_for_other(world, 40)  # which are read before the shard is met
        world.network.down.add(BACK)
        await replace_all(world)
        await asyncio.sleep(20)
        world.network.down.clear()
        put_for_both(world, 60)
        await settle_down(world)
        await stop_all(world)

    play_gap(work, make_fleet)


def test_fleet_that_was_stopped_beyond_retention_goes_on() -> None:
    fleet_is_stopped_beyond_retention(Fleet)
    for design in ("a fleet that was stopped has gaps", SELF_TRUST):
        with pytest.raises(ViolationError, match="not reached"):
            fleet_is_stopped_beyond_retention(WRONG_ABOUT_GAPS[design])


def stream_is_idle_before_a_failover(make_fleet: FleetMaker) -> None:
    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        await asyncio.sleep(EXPIRED_AFTER_S)
        replica = world.shards.back_up(BACK)
        put_for_both(world, 20)
        await until_well(world)
        world.shards.restore(replica, is_held_back=False)
        put_for_both(world, 40)
        await settle_down(world)
        await stop_all(world)

    play_gap(work, make_fleet)


def test_failover_after_an_idle_time_beyond_retention_is_made_good() -> None:
    stream_is_idle_before_a_failover(Fleet)
    with pytest.raises(ViolationError, match="not reached"):
        stream_is_idle_before_a_failover(WRONG_ABOUT_GAPS["a row that has left the stream is a gap, however new it is"])


@pytest.mark.parametrize("is_replaced", [False, True])
def test_shard_without_rows_goes_on(*, is_replaced: bool) -> None:
    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        await asyncio.sleep(EXPIRED_AFTER_S)
        put_for_both(world, 20)
        await until_well(world)
        for place in [place for place in world.shards.positions if place[0] == BACK]:
            del world.shards.positions[place]
        if is_replaced:
            await replace_all(world)
        put_for_both(world, 40)
        await settle_down(world)
        await stop_all(world)

    play_gap(work)


def test_shard_that_was_away_beyond_retention_without_operations_goes_on() -> None:
    async def work(world: World) -> None:
        put_for_both(world, 0)
        await until_well(world)
        world.network.down.add(BACK)
        for number in range(20, 220, 20):
            put_for_other(world, number)
            await asyncio.sleep(EXPIRED_AFTER_S / 10)
        world.network.down.clear()
        put_for_both(world, 220)
        await settle_down(world)
        await stop_all(world)

    play_gap(work)
