"""A shard loses commits whose events were delivered: they are taken back, and applied again under new ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from support.feed.follower import Event, Follower
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.postgres.databases import copy_shard, database_of
from support.postgres.standby_pair import Pair, require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools


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
