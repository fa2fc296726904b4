"""What a fleet does in the situations that users of other consumers complain of, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from random import Random
from typing import Any

import pytest
import structlog
from botocore.exceptions import ClientError
from msgspec.structs import replace
from prometheus_client import REGISTRY
from simulation.disasters import split
from simulation.simulated_kinesis import KinesisClient
from simulation.simulated_network import Trouble
from simulation.simulated_shards import SHARD_IDS
from simulation.simulated_world import FleetMaker, Plan, ViolationError, World, a_world
from simulation.simulation import produce, settle_down, stop_all

from simplu_worker.consumers.kinesis.fleet.fleet import CLEANUP_INTERVAL_S, Fleet
from simplu_worker.consumers.kinesis.leases.lease_rules import PATIENCE_S
from simplu_worker.consumers.kinesis.leases.lease_table import KclFollower
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END
from simplu_worker.vocabulary import Inability

pytestmark = pytest.mark.slow

OWN_TRY_S = 0.05  # of looking, here
CALM = Plan(replica_count=4, stream_shard_count=16, key_count=32)
KEYS = [f"key-{number}" for number in range(32)]  # of which some come to each of 8 stream shards


def play(
    plan: Plan,
    work: Callable[[World], Awaitable[None]],
    *,
    seed: int = 1,
    tenants_wait: bool = False,
    make_fleet: FleetMaker = Fleet,
) -> None:
    async def run(world: World) -> None:
        await world.open()
        if not tenants_wait:
            world.register_all()
        await work(world)
        world.check()

    with structlog.testing.capture_logs(), a_world(Random(seed), plan, make_fleet=make_fleet) as world:
        world.loop.run_until_complete(run(world))


async def until_well(world: World, *, within_s: float = 60.0) -> None:
    await world.until(lambda: not world.problems(), within_s=within_s)


async def time_until(world: World, is_reached: Callable[[], object], *, within_s: float) -> float:
    started_at = world.loop.time()
    while not is_reached():
        if world.loop.time() > started_at + within_s:
            raise ViolationError(f"not within {within_s} s: {world.problems()}")
        await asyncio.sleep(OWN_TRY_S)
    return world.loop.time() - started_at


def is_all_read(world: World) -> bool:
    running = {key for replica in world.alive() for key in replica.running()}
    return running >= {shard.stream_shard_id for shard in world.kinesis.stream.open_stream_shards}


def lost_in(logs: list[structlog.typing.EventDict]) -> list[str]:
    return [entry["stream_shard_id"] for entry in logs if entry["event"] == "lease.lost"]


def put_one(world: World, key: str, number: int) -> str:
    world.put(key, [world.operation(key, f"one-{number}", str(number))])
    return world.ledger.puts[-1].origin.stream_shard_id or ""


async def waits_while_put(world: World, keys: Sequence[str], *, for_s: float) -> dict[str, float]:
    """Put an operation every 50 ms; return for how many seconds one of each stream shard waited at most."""
    waits: dict[str, float] = {}
    for number in range(round(for_s / 0.05)):
        waits.setdefault(put_one(world, keys[number % len(keys)], number), 0.0)
        await asyncio.sleep(0.05)
        for stream_shard_id, longest_s in waits.items():
            put = world.ledger.first_unsettled(stream_shard_id)
            if put is not None:
                waits[stream_shard_id] = max(longest_s, (world.loop.utc() - put.origin.arrived_at).total_seconds())
    return waits


@pytest.mark.parametrize("seed", range(4))
def test_stream_shards_are_read_again_within_two_seconds_of_the_lease_when_a_replica_is_killed(seed: int) -> None:
    async def work(world: World) -> None:
        await until_well(world)
        await asyncio.sleep(world.draws.uniform(0, 10))
        world.draws.choice(world.alive()).kill()

        assert await time_until(world, lambda: is_all_read(world), within_s=30) <= 12.0

    play(CALM, work, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_stream_shards_are_read_again_within_two_seconds_when_a_replica_is_stopped(seed: int) -> None:
    async def work(world: World) -> None:
        await until_well(world)
        await asyncio.sleep(world.draws.uniform(0, 10))
        world.draws.choice(world.alive()).stopping.set()

        assert await time_until(world, lambda: is_all_read(world), within_s=30) <= 2.0

    play(CALM, work, seed=seed)


@pytest.mark.parametrize("trouble", [Trouble(request_lost=0.3), Trouble(answer_lost=0.3), Trouble(throttled=0.3)])
def test_leases_are_given_back_when_some_requests_fail_at_the_stop(trouble: Trouble) -> None:
    async def work(world: World) -> None:
        await until_well(world)
        world.network.trouble = trouble
        world.alive()[0].stopping.set()

        assert await time_until(world, lambda: is_all_read(world), within_s=30) <= 0.8 * CALM.lease_duration_s

    play(CALM, work)


def test_no_stream_shard_is_unread_for_two_seconds_when_replicas_are_replaced_one_by_one() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        for replica in list(world.alive()):
            world.start_replica()
            await until_well(world)
            replica.stopping.set()

            assert await time_until(world, lambda: is_all_read(world), within_s=30) <= 2.0
        await settle_down(world)

    async def work_under_load(world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(world))
            await work(world)

    play(replace(CALM, record_count=100, trouble_s=30.0), work_under_load)


def test_leases_are_even_soon_and_stay_when_a_replica_joins() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        before = world.owners()
        world.start_replica()
        took_s = await time_until(world, lambda: not world.problems(), within_s=60)
        await settle_down(world)
        moves = sum(before[key] != owner for key, owner in world.owners().items())

        assert took_s <= 20.0  # two passes of the KCL
        assert moves == 6

    play(Plan(replica_count=5, stream_shard_count=40), work)


@pytest.mark.parametrize("seed", range(16, 20))
def test_no_other_stream_shard_waits_when_leases_go_to_a_replica_that_joins(seed: int) -> None:
    async def work(world: World) -> None:
        await until_well(world)
        await asyncio.sleep(world.draws.uniform(0, 10))
        before = world.owners()
        world.start_replica()
        waits = await waits_while_put(world, KEYS, for_s=20.0)
        await settle_down(world)
        stayed = [key for key, owner in world.owners().items() if owner == before[key]]

        assert len(stayed) == 4
        assert max(waits[key] for key in stayed) <= 2.0

    play(Plan(replica_count=1, stream_shard_count=8, key_count=32), work, seed=seed)


@pytest.mark.parametrize("seed", range(9, 13))
def test_no_other_stream_shard_waits_when_a_row_is_not_as_it_was_left_and_dynamodb_is_down(seed: int) -> None:
    async def work(world: World) -> None:
        places = {key: put_one(world, key, -number) for number, key in enumerate(KEYS)}
        await until_well(world)
        await asyncio.sleep(world.draws.uniform(0, 10))
        lost_from = put_one(world, KEYS[0], len(KEYS))
        await until_well(world)
        world.network.down.add("dynamodb")
        world.shards.fail_over(world.shards.tenants[world.tenant_of(KEYS[0])].shard_id, 1)
        assert world.ledger.unsettled() == [lost_from]
        others = [key for key, place in places.items() if place != lost_from]
        waits = await waits_while_put(world, others, for_s=6.0)
        world.network.down.clear()
        await settle_down(world)

        assert len(waits) == 7
        assert max(waits.values()) <= 2.0

    play(Plan(replica_count=1, stream_shard_count=8, key_count=32), work, seed=seed)


@pytest.mark.parametrize("trouble", [Trouble(throttled=0.5), Trouble(answer_lost=0.5), Trouble(request_lost=0.5)])
def test_no_lease_is_lost_when_half_of_the_requests_fail_for_a_minute(trouble: Trouble) -> None:
    async def work(world: World) -> None:
        await until_well(world)
        owners = world.owners()
        world.network.trouble = trouble
        with structlog.testing.capture_logs() as logs:
            await produce(world)
            world.network.trouble = Trouble()
            await settle_down(world)

        assert lost_in(logs) == []
        assert world.owners() == owners

    play(replace(CALM, replica_count=2, stream_shard_count=4, record_count=200, trouble_s=60.0), work)


def test_reading_goes_on_until_the_lease_expires_when_dynamodb_is_down() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        world.network.down.add("dynamodb")
        await asyncio.sleep(6.0)
        still_read = is_all_read(world)
        await asyncio.sleep(6.0)
        stopped = not any(replica.running() for replica in world.alive())
        world.network.down.clear()
        await settle_down(world)

        assert (still_read, stopped) == (True, True)

    play(CALM, work)


@pytest.mark.parametrize("refused", ["all", "writes"])
def test_stream_that_nobody_reads_is_shown_as_such(refused: str) -> None:
    def unowned() -> float | None:
        return REGISTRY.get_sample_value("simplu_kinesis_leases", {"state": "unowned"})

    async def work(world: World) -> None:
        await until_well(world)
        await asyncio.sleep(5.0)
        assert unowned() == 0
        if refused == "all":
            world.network.down.add("dynamodb")
        else:
            world.dynamodb._update_item = refuse  # type: ignore[method-assign,assignment]
        await asyncio.sleep(20.0)
        assert not any(replica.running() for replica in world.alive())
        assert unowned() == 2
        assert all(replica.fleet.outage for replica in world.alive())
        world.network.down.clear()
        vars(world.dynamodb).pop("_update_item", None)
        await settle_down(world)
        await asyncio.sleep(5.0)
        assert unowned() == 0
        assert not any(replica.fleet.outage for replica in world.alive())

    def refuse(_: object) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "as simulated"}}, "UpdateItem")

    play(replace(CALM, stream_shard_count=2, replica_count=1), work)


def test_defect_of_a_chore_keeps_no_lease_of_a_dead_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise TypeError("as simulated")

    async def work(world: World) -> None:
        await until_well(world)
        with monkeypatch.context() as patched:
            patched.setattr(KclFollower, "report", fail)
            await asyncio.sleep(300.0)
            world.replicas[0].kill()
            await until_well(world, within_s=30.0)

    play(replace(CALM, follows_kcl=True), work)


def test_stream_shard_that_a_listing_lacks_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = KinesisClient.list_shards

    async def stale(self: KinesisClient, **members: Any) -> dict[str, Any]:
        reply = await listed(self, **members)
        return reply | {"Shards": reply["Shards"][:1]}

    async def work(world: World) -> None:
        await until_well(world)
        with monkeypatch.context() as patched:
            patched.setattr(KinesisClient, "list_shards", stale)
            await asyncio.sleep(3 * CLEANUP_INTERVAL_S)
        put_one(world, "key-0", 1)
        put_one(world, "key-1", 1)
        await settle_down(world)
        assert {lease.checkpoint for lease in world.leases().values()} & {SHARD_END} == set()

    play(replace(CALM, stream_shard_count=4), work)


@pytest.mark.parametrize(("stopped_s", "reports"), [(4500.0, 1.0), (1800.0, 0.0)])
def test_records_that_expired_while_the_fleet_was_stopped_are_told(stopped_s: float, reports: float) -> None:
    def told() -> float:
        return REGISTRY.get_sample_value("simplu_kinesis_expired_positions_total") or 0.0

    async def work(world: World) -> None:
        await until_well(world)
        put_one(world, "key-0", 0)
        await settle_down(world)
        await asyncio.sleep(60.0)
        await stop_all(world)
        before = told()
        await asyncio.sleep(300.0)
        put_one(world, "key-0", 1)
        await asyncio.sleep(stopped_s - 600.0)
        put_one(world, "key-0", 2)
        await asyncio.sleep(300.0)
        world.start_replica()
        await asyncio.sleep(120.0)
        assert told() - before == reports

    lost = pytest.raises(ViolationError, match="passed record 1") if reports else nullcontext()
    with lost:
        play(replace(CALM, replica_count=1, stream_shard_count=1, key_count=4, retention_s=3600.0), work)


def test_lease_is_made_again_when_its_row_was_deleted_by_hand() -> None:
    async def work(world: World) -> None:
        await produce(world)
        await until_well(world)
        lease_key = next(iter(world.leases()))
        watch, world.table.watch = world.table.watch, lambda _key, _before, _after: None
        world.table.put(lease_key, None, world.loop.time())
        world.table.watch = watch
        took_s = await time_until(world, lambda: lease_key in world.leases(), within_s=60)
        await settle_down(world)

        assert took_s <= 40.0

    play(replace(CALM, stream_shard_count=2, replica_count=2), work)


def test_nothing_is_lost_or_doubled_when_all_is_suspended_for_longer_than_an_iterator_lives() -> None:
    async def work(world: World) -> None:
        await world.until(lambda: is_all_read(world), within_s=10)
        await asyncio.sleep(2)
        for replica in world.replicas:
            replica.process.is_stopped = True
        await produce(world)
        await asyncio.sleep(400)
        for replica in world.replicas:
            world.loop.resume(replica.process)
        await settle_down(world)
        world.ledger.check_fates()

        assert len(world.ledger.puts) >= 20

    play(Plan(initial_position="LATEST", stream_shard_count=2), work)


def put_for_both(world: World, first: int) -> None:
    """Put ten operations for each of two tenants, who live on a shard of their own each."""
    for tenant, shard_id in zip(world.shards.tenants.values(), SHARD_IDS, strict=True):
        tenant.shard_id = shard_id
    for number in range(first, first + 20):
        key = f"key-{number % 8}"
        world.put(key, [world.operation(key, f"r-{number}", str(number))])


@pytest.mark.parametrize("seed", range(4))
def test_nobody_waits_for_a_lost_shard_when_the_stream_is_resharded_meanwhile(seed: int) -> None:
    async def work(world: World) -> None:
        await world.until(lambda: is_all_read(world), within_s=10)
        world.network.down.add(SHARD_IDS[0])
        for number in range(40):
            key = f"key-{number % 10}"
            world.put(key, [world.operation(key, f"r-{number}", str(number))])
            if number == 20:
                split(world)
            if number == 30:
                world.start_replica()
            await asyncio.sleep(1)
        living = {one.tenant_id for one in world.shards.tenants.values() if one.shard_id != SHARD_IDS[0]}
        puts = [put for put in world.ledger.puts if put.operation and put.operation.tenant_id in living]
        unsettled = [put.index for put in puts if not world.ledger.is_settled(put)]
        world.network.down.clear()
        await settle_down(world)
        await stop_all(world)
        world.ledger.check_fates()

        assert [index for index in unsettled if index < 38] == []

    play(Plan(tenant_count=5, replica_count=1), work, seed=seed)


def test_child_is_read_and_the_parent_forgotten_when_it_is_past_its_retention() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        for replica in world.replicas:
            replica.process.is_stopped = True
        split(world)
        await asyncio.sleep(26 * 3600)
        for number in range(8):
            world.put(f"key-{number}", [world.operation(f"key-{number}", f"r-{number}", "0")])
        for replica in world.replicas:
            world.loop.resume(replica.process)
        await world.until(lambda: not world.ledger.unsettled() and is_all_read(world), within_s=100)
        await world.until(lambda: sorted(world.leases()) == sorted(world.owners()), within_s=200)

        assert len(world.leases()) == 2

    play(Plan(), work)


def test_idle_fleet_asks_little_of_dynamodb() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        writes = 0

        def count(*_row: object) -> None:
            nonlocal writes
            writes += 1

        world.table.watch = count
        await asyncio.sleep(100)

        assert writes <= 30 + 1

    play(Plan(replica_count=1), work)


def test_request_to_retry_is_carried_out_once_by_each_replica_that_holds_a_target() -> None:
    async def work(world: World) -> None:
        for number, key in enumerate(KEYS):
            put_one(world, key, number)
        await asyncio.sleep(30)
        asker, *others = world.alive()
        with structlog.testing.capture_logs() as logs:
            asked = await asker.fleet.ask_to_retry(None)
            await asyncio.sleep(CALM.lease_duration_s / 3 + 1)
            carried_out = [entry["stream_shard_id"] for entry in logs if entry["event"] == "hold.retried"]
            of_others = [key for replica in others for key in replica.running()]
            others[0].stopping.set()
            await asyncio.sleep(2 * CALM.lease_duration_s)
            later = [entry for entry in logs if entry["event"] == "hold.retried"][len(carried_out) :]
        world.register_all()
        await settle_down(world)
        await stop_all(world)

        assert asked == {replica.me: True for replica in others}
        assert sorted(carried_out) == sorted(of_others)
        assert later == []

    play(replace(CALM, stream_shard_count=8, tenant_wait_s=300.0), work, tenants_wait=True)


def give_troubles(world: World, trouble: Inability | None, *numbers: int) -> None:
    for number in numbers:
        world.replicas[number].gateway.reaches_nothing = trouble


def test_replica_that_can_do_nothing_gives_its_leases_away() -> None:
    async def work(world: World) -> None:
        unable = world.replicas[0]
        await until_well(world)
        give_troubles(world, Inability.CITRUS_REFUSES_KEY, 0)
        await asyncio.sleep(PATIENCE_S - 1)
        assert len(unable.running()) == 4
        with structlog.testing.capture_logs() as logs:
            for _ in range(60):
                await asyncio.sleep(0.2)
                assert is_all_read(world)
        assert unable.running() == []
        told = [(one["reason"], one["leases"]) for one in logs if one["event"] == "replica.unable"]
        assert told == [(Inability.CITRUS_REFUSES_KEY, 4)]
        give_troubles(world, None, 0)
        await until_well(world, within_s=PATIENCE_S + 60)

    play(CALM, work)


def test_no_lease_moves_when_no_replica_can_do_anything() -> None:
    async def work(world: World) -> None:
        await until_well(world)
        owners = world.owners()
        for trouble in (Inability.CITRUS_UNREACHABLE, None):
            for number in range(4):
                give_troubles(world, trouble, number)
                await asyncio.sleep(PATIENCE_S / 5)
            await asyncio.sleep(3 * PATIENCE_S)
            assert world.owners() == owners

    play(CALM, work)
