"""A tenant moves between real shards: the source's events come before the target's, and none comes twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from support.feed.follower import Event, Follower
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.moves.world import OTHER, TENANT_ID, World
from support.postgres.databases import copy_shard, database_of
from support.postgres.plans import plan_of
from support.postgres.standby_pair import Pair, require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.types import Delivered, DestinationTerms, RetryLater
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers.moving.sides import clean_up
from simplu_worker.vocabulary import FeedBeginning, FeedData, FeedKind

BATCHES_SQL = """
INSERT INTO log_batches (batch_id, completed_at, row_count, kind, tenants, types, origins)
SELECT number, now(), 1, 'o', '{1}', '{patient}', '{sqs}'
FROM generate_series(1, 20000) AS made (number)
"""


@pytest.mark.slow(4)
async def test_events_of_the_target_wait_for_the_source_when_a_tenant_moves(world: World) -> None:
    addresses = [pool.address for pool in world.shard_pools.values()]
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda event: RetryLater("down") if is_down and event.shard_id == "a" else Delivered()
    source, target = world.case("a"), world.case("b")
    other = TenantCase(world.shard_pools["b"], OTHER)
    feed = feed_of(world.pools, addresses, [receiver.configured()])

    async def is_waiting() -> bool:
        found = await fetch(world.shard_pools["b"], "SELECT waits_for->>'source' AS source FROM feed_cursors")
        return found == [{"source": "a"}]

    async with running(feed):
        await publishing(feed, 2)
        await source.apply_each(*(source.operation("create", f"r{number}", {}) for number in range(10)))
        await other.apply(other.operation("create", "r1", {}))
        await world.move()
        await target.apply_each(*(target.operation("update", f"r{number}", {"n": 1}) for number in range(10)))
        await other.apply(other.operation("create", "r2", {}))
        await receiver.until_count(1)
        assert await poll_until(is_waiting, within_s=10)
        assert receiver.told() == [("resource.created", "other-main/patient/r1")]
    feed = feed_of(world.pools, addresses, [receiver.configured()])
    async with running(feed):
        await publishing(feed, 2)
        await target.apply(target.operation("update", "r0", {"n": 2}))
        assert await poll_until(is_waiting, within_s=10)
        is_down = False
        await receiver.until_count(1 + 10 + 1 + 10 + 1 + 1)
        await target.apply(target.operation("update", "r0", {"n": 3}))
        await receiver.until_count(25)
    of_tenant = [one for one in receiver.events if one.subject.startswith(TENANT_ID)]
    assert len({one.id for one in of_tenant}) == len(of_tenant)
    assert [one.shard_id for one in of_tenant] == ["a"] * 10 + ["b"] * 13
    assert of_tenant[10].kind is FeedKind.TENANT_MOVED
    assert [one.resource_id for one in of_tenant[11:]] == [*(f"r{number}" for number in range(10)), "r0", "r0"]


@pytest.mark.slow(2)
async def test_data_is_omitted_where_its_tenant_has_moved_since(world: World) -> None:
    source = world.case("a")
    await source.apply(source.operation("create", "r1", {"n": 1}))
    await world.move()
    receiver = Receiver()
    terms = DestinationTerms(receiver.name, data=FeedData.CURRENT, begin=FeedBeginning.OLDEST)
    async with running(feed_of(world.pools, [source.pool.address], [receiver.configured(terms=terms)])):
        await receiver.until_count(1)
    assert [one.data for one in receiver.events if one.kind is FeedKind.RESOURCE_CREATED] == [b""]


@pytest.mark.slow(5)
async def test_destination_is_told_when_a_tenant_comes_back_before_its_changes_were_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [pool.address for pool in world.shard_pools.values()]
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda _: RetryLater("down", 0.2) if is_down else Delivered()
    source, target = world.case("a"), world.case("b")
    feed = feed_of(world.pools, addresses, [receiver.configured()])
    async with running(feed):
        await publishing(feed, 2)
        await source.apply_each(*(source.operation("create", f"r{number}", {}) for number in range(3)))
        await world.move()
        await target.apply(target.operation("update", "r0", {"n": 1}))
        monkeypatch.setattr("simplu_worker.transfers.moving.sides.UNREAD_S", 1.0)
        began_at = loop_time()
        await clean_up(world.pools, world.commits, TENANT_ID, "a", "b")
        assert loop_time() - began_at >= 1.0
        is_down = False
        await receiver.until(lambda events: any(one.kind is FeedKind.RESOURCE_UPDATED for one in events))
    told = [one for one in receiver.events if one.tenant is not None]
    of_tenant = [one.kind for one in told if one.resource_id is None]
    assert of_tenant == [FeedKind.TENANT_REPLACED, FeedKind.TENANT_MOVED]
    # Those that were read and not delivered come nevertheless, as long as the publisher lives.
    assert {one.resource_id for one in told if one.kind is FeedKind.RESOURCE_CREATED} == {"r0", "r1", "r2"}
    assert [one.kind for one in told if one.resource_id == "r0"] == [
        FeedKind.RESOURCE_CREATED,
        FeedKind.RESOURCE_UPDATED,
    ]


@pytest.mark.slow(3)
async def test_nothing_waits_when_the_log_has_lost_the_arrival(world: World) -> None:
    addresses = [pool.address for pool in world.shard_pools.values()]
    receiver = Receiver()
    receiver.answer = lambda event: RetryLater("down") if event.shard_id == "a" else Delivered()
    source, target = world.case("a"), world.case("b")
    feed = feed_of(world.pools, addresses, [receiver.configured()])
    async with running(feed):
        await publishing(feed, 2)
        await source.apply(source.operation("create", "r1", {}))
        await world.move()
        await target.apply(target.operation("update", "r1", {"n": 1}))
        await fetch(target.pool, "UPDATE log_batches SET completed_at = completed_at - interval '20 days'")
        await fetch(target.pool, QUERIES["forget_batches"], 864_000.0, 1000, datetime(1, 1, 2, tzinfo=UTC))
        await target.apply(target.operation("update", "r1", {"n": 2}))
        await receiver.until_count(2, within_s=20)
    assert receiver.told() == [("gap", "b"), ("resource.updated", f"{TENANT_ID}/patient/r1")]


@pytest.mark.slow(2)
async def test_new_destination_waits_for_the_source_when_a_tenant_has_just_moved(world: World) -> None:
    source, target = world.case("a"), world.case("b")
    await source.apply(source.operation("create", "r1", {}))
    await world.move()
    receiver = Receiver()
    addresses = [pool.address for pool in world.shard_pools.values()]

    async def is_waiting() -> bool:
        return await fetch(target.pool, "SELECT FROM feed_cursors WHERE waits_for IS NOT NULL") != []

    async with Pools(size=4) as pools:  # of a replica that does not know the source yet
        pools.ensure_pool(addresses[1])
        feed = feed_of(pools, addresses[1:], [receiver.configured()])
        async with running(feed):
            await target.apply(target.operation("update", "r1", {"n": 1}))
            assert await poll_until(is_waiting, within_s=10)
            assert receiver.told() == []
    feed = feed_of(world.pools, addresses, [receiver.configured()], "two")
    async with running(feed):
        await receiver.until_count(2)
    assert receiver.told() == [("tenant.moved", TENANT_ID), ("resource.updated", f"{TENANT_ID}/patient/r1")]


async def test_departures_are_found_without_a_look_at_the_rest_of_the_log(world: World) -> None:
    pool = world.shard_pools["a"]
    await fetch(pool, BATCHES_SQL)
    await fetch(pool, "ANALYZE log_batches, tenants")
    async with pool.connection() as connection:
        plan = await plan_of(connection, "find_passed_departure", "crm", TENANT_ID, 2)
    assert "log_batches_moves" in plan
    assert "Seq Scan on log_batches" not in plan


async def fail_over(pair: Pair, pools: Pools, address: ShardAddress) -> ShardAddress:
    await pair.primary.kill()
    await pair.standby.promote()
    promoted = ShardAddress("s", pair.standby.url_of(database_of(address)))
    pools.pool_of("s").switch_to(promoted)
    return promoted


@pytest.mark.slow(12)
@pytest.mark.parametrize("publisher", ["lives", "dies"])
async def test_events_of_lost_commits_are_taken_back_and_come_again(publisher: str) -> None:
    require_postgres()
    with ProcessGroup() as group:
        pair = await start_pair(group)
        address = await copy_shard(pair.primary, "s")
        receiver = Receiver()
        async with Pools(size=6) as pools:
            pool = pools.ensure_pool(address)
            await add_tenant(pool)
            case = TenantCase(pool, TENANT)
            operations = [
                case.operation("create", f"r{number}", {}, request_id=f"request-{number}") for number in range(20)
            ]
            feed = feed_of(pools, [address], [receiver.configured()])
            async with running(feed):
                await publishing(feed)
                await case.apply_each(*operations[:10])
                await receiver.until_count(10)
            # Nothing is published that a standby lacks which has kept up: this one is gone when the next feed looks.
            feed = feed_of(pools, [address], [receiver.configured()], "two")
            async with running(feed):
                await publishing(feed)
                await pair.standby.catch_up()
                await pair.standby.fall_behind()
                await fetch(pool, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                await case.apply_each(*operations[10:])
                await receiver.until_count(20)
                if publisher == "lives":
                    await fail_over(pair, pools, address)
                    await apply_lost(case, operations)
                    await receiver.until_count(30)
            if publisher == "dies":
                address = await fail_over(pair, pools, address)
                await apply_lost(case, operations)
                feed = feed_of(pools, [address], [receiver.configured()], "three")
                async with running(feed):
                    await receiver.until_count(30)
    follower = Follower()
    for one in [*receiver.events[:20], *receiver.resets, *receiver.events[20:]]:
        follower.take(Event.of(json.loads(encode_event(one, 10_000) or b"")))
    assert [one.request for one in follower.holding.values()] == [one.request_id for one in operations]
    assert {one.request for one in follower.taken_back.values()} >= {one.request_id for one in operations[10:]}


async def apply_lost(case: TenantCase, operations: Sequence[Operation]) -> None:
    there = await case.log()
    lost = [one for one in operations if one.request_id not in there]
    assert len(lost) == 10
    await case.apply_each(*lost)
