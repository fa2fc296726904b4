"""A shard loses commits whose events were delivered: they are taken back, and applied again under new ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.postgres.databases import ShardMaker, copy_shard, database_of
from support.postgres.standby_pair import Pair, require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.feed.types import DestinationTerms, FeedEvent, FeedFilter
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.vocabulary import FeedKind

AT_END_SQL = """
SELECT FROM feed_cursors WHERE NOT undone_due AND position >= 0 AND batch_id = (SELECT max(batch_id) FROM log_batches)
"""
JUDGED_SQL = "SELECT FROM feed_shards JOIN shard_meta ON server_run LIKE '%/' || batch_offset"


def undone_by_bounds(events: Sequence[FeedEvent]) -> set[str]:
    """Return the ids that a receiver knows to be undone by what each event of a shard says alone."""
    latest: dict[str, tuple[int, FeedEvent]] = {}
    for index, one in enumerate(events):
        if one.kind not in (FeedKind.UNDONE, FeedKind.GAP):
            latest[one.id] = (index, one)
    gone = set()
    for index, one in latest.values():
        batch_id = int(one.position.split("-")[0])
        for later in events[index:]:
            for bound in later.incarnation.bounds.split(","):
                incarnation, _, behind = bound.rpartition(":")
                if not bound or incarnation == one.incarnation.id:
                    break
                if batch_id > int(behind):
                    gone.add(one.id)
    return gone


async def fail_over(pair: Pair, pools: Pools, address: ShardAddress) -> ShardAddress:
    await pair.primary.kill()
    await pair.standby.promote()
    promoted = ShardAddress("s", pair.standby.url_of(database_of(address)))
    pools.ensure_pool(promoted)
    return promoted


@pytest.mark.slow(12)
@pytest.mark.parametrize("publisher", ["lives", "dies"])
async def test_events_of_lost_commits_are_undone_when_a_stale_standby_is_promoted(publisher: str) -> None:
    require_postgres()
    with ProcessGroup() as group:
        pair = await start_pair(group)
        address = await copy_shard(pair.primary, "s")
        receiver = Receiver()
        async with Pools(size=6) as pools:
            pool = pools.ensure_pool(address)
            await add_tenant(pool)
            case = TenantCase(pool, TENANT)
            operations = {
                number: case.operation("create", f"r{number}", {}, request_id=f"request-{number}")
                for number in range(20)
            }
            feed = feed_of(pools, [address], [receiver.configured()])
            async with running(feed):
                await publishing(feed)
                await case.apply_each(*(operations[number] for number in range(10)))
                await receiver.until_count(10)
            # Nothing is published that a standby lacks which has kept up: this one is gone when the next feed looks.
            feed = feed_of(pools, [address], [receiver.configured()], "two")
            async with running(feed):
                await publishing(feed)
                await pair.standby.catch_up()
                await pair.standby.fall_behind()
                await fetch(pool, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                await case.apply_each(*(operations[number] for number in range(10, 20)))
                await receiver.until_count(20)
                delivered = {one.request_id: one.id for one in receiver.events}
                if publisher == "lives":
                    await fail_over(pair, pools, address)
                    lost = await lost_operations(case, operations)
                    await case.apply_each(*lost.values())
                    await receiver.until(lambda events: reapplied(events) >= {one.request_id for one in lost.values()})
            if publisher == "dies":
                address = await fail_over(pair, pools, address)
                lost = await lost_operations(case, operations)
                feed = feed_of(pools, [address], [receiver.configured()], "three")
                async with running(feed):
                    await publishing(feed)
                    await case.apply_each(*lost.values())
                    await receiver.until_count(20 + 10)
    gone = {delivered[one.request_id] for one in lost.values()}
    assert len(gone) == 10
    assert undone_by_bounds(receiver.events) == gone
    told = {one.undoes for one in receiver.events if one.kind is FeedKind.UNDONE and one.undoes is not None}
    told_before = {one.incarnation.id for one in receiver.of_bounds}
    if publisher == "lives":
        assert told == gone
        for one in receiver.events:
            if one.reapplies is not None:
                assert one.reapplies == delivered[one.request_id]
    else:
        assert receiver.events[-1].incarnation.id in told_before
        assert not told


@pytest.mark.slow(15)
async def test_incarnation_begins_where_an_earlier_filter_may_have_let_more_through(make_shard: ShardMaker) -> None:
    wide, narrow = (
        Receiver().configured(terms=DestinationTerms("receiver", FeedFilter(resource_types=chosen)))
        for chosen in (None, frozenset({"other"}))
    )
    address = await make_shard("s")
    async with Pools(size=6) as pools:
        pool = pools.ensure_pool(address)
        await add_tenant(pool)
        case = TenantCase(pool, TENANT)

        async def cursor_at_end() -> int:
            assert await poll_until(lambda: has_row(pool, AT_END_SQL), within_s=30)
            return int((await fetch(pool, "SELECT batch_id FROM feed_cursors"))[0]["batch_id"])

        async def begins_anew(batch_id: int) -> bool:
            """Return whether an incarnation begins when the cursor has gone back, in another run of the server."""
            incarnation = await fetch(pool, "SELECT incarnation FROM feed_shards")
            await fetch(pool, "UPDATE feed_cursors SET batch_id = $1, position = 32767", batch_id)
            await fetch(pool, "UPDATE shard_meta SET batch_offset = batch_offset + 1")
            assert await poll_until(lambda: has_row(pool, JUDGED_SQL), within_s=30)
            return await fetch(pool, "SELECT incarnation FROM feed_shards") != incarnation

        feed = feed_of(pools, [address], [wide])
        async with running(feed):
            await publishing(feed)
            await case.apply(case.operation("create", "r1", {}))
            begin = await cursor_at_end()
            assert not await begins_anew(begin)
        await fetch(pool, "UPDATE feed_cursors SET batch_id = 0")  # a killed publisher does not write what it sent last
        feed = feed_of(pools, [address], [narrow], "two")
        async with running(feed):
            await publishing(feed)
            await cursor_at_end()
            assert await begins_anew(0)
            begin = await cursor_at_end()
            assert not await begins_anew(begin)
            await case.apply(case.operation("update", "r1", {}))
            await cursor_at_end()
            feed.replace([wide])
            await case.apply(case.operation("update", "r1", {"n": 1}))
            await cursor_at_end()
            assert await begins_anew(begin)


async def has_row(pool: ShardPool, query: str) -> bool:
    return await fetch(pool, query) != []


def reapplied(events: Sequence[FeedEvent]) -> set[str]:
    return {
        one.request_id
        for one in events
        if one.reapplies is not None and one.kind is not FeedKind.UNDONE and one.request_id
    }


async def lost_operations(case: TenantCase, operations: Mapping[int, Operation]) -> dict[int, Operation]:
    there = await case.log()
    return {number: one for number, one in operations.items() if one.request_id not in there}
