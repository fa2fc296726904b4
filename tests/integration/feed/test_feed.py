"""The feed of real shards: which events come, in which order, and what becomes of them when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running, until_passed
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch, operation

from simplu_local.processes.loopback import HOST, poll_until
from simplu_worker.feed.events import CLAIM_DELAY_MAX_S, LEASE_S
from simplu_worker.feed.feed import FIRST_PAUSE_S, Feed
from simplu_worker.feed.rows import (
    NEW_S,
    LoadedFeed,
    OtherPublisher,
    claim,
    find_publisher,
    load,
    read_log,
    write_cursors,
)
from simplu_worker.feed.types import (
    END,
    Delivered,
    Delivery,
    DestinationTerms,
    FeedEvent,
    FeedFilter,
    Place,
    Refused,
    RetryLater,
)
from simplu_worker.feed.window import TOTAL_EVENTS
from simplu_worker.shards.log import key_of_id, mark_changes
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import ensure_schema
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import FeedBeginning, FeedData, FeedKind, OnRefusal

# Of another publisher: it outlasts what a busy machine does meanwhile, and is not taken for that of a wrong clock.
ALMOST_TWO_LEASES = timedelta(seconds=2 * LEASE_S - 1)
NO_LAG_SQL = """
SELECT FROM feed_cursors WHERE behind_since IS NULL AND batch_id = (SELECT max(batch_id) FROM log_batches)
"""
LEASE_SQL = "SELECT extract(epoch FROM expires_at - clock_timestamp())::float AS left_s FROM feed_shards"


@pytest.fixture
async def address(make_shard: ShardMaker) -> ShardAddress:
    """Give a shard."""
    return await make_shard("a")


@pytest.fixture
async def pools(address: ShardAddress) -> AsyncIterator[Pools]:
    """Give the pools of a replica, which close before the shard goes."""
    async with Pools(size=6) as pools:
        pools.ensure_pool(address)
        yield pools


@pytest.fixture
async def case(pools: Pools, address: ShardAddress) -> TenantCase:
    """Give a tenant on that shard."""
    pool = pools.ensure_pool(address)
    await add_tenant(pool)
    return TenantCase(pool, TENANT)


async def test_feed_sends_each_applied_change_when_it_is_committed(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {"n": 1}), case.operation("update", "r9", {"n": 1}))
        await case.apply_each(
            case.operation("patch", "r1", {"n": 2}),
            case.operation("read", "r1"),
            case.operation("update", "r1", {"n": 3}),
            case.operation("delete", "r1"),
        )
        async with case.pool.transaction() as connection:
            await mark_changes(connection, [(case.tenant_id, "patient", "r5")])
        await receiver.until_count(5)
    subject = f"{case.tenant_id}/patient/r1"
    assert receiver.told() == [
        ("resource.created", subject),
        ("resource.patched", subject),
        ("resource.updated", subject),
        ("resource.deleted", subject),
        ("resource.changed", f"{case.tenant_id}/patient/r5"),
    ]
    first = receiver.events[0]
    assert (first.shard_id, first.incarnation.bounds.split(":")[0]) == ("a", first.incarnation.id)
    assert first.tenant is not None
    assert (first.tenant.business_id, first.tenant.location_id) == TENANT
    assert first.request_id is not None
    assert first.data is None


@pytest.mark.slow
@pytest.mark.parametrize("seen_by", ["the publisher", "the next publisher"])
async def test_lag_ends_with_the_delivery_when_the_shard_is_idle(
    pools: Pools, address: ShardAddress, case: TenantCase, seen_by: str
) -> None:
    receiver = Receiver()
    feed = feed_of(pools, [address], [receiver.configured()])

    async def is_at_rest() -> bool:
        return feed._shards["a"]._feeds["receiver"].is_awaited

    async def has_no_lag() -> bool:
        return await fetch(case.pool, NO_LAG_SQL) != []

    async with running(feed):
        await publishing(feed)
        if seen_by == "the publisher":
            assert await poll_until(is_at_rest, within_s=30)
        await case.apply(case.operation("create", "r1", {}))
        await receiver.until_count(1)
        if seen_by == "the publisher":
            assert await poll_until(has_no_lag, within_s=15)
    if seen_by == "the next publisher":
        await fetch(case.pool, "UPDATE feed_cursors SET behind_since = now()")  # by one that was killed
        async with running(feed_of(pools, [address], [receiver.configured()], "two")):
            assert await poll_until(has_no_lag, within_s=15)


async def test_first_connections_to_shards_are_opened_at_a_pace() -> None:
    opened: list[asyncio.StreamWriter] = []
    ending = asyncio.Event()

    async def stay_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        await ending.wait()
        writer.close()

    async def some_are_open() -> bool:
        return len(opened) >= 5

    server = await asyncio.start_server(stay_silent, HOST, 0)
    url = f"postgresql://worker@{HOST}:{server.sockets[0].getsockname()[1]}/shard"
    addresses = [ShardAddress(f"shard-{number}", url) for number in range(100)]
    began_at = loop_time()
    async with server, Pools(size=1) as pools, running(feed_of(pools, addresses, [Receiver().configured()])):
        assert await poll_until(some_are_open, within_s=10)
        count, most = len(opened), (loop_time() - began_at) / FIRST_PAUSE_S
        ending.set()
    assert count <= most


async def test_shard_that_is_out_of_the_map_is_forgotten(
    pools: Pools, address: ShardAddress, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.feed.LIST_S", 0.1)
    receiver = Receiver()
    publisher = feed_of(pools, [address], [receiver.configured()], "publisher")

    async def until_shown(feed: Feed, count: int) -> None:
        async def are_shown() -> bool:
            return [one.shard_count for one in feed.views()] == [count]

        assert await poll_until(are_shown, within_s=20)

    async with Pools(size=2) as own, running(publisher):
        await publishing(publisher)
        other = feed_of(own, [address], [receiver.configured()], "other")
        async with running(other):
            await until_shown(other, 1)
            for pool in own.retire([address.shard_id]):
                await pool.drain()
            await until_shown(other, 0)
            own.restore([address.shard_id])
            await until_shown(other, 1)


@pytest.mark.slow(6)
async def test_feed_of_a_shard_that_gets_its_tables_has_all_changes(
    make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.rows.NEW_S", NEW_S)
    receiver, later = Receiver(), Receiver("later")
    has_looked = asyncio.Event()

    async def look(pool: ShardPool) -> OtherPublisher | None:
        found = await find_publisher(pool)
        has_looked.set()
        return found

    monkeypatch.setattr("simplu_worker.feed.shard_feed.find_publisher", look)
    async with Pools(size=6) as pools:
        pool = pools.ensure_pool(await make_shard("new", is_empty=True))
        feed = feed_of(pools, [pool.address], [receiver.configured()])
        async with running(feed):
            async with asyncio.timeout(30):
                await has_looked.wait()
            await ensure_schema(pool)
            await add_tenant(pool)
            case = TenantCase(pool, TENANT)
            await case.apply(case.operation("create", "r1", {}))
            await receiver.until_count(1, within_s=20)
            feed.replace([receiver.configured(), later.configured()])  # which begins now, as the shard is published
            assert await poll_until(lambda: has_begun(pool, "later"), within_s=20)
            await case.apply(case.operation("create", "r2", {}))
            await later.until_count(1)
    assert [one.resource_id for one in receiver.events[:1]] == ["r1"]
    assert [one.resource_id for one in later.events] == ["r2"]


async def has_begun(pool: ShardPool, destination: str) -> bool:
    """Return whether the shard has a cursor of *destination*."""
    return await fetch(pool, "SELECT FROM feed_cursors WHERE destination = $1", destination) != []


async def test_publisher_is_replaced_where_the_clock_of_the_shard_has_gone_back(
    pools: Pools, address: ShardAddress
) -> None:
    pool = pools.pool_of(address.shard_id)
    assert await claim(pool, token=str(uuid4()), publisher="gone", noise="0000")
    assert not await claim(pool, token=str(uuid4()), publisher="two", noise="0000")
    await fetch(pool, "UPDATE feed_shards SET expires_at = expires_at + interval '1 hour'")
    feed = feed_of(pools, [address], [Receiver().configured()])
    async with running(feed):
        await publishing(feed)


async def test_documents_are_read_by_bytes(
    pools: Pools, address: ShardAddress, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.rows.READ_MAX_BYTES", 3000)
    monkeypatch.setattr("simplu_worker.feed.rows.DOCUMENT_MAX_BYTES", 5000)
    receiver = Receiver()
    terms = DestinationTerms("receiver", begin=FeedBeginning.OLDEST, data=FeedData.CURRENT)
    sizes = [10, 2000, 2000, 6000, 10, 4000, 10, 4_000_000, 10]
    for number, size in enumerate(sizes):
        await case.apply(
            case.operation("create", f"r{number}", {"text": "x" * size}),
            case.operation("update", f"r{number}", {"text": "y" * size}),
        )
    await case.apply(case.operation("update", "r0", {"text": "z" * 5}), case.operation("delete", "r4"))
    feed = feed_of(pools, [address], [receiver.configured(terms=terms)])
    async with running(feed):
        await receiver.until_count(2 * len(sizes) + 2)
    assert [one.resource_id for one in receiver.events] == [
        *(f"r{number}" for number in range(len(sizes)) for _ in range(2)),
        "r0",
        "r4",
    ]
    lengths = {one.resource_id: None if one.data is None else len(one.data) for one in receiver.events}
    members = len('{"text": ""}')
    assert lengths == {
        "r0": members + 5,
        "r4": None,
        **{
            f"r{number}": members + size if size < 5000 else 0
            for number, size in enumerate(sizes)
            if number not in (0, 4)
        },
    }


@pytest.mark.slow
async def test_feed_goes_on_where_it_was_when_it_is_restarted(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    first, second = Receiver(), Receiver()
    feed = feed_of(pools, [address], [first.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(20)))
        await first.until_count(20)
    await case.apply_each(*(case.operation("create", f"s{number}", {}) for number in range(20)))
    feed = feed_of(pools, [address], [second.configured()], "two")
    async with running(feed):
        await second.until_count(20)
    assert {one.id for one in first.events}.isdisjoint(one.id for one in second.events)
    assert [one.resource_id for one in second.events] == [f"s{number}" for number in range(20)]


@pytest.mark.slow
async def test_feed_sends_each_event_once_while_it_lives_when_one_key_is_refused_for_a_while(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda event: RetryLater("busy") if is_down and event.resource_id == "r3" else Delivered()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        for kind in ("create", "update"):
            await case.apply(*(case.operation(kind, f"r{number}", {}) for number in range(8)))
        await receiver.until_count(14)
        rows = await fetch(case.pool, "SELECT batch_id FROM feed_cursors")
        held_at = int(receiver.events[0].position.split("-")[0])
        assert rows[0]["batch_id"] <= held_at
        is_down = False
        await receiver.until_count(16)
    assert len(receiver.events) == 16
    assert [one.kind for one in receiver.events if one.resource_id == "r3"] == [
        FeedKind.RESOURCE_CREATED,
        FeedKind.RESOURCE_UPDATED,
    ]


@pytest.mark.slow(4)
async def test_feed_ends_when_it_is_cancelled_while_it_loses_the_row(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    is_called, is_cancelled = asyncio.Event(), asyncio.Event()

    def answer(_: FeedEvent) -> Delivery:
        is_called.set()
        return RetryLater("later")

    class SlowToEnd(Receiver):
        async def publish(self, events: Sequence[FeedEvent]) -> Sequence[Delivery]:
            try:
                await super().publish(events)
                return await asyncio.Future()
            finally:
                is_cancelled.set()
                await asyncio.sleep(0.5)

    receiver = SlowToEnd()
    receiver.answer = answer
    feed = feed_of(pools, [address], [receiver.configured()])
    task = asyncio.create_task(feed.run(asyncio.Event()))
    async with asyncio.timeout(20):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await is_called.wait()
        await fetch(case.pool, QUERIES["take_feed"])
        await is_cancelled.wait()
    task.cancel()
    assert await asyncio.wait([task], timeout=10) == ({task}, set())


@pytest.mark.slow(5)
async def test_feed_ends_when_one_shard_does_not_take_its_row_back(make_shard: ShardMaker) -> None:
    async with Pools(size=6) as pools:
        hanging, other = [pools.ensure_pool(await make_shard(name)) for name in ("hanging", "other")]
        feed, stopping = feed_of(pools, [hanging.address, other.address], [Receiver().configured()]), asyncio.Event()
        task = asyncio.create_task(feed.run(stopping))
        await publishing(feed, 2)
        async with hanging.transaction() as connection:
            await connection.execute("SELECT FROM feed_shards FOR UPDATE")
            stopping.set()
            assert await asyncio.wait([task], timeout=30) == ({task}, set())
        task.result()
        assert await fetch(other, "SELECT FROM feed_shards WHERE expires_at <= clock_timestamp()") == [{}]


@pytest.mark.slow(5)
async def test_feed_drops_the_memories_that_nobody_needs(
    pools: Pools, address: ShardAddress, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.feed.MEASURE_S", 0.1)
    one, two = Receiver("one"), Receiver("two")
    feed = feed_of(pools, [address], [one.configured(), two.configured()])

    async def until_users(count: int) -> None:
        async def are_so_many() -> bool:
            return f"Budget({TOTAL_EVENTS}, users={count})" in repr(feed)

        assert await poll_until(are_so_many, within_s=20)

    async def is_lost() -> bool:
        return feed.published_count == 0

    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await asyncio.gather(one.until_count(1), two.until_count(1))
        await until_users(2)
        feed.replace([one.configured()])
        await case.apply(case.operation("create", "r2", {}))
        await one.until_count(2)
        await until_users(2)  # the other one may come back, and is to be told what the shard has lost meanwhile
        await fetch(
            case.pool,
            "UPDATE feed_shards SET token = gen_random_uuid(), expires_at = clock_timestamp() + $1",
            ALMOST_TWO_LEASES,
        )
        assert await poll_until(is_lost, within_s=20)
        monkeypatch.setattr("simplu_worker.feed.window.KEPT_S", 0.1)
        await until_users(0)
        assert feed.published_count == 0


@pytest.mark.slow(8)
async def test_cursor_moves_on_when_a_destination_is_back_on_a_shard_at_rest(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda _: RetryLater("down") if is_down else Delivered()
    feed = feed_of(pools, [address], [receiver.configured()])

    async def has_moved_on() -> bool:
        query = "SELECT FROM feed_cursors JOIN log_batches USING (batch_id) WHERE position >= 0"
        return await fetch(case.pool, query) != []

    async def is_at_rest() -> bool:
        return feed._shards["a"]._feeds["receiver"].is_awaited

    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await receiver.until(lambda _: receiver.call_count > 0)
        assert await poll_until(is_at_rest, within_s=30)
        is_down = False
        await receiver.until_count(1)
        assert await poll_until(has_moved_on, within_s=20)


async def test_feed_of_one_destination_goes_on_when_another_one_hangs(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    hanging, other = Receiver("hanging"), Receiver("other")
    hanging.hangs = True
    feed = feed_of(pools, [address], [hanging.configured(), other.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply(*(case.operation("create", f"r{number}", {}) for number in range(3000)))
        await other.until_count(3000)
    assert not hanging.events


@pytest.mark.slow(7)
async def test_feed_sends_the_rest_of_a_batch_when_its_window_was_full_for_long(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda _: RetryLater("down", 0.1) if is_down else Delivered()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply(*(case.operation("create", f"r{number}", {}) for number in range(2100)))
        await asyncio.sleep(5)  # it reads less and less often, then not at all
        is_down = False
        await receiver.until_count(2100)


@pytest.mark.parametrize("is_of_tenant", [False, True])
async def test_read_of_the_log_goes_on_behind_a_batch_whose_rest_is_longer_than_a_read(
    address: ShardAddress, case: TenantCase, *, is_of_tenant: bool
) -> None:
    async with Pools(size=2) as pools:
        pool, other = pools.ensure_pool(address), ("other", "main")
        await add_tenant(pool, other)
        token = str(uuid4())
        assert await claim(pool, token=token, publisher="one", noise="0000")
        own, last = case.operation("create", "own", {}), case.operation("create", "last", {})
        rest = [operation("create", f"r{number}", {}, tenant=other) for number in range(9)]
        await case.apply(own, *rest)
        await case.apply(last)
        first, *_ = await read_log(pool, token, Place(0, 0), 1, END)
        if not is_of_tenant:
            await fetch(pool, "DELETE FROM log_rows WHERE tenant_no <> $1 RETURNING position", first.tenant_no)
        tenant_no = first.tenant_no if is_of_tenant else None
        found = await read_log(pool, token, first.place, 3, END, tenant_no=tenant_no)
    assert (first.resource, [one.resource for one in found]) == (key_of_id("own"), [key_of_id("last")])


async def load_feed(pool: ShardPool, token: str, *, last_incarnation: str = "") -> LoadedFeed:
    """Begin to publish, with a destination, behind whose cursor nothing was published."""
    terms, complete_from = [DestinationTerms("crm")], {"crm": Place(0, 0)}
    return await load(
        pool,
        token,
        terms,
        remembered={},
        complete_from=complete_from,
        last_incarnation=last_incarnation,
        noise="0000",
    )


async def test_incarnation_begins_when_the_server_has_lost_that_the_first_one_was_published(
    pools: Pools, address: ShardAddress
) -> None:
    pool, token = pools.ensure_pool(address), str(uuid4())
    await claim(pool, token=token, publisher="a", noise="0001")
    first = await load_feed(pool, token)
    assert not first.is_new
    await fetch(pool, "UPDATE feed_shards SET server_run = NULL")
    await fetch(pool, "DELETE FROM feed_cursors")

    later = await load_feed(pool, token, last_incarnation=first.state.incarnation)

    assert later.is_new
    assert later.state.incarnation > first.state.incarnation


async def test_incarnation_begins_when_the_one_of_the_publisher_is_lost(pools: Pools, address: ShardAddress) -> None:
    pool, token = pools.pool_of(address.shard_id), str(uuid4())
    assert await claim(pool, token=token, publisher="one", noise="0000")
    first = await load_feed(pool, token)
    await fetch(pool, "UPDATE feed_shards SET server_run = 'before'")
    assert not (await load_feed(pool, token, last_incarnation=first.state.incarnation)).is_new
    await fetch(pool, "UPDATE feed_shards SET server_run = 'before'")
    lost = f"{int(first.state.incarnation, 16) + 0x1000000:x}"
    later = await load_feed(pool, token, last_incarnation=lost.zfill(16))
    assert (later.is_new, later.state.incarnation > lost.zfill(16)) == (True, True)
    await fetch(pool, "UPDATE feed_shards SET server_run = NULL, expires_at = now() - interval '1 s'")
    assert await claim(pool, token=token, publisher="one", noise="ffff")
    assert [row["incarnation"][-4:] for row in await fetch(pool, "SELECT incarnation FROM feed_shards")] == ["ffff"]


async def test_cursor_is_written_in_the_run_of_the_server_in_which_its_events_were_read(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    pool, token = pools.pool_of(address.shard_id), str(uuid4())
    await case.apply(case.operation("create", "r1", {}))
    assert await claim(pool, token=token, publisher="one", noise="0000")
    loaded = await load_feed(pool, token)
    row, server = loaded.cursors["crm"], loaded.state.server
    restarted = replace(server, started_at=server.started_at - timedelta(seconds=1))
    for other in (restarted, replace(server, timeline="00000009")):
        assert not await write_cursors(pool, token, other, [replace(row, place=Place(7, 0))])
    assert await write_cursors(pool, token, server, [replace(row, place=Place(8, 0))])
    assert not await write_cursors(pool, str(uuid4()), server, [replace(row, place=Place(9, 0))])
    assert await fetch(pool, "SELECT batch_id FROM feed_cursors") == [{"batch_id": 8}]


@pytest.mark.slow(14)
async def test_feed_is_taken_over_within_ten_seconds_when_its_publisher_is_killed(
    make_shard: ShardMaker,
) -> None:
    address = await make_shard("a")
    first, second = Receiver(), Receiver()
    async with Pools(size=4) as pools, Pools(size=4) as others:
        pool = pools.ensure_pool(address)
        await add_tenant(pool)
        case = TenantCase(pool, TENANT)
        one, two = (
            feed_of(pools, [address], [first.configured()]),
            feed_of(others, [address], [second.configured()], "two"),
        )
        async with running(one) as killed:
            await publishing(one)
            async with running(two):
                await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(5)))
                await first.until_count(5)
                await until_passed(pool)
                shard = one._shards["a"]
                shard._token = None  # so that its end does not give the row back, as at a kill
                killed.cancel()
                await case.apply(case.operation("create", "last", {}))
                (row,) = await fetch(pool, LEASE_SQL)
                assert row["left_s"] + CLAIM_DELAY_MAX_S < 10
                began_at = asyncio.get_running_loop().time()
                await second.until_count(1)
                # Behind the lease it takes some tenths of a second, and longer on a busy machine.
                assert asyncio.get_running_loop().time() - began_at < row["left_s"] + 5
                assert [event.resource_id for event in second.events] == ["last"]


@pytest.mark.slow
async def test_shard_goes_by_the_file_of_its_publisher_when_replicas_have_different_files(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    """As while the files are changed one after the other: a destination that its publisher does not have waits.

    A filter leaves out what its publisher reads, nothing else.
    """
    both, own = Receiver("both"), Receiver("own")
    created = DestinationTerms("both", filter=FeedFilter(kinds=frozenset({FeedKind.RESOURCE_CREATED})))
    own_file, other_file = [both.configured(), own.configured()], [both.configured(terms=created)]
    one, two, three = (
        feed_of(pools, [address], file, name)
        for file, name in ((own_file, "one"), (other_file, "two"), (own_file, "three"))
    )

    async def change(resource: str) -> None:
        await case.apply_each(case.operation("create", resource, {}), case.operation("update", resource, {"n": 1}))

    async with running(one) as publisher:
        await publishing(one)
        async with running(two):
            await change("r1")
            await asyncio.gather(both.until_count(2), own.until_count(2))
            assert two.published_count == 0
            publisher.cancel()
            await publishing(two)
            await change("r2")
            await both.until_count(3)
            await until_passed(case.pool, "both")
    async with running(three):
        await change("r3")
        await asyncio.gather(both.until_count(5), own.until_count(6))

    kinds = ("resource.created", "resource.updated")
    everything = [(kind, f"{case.tenant_id}/patient/r{number}") for number in range(1, 4) for kind in kinds]
    assert own.told() == everything
    everything.remove(("resource.updated", f"{case.tenant_id}/patient/r2"))
    assert both.told() == everything


@pytest.mark.slow
async def test_publisher_writes_nothing_when_another_one_has_the_row(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    feed = feed_of(pools, [address], [receiver.configured()])

    async def is_lost() -> bool:
        return feed.published_count == 0

    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await receiver.until_count(1)
        await until_passed(case.pool)
        before = await fetch(case.pool, "SELECT batch_id, position FROM feed_cursors")
        await fetch(
            case.pool,
            "UPDATE feed_shards SET token = gen_random_uuid(), expires_at = clock_timestamp() + $1",
            ALMOST_TWO_LEASES,
        )
        await case.apply(case.operation("create", "r2", {}))
        assert await poll_until(is_lost, within_s=20)
        assert await fetch(case.pool, "SELECT batch_id, position FROM feed_cursors") == before
        await fetch(case.pool, "UPDATE feed_shards SET expires_at = clock_timestamp()")
        await receiver.until_count(2)


@pytest.mark.slow
async def test_refused_event_is_kept_and_the_feed_goes_on_when_its_tries_are_over(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    tries = 0

    def answer(event: object) -> Delivered | Refused:
        nonlocal tries
        if getattr(event, "request_id", None) == "bad":
            tries += 1
            return Refused("400")
        return Delivered()

    receiver.answer = answer
    feed = feed_of(pools, [address], [receiver.configured(terms=DestinationTerms("receiver", tries=2))])
    async with running(feed):
        await publishing(feed)
        await case.apply_each(
            case.operation("create", "r1", {}, request_id="bad"), case.operation("update", "r1", {"n": 1})
        )
        await receiver.until_count(1)
        assert tries == 2
        kept = await fetch(case.pool, "SELECT event->>'request_id' AS request_id, error FROM feed_refusals")
    assert kept == [{"request_id": "bad", "error": "400"}]
    assert receiver.told() == [("resource.updated", f"{case.tenant_id}/patient/r1")]


@pytest.mark.slow
async def test_feed_stops_on_the_shard_when_an_event_is_refused_and_the_terms_say_so(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    receiver.answer = lambda _: Refused("400")
    terms = DestinationTerms("receiver", tries=1, on_refusal=OnRefusal.STOP)
    feed = feed_of(pools, [address], [receiver.configured(terms=terms)])
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        async with asyncio.timeout(10):
            while (await stopped(case))[0] != "refused":  # noqa: ASYNC110  # a row on the shard
                await asyncio.sleep(0.1)
        calls = receiver.call_count
        await case.apply(case.operation("create", "r2", {}))
        await asyncio.sleep(1)
        assert receiver.call_count == calls


async def test_feed_tells_of_a_gap_when_the_log_has_lost_what_it_did_not_read(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
    await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(5)))
    await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '20 days'")
    await forget_log(case)
    lost = await fetch(case.pool, "SELECT batch_id FROM log_forgotten")
    await case.apply(case.operation("create", "kept", {}))
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await receiver.until_count(2)
    assert len(receiver.of_bounds) == 1  # of the cursor that began
    gap, kept = receiver.events
    assert (gap.kind, gap.subject) == (FeedKind.GAP, "a")
    assert gap.bounds is not None
    assert gap.bounds.through == lost[0]["batch_id"]
    assert gap.bounds.behind < lost[0]["batch_id"]
    assert kept.resource_id == "kept"


async def stopped(case: TenantCase) -> list[str | None]:
    """Return why the destinations have stopped."""
    return [row["stopped"] for row in await fetch(case.pool, "SELECT stopped FROM feed_cursors")]


async def forget_log(case: TenantCase) -> None:
    """Delete batches older than ten days, as the retention does."""
    await fetch(case.pool, QUERIES["forget_batches"], 864_000.0, 1000, datetime(1, 1, 2, tzinfo=UTC))


async def test_new_destination_begins_where_its_terms_say(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    await case.apply(case.operation("create", "old", {}))
    await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '2 hours'")
    await case.apply(case.operation("create", "new", {}))
    now, since, oldest = Receiver("now"), Receiver("since"), Receiver("oldest")
    hour_ago = DestinationTerms("since", begin=datetime.now(UTC) - timedelta(hours=1))
    feed = feed_of(
        pools,
        [address],
        [now.configured(), since.configured(terms=hour_ago), oldest.configured(begin=FeedBeginning.OLDEST)],
    )
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "newest", {}))
        await oldest.until_count(3)
        await since.until_count(2)
        await now.until_count(1)
    assert [one.resource_id for one in now.events] == ["newest"]
    assert [one.resource_id for one in since.events] == ["new", "newest"]
    assert [one.resource_id for one in oldest.events] == ["old", "new", "newest"]


@pytest.mark.slow
async def test_feed_waits_for_a_running_transaction_when_a_later_one_has_committed(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        async with case.pool.transaction() as connection:
            await mark_changes(connection, [(case.tenant_id, "patient", "earlier")])
            await case.apply(case.operation("create", "later", {}))
            await asyncio.sleep(1)
            assert not receiver.events
        await receiver.until_count(2)
    assert [one.resource_id for one in receiver.events] == ["earlier", "later"]


@pytest.mark.parametrize("name", ["patient", "patients"])
async def test_feed_sends_what_its_filter_lets_through_with_the_row_when_it_is_wanted(
    pools: Pools, address: ShardAddress, case: TenantCase, name: str
) -> None:
    receiver = Receiver()
    wanted = FeedFilter(resource_types=frozenset({name}))
    terms = DestinationTerms("receiver", filter=wanted, data=FeedData.CURRENT)
    feed = feed_of(pools, [address], [receiver.configured(terms=terms)])
    async with running(feed):
        await publishing(feed)
        await case.apply(
            case.operation("create", "r1", {"n": 1}, resource_type="patients"),
            case.operation("create", "r1", {"n": 1}, resource_type="invoice"),
            case.operation("create", "r2", {"n": 1}),
            case.operation("delete", "r2"),
        )
        await receiver.until_count(3)
    assert {one.resource_type for one in receiver.events} == {"patient"}
    assert [(one.resource_id, one.data) for one in receiver.events] == [
        ("r1", b'{"n": 1}'),
        ("r2", None),
        ("r2", None),
    ]


@pytest.mark.slow
async def test_destination_out_of_the_file_begins_no_incarnation_until_it_is_back(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    kept, dropped = Receiver("kept"), Receiver("dropped")
    feed = feed_of(pools, [address], [kept.configured(), dropped.configured()])

    async def has_left() -> bool:
        return await fetch(case.pool, "SELECT FROM feed_cursors WHERE NOT is_in_file") != []

    async def is_known() -> bool:
        return feed._shards["a"]._memories["kept"].known_from is not None

    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await asyncio.gather(kept.until_count(1), dropped.until_count(1))
        feed.replace([kept.configured()])
        assert await poll_until(has_left, within_s=20)  # a read that is under way is for both
        await case.apply(case.operation("create", "r2", {}))
        await kept.until_count(2)
        assert await poll_until(is_known, within_s=20)
        # As at a restart of the server: another run than the noted ones, and the publisher lives through it.
        await fetch(case.pool, "UPDATE feed_shards SET server_run = 'before'")
        await fetch(case.pool, "UPDATE feed_cursors SET server_run = 'before'")
        feed.replace([kept.configured()])
        await case.apply(case.operation("create", "r3", {}))
        await kept.until_count(3)
        first, _, after = kept.events
        assert after.incarnation == first.incarnation
    feed = feed_of(pools, [address], [kept.configured(), dropped.configured()], "two")
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r4", {}))
        await dropped.until_count(4)
    assert [one.resource_id for one in dropped.events] == ["r1", "r2", "r3", "r4"]
    back = dropped.events[1].incarnation
    assert back.id > first.incarnation.id
    assert back.bounds.startswith(f"{back.id}:")
    assert dropped.of_bounds[-1].incarnation == back


async def live_through_failover(feed: Feed, receiver: Receiver, case: TenantCase) -> None:
    """Have the publisher find another run of the server, as at a failover that it lives through."""

    async def is_judged() -> bool:
        return not await fetch(case.pool, "SELECT FROM feed_shards WHERE server_run = 'before'")

    for table in ("feed_shards", "feed_cursors"):
        await fetch(case.pool, f"UPDATE {table} SET server_run = 'before'")
    feed.replace([receiver.configured()])
    assert await poll_until(is_judged, within_s=30)


@pytest.mark.slow
async def test_publisher_does_not_know_all_that_came_before_it_has_read_to_the_end(
    pools: Pools, address: ShardAddress, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.shard_feed.READ_MAX", 2)
    await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(5)))
    await case.apply(operation("create", "wanted", {}, resource_type="invoice"))
    receiver = Receiver()
    receiver.answer = lambda _: RetryLater("waits")
    wanted = FeedFilter(resource_types=frozenset({"invoice"}))
    terms = DestinationTerms("receiver", begin=FeedBeginning.OLDEST, filter=wanted)
    feed = feed_of(pools, [address], [receiver.configured(terms=terms)])

    async def is_asked() -> bool:
        return receiver.call_count > 2

    async def is_known() -> bool:
        return feed._shards["a"]._memories["receiver"].known_from is not None

    async with running(feed):
        await publishing(feed)
        assert await poll_until(is_asked, within_s=10)
        assert not await is_known()
        receiver.answer = lambda _: Delivered()
        assert await poll_until(is_known, within_s=10)


@pytest.mark.slow(2)
async def test_publisher_begins_an_incarnation_when_it_has_not_sent_again_what_the_one_before_had(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()
    receiver.answer = lambda event: RetryLater("waits") if event.resource_id == "r1" else Delivered()
    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in (1, 2)))
        await receiver.until_count(1)
    receiver.answer = lambda _: RetryLater("down")
    feed = feed_of(pools, [address], [receiver.configured()], "two")
    async with running(feed):
        await publishing(feed)
        await live_through_failover(feed, receiver, case)
        receiver.answer = lambda _: Delivered()
        await receiver.until_count(2)
        await receiver.until(lambda events: len(events) == 3)
    before, *after = receiver.events
    assert before.resource_id == "r2"
    assert {one.resource_id for one in after} == {"r1", "r2"}
    assert {one.incarnation for one in after} == {receiver.of_bounds[-1].incarnation}
    assert after[0].incarnation.id > before.incarnation.id


@pytest.mark.slow(4)
async def test_publisher_remembers_an_event_that_it_has_sent_when_no_answer_came(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    receiver = Receiver()

    async def is_called_again() -> bool:
        return receiver.call_count > count

    feed = feed_of(pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "r1", {}))
        await receiver.until_count(1)
        receiver.hangs, count = True, receiver.call_count
        await case.apply(case.operation("create", "r2", {}))
        assert await poll_until(is_called_again, within_s=10)
        receiver.hangs = False
        # The last batch is lost.
        await fetch(case.pool, "DELETE FROM log_rows WHERE batch_id = (SELECT max(batch_id) FROM log_batches)")
        await fetch(case.pool, "DELETE FROM log_batches WHERE batch_id = (SELECT max(batch_id) FROM log_batches)")
        await live_through_failover(feed, receiver, case)
        await case.apply(case.operation("create", "r3", {}))
        await receiver.until(lambda events: any(one.resource_id == "r3" for one in events))
    first, *undone, last = receiver.events
    assert [one.kind for one in undone] == [FeedKind.UNDONE]
    assert last.incarnation.id > first.incarnation.id
