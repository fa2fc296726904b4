"""The feed of real shards: which events come, in which order, and what becomes of them when something fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace
from support.feed.follower import Event, Follower
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running, until_passed
from support.moves.world import OTHER, TENANT_ID, World
from support.postgres.databases import ShardMaker, copy_shard, database_of
from support.postgres.plans import plan_of
from support.postgres.standby_pair import Pair, require_postgres, start_pair
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch, operation

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.feed import Feed
from simplu_worker.feed.rows import (
    NEW_S,
    CursorRow,
    FeedState,
    OtherPublisher,
    claim,
    find_publisher,
    load,
    read_log,
    write_cursors,
)
from simplu_worker.feed.types import END, Delivered, DestinationTerms, Place, RetryLater
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.log import key_of_id, mark_changes
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import ensure_schema
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers.moving.sides import clean_up
from simplu_worker.vocabulary import FeedBeginning, FeedData, FeedKind

NO_LAG_SQL = """
SELECT FROM feed_cursors WHERE behind_since IS NULL AND batch_id = (SELECT max(batch_id) FROM log_batches)
"""


@pytest.fixture
async def address(make_shard: ShardMaker) -> ShardAddress:
    return await make_shard("a")


@pytest.fixture
async def pools(address: ShardAddress) -> AsyncIterator[Pools]:
    async with Pools(size=6) as pools:
        pools.ensure_pool(address)
        yield pools


FeedMaker = Callable[..., Feed]


@pytest.fixture
def make_feed(pools: Pools, address: ShardAddress) -> FeedMaker:
    return lambda configured, name="one": feed_of(pools, [address], configured, name)


@pytest.fixture
async def case(pools: Pools, address: ShardAddress) -> TenantCase:
    pool = pools.ensure_pool(address)
    await add_tenant(pool)
    return TenantCase(pool, TENANT)


async def test_feed_sends_each_applied_change_when_it_is_committed(make_feed: FeedMaker, case: TenantCase) -> None:
    receiver = Receiver()
    feed = make_feed([receiver.configured()])
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
    assert sorted(receiver.told(), key=lambda one: one[1]) == [
        ("resource.created", subject),
        ("resource.patched", subject),
        ("resource.updated", subject),
        ("resource.deleted", subject),
        ("resource.changed", f"{case.tenant_id}/patient/r5"),
    ]
    first = receiver.events[0]
    assert (first.shard_id, first.incarnation) == ("a", receiver.resets[0].incarnation)
    assert first.tenant is not None
    assert (first.tenant.business_id, first.tenant.location_id) == TENANT
    assert first.request_id is not None
    assert first.data is None


@pytest.mark.slow
async def test_lag_ends_with_the_delivery_when_the_shard_is_idle(make_feed: FeedMaker, case: TenantCase) -> None:
    receiver = Receiver()
    feed = make_feed([receiver.configured()])

    async def is_at_rest() -> bool:
        return feed._shards["a"]._feeds["receiver"].is_awaited

    async def has_no_lag() -> bool:
        return await fetch(case.pool, NO_LAG_SQL) != []

    async with running(feed):
        await publishing(feed)
        assert await poll_until(is_at_rest, within_s=30)
        await case.apply(case.operation("create", "r1", {}))
        await receiver.until_count(1)
        assert await poll_until(has_no_lag, within_s=15)


async def test_shard_that_is_out_of_the_map_is_forgotten(
    make_feed: FeedMaker, address: ShardAddress, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.feed.LIST_S", 0.1)
    receiver = Receiver()
    publisher = make_feed([receiver.configured()], "publisher")

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
    return await fetch(pool, "SELECT FROM feed_cursors WHERE destination = $1", destination) != []


async def test_documents_are_read_by_bytes(
    make_feed: FeedMaker, case: TenantCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplu_worker.feed.events.READ_MAX_BYTES", 3000)
    monkeypatch.setattr("simplu_worker.feed.events.DOCUMENT_MAX_BYTES", 5000)
    receiver = Receiver()
    terms = DestinationTerms("receiver", begin=FeedBeginning.OLDEST, data=FeedData.CURRENT)
    sizes = {"r0": 5, "r1": 2000, "r2": 2000, "r3": 6000, "r4": 10, "r5": 4000, "r6": 4_000_000, "r7": 10}
    for name, size in sizes.items():
        for kind in ("create", "update"):
            await case.apply(case.operation(kind, name, {"text": "x" * size}))
    await case.apply(case.operation("delete", "r4"))
    feed = make_feed([receiver.configured(terms=terms)])
    async with running(feed):
        await receiver.until_count(2 * len(sizes) + 1)
    assert sorted(one.resource_id or "" for one in receiver.events) == sorted([*sizes, *sizes, "r4"])
    lengths = {one.resource_id: None if one.data is None else len(one.data) for one in receiver.events}
    members = len('{"text": ""}')
    assert lengths == {name: members + size if size < 5000 else 0 for name, size in sizes.items()} | {"r4": None}


async def test_feed_of_one_destination_goes_on_when_another_hangs(make_feed: FeedMaker, case: TenantCase) -> None:
    hanging, other = Receiver("hanging"), Receiver("other")
    hanging.hangs = True
    feed = make_feed([hanging.configured(), other.configured()])
    async with running(feed):
        await publishing(feed)
        await case.apply(*(case.operation("create", f"r{number}", {}) for number in range(3000)))
        await other.until_count(3000)
    assert not hanging.events


async def test_read_of_the_log_goes_on_behind_a_batch_whose_rest_is_longer_than_a_read(
    address: ShardAddress, case: TenantCase
) -> None:
    async with Pools(size=2) as pools:
        pool, other = pools.ensure_pool(address), ("other", "main")
        await add_tenant(pool, other)
        token = str(uuid4())
        assert await claim(pool, token=token, publisher="one")
        own, last = case.operation("create", "own", {}), case.operation("create", "last", {})
        rest = [operation("create", f"r{number}", {}, tenant=other) for number in range(9)]
        await case.apply(own, *rest)
        await case.apply(last)
        first, *_ = await read_log(pool, token, Place(0, 0), 1, END)
        await fetch(pool, "DELETE FROM log_rows WHERE tenant_no <> $1 RETURNING position", first.tenant_no)
        found = await read_log(pool, token, first.place, 3, END)
    assert (first.resource, [one.resource for one in found]) == (key_of_id("own"), [key_of_id("last")])


async def load_feed(pool: ShardPool, token: str, last_incarnation: str = "") -> tuple[FeedState, CursorRow]:
    state, rows = await load(pool, token, [DestinationTerms("crm")], last_incarnation=last_incarnation, noise="0000")
    return state, rows["crm"]


async def test_incarnation_begins_with_each_run_of_the_server(pools: Pools, address: ShardAddress) -> None:
    pool, token = pools.pool_of(address.shard_id), str(uuid4())
    assert await claim(pool, token=token, publisher="one")
    first, row = await load_feed(pool, token)
    assert (first.noted_run, row.incarnation) == (None, "")
    assert (await load_feed(pool, token))[0].incarnation == first.incarnation
    await fetch(pool, "UPDATE feed_shards SET server_run = 'before'")
    lost = f"{int(first.incarnation, 16) + 0x1000000:016x}"
    second, row = await load_feed(pool, token, lost)
    assert (second.incarnation > lost, row.incarnation) == (True, "")


async def test_cursor_is_written_in_the_run_of_the_server_in_which_its_events_were_read(
    pools: Pools, address: ShardAddress, case: TenantCase
) -> None:
    pool, token = pools.pool_of(address.shard_id), str(uuid4())
    await case.apply(case.operation("create", "r1", {}))
    assert await claim(pool, token=token, publisher="one")
    state, row = await load_feed(pool, token)
    server = state.server
    restarted = replace(server, started_at=server.started_at - timedelta(seconds=1))
    for other in (restarted, replace(server, timeline="00000009")):
        assert not await write_cursors(pool, token, other, [replace(row, place=Place(7, 0))])
    assert await write_cursors(pool, token, server, [replace(row, place=Place(8, 0))])
    assert not await write_cursors(pool, str(uuid4()), server, [replace(row, place=Place(9, 0))])
    assert await fetch(pool, "SELECT batch_id FROM feed_cursors") == [{"batch_id": 8}]


@pytest.mark.slow
async def test_shard_goes_by_the_file_of_its_publisher_when_replicas_have_different_files(
    make_feed: FeedMaker, case: TenantCase
) -> None:
    both, own = Receiver("both"), Receiver("own")
    created = DestinationTerms("both", kinds=frozenset({FeedKind.RESOURCE_CREATED}))
    own_file, other_file = [both.configured(), own.configured()], [both.configured(terms=created)]
    one, two, three = (
        make_feed(file, name) for file, name in ((own_file, "one"), (other_file, "two"), (own_file, "three"))
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
    assert sorted(own.told(), key=lambda one: one[1]) == everything
    everything.remove(("resource.updated", f"{case.tenant_id}/patient/r2"))
    assert sorted(both.told(), key=lambda one: one[1]) == everything


async def test_feed_tells_of_a_gap_when_the_log_has_lost_what_it_did_not_read(
    make_feed: FeedMaker, case: TenantCase
) -> None:
    receiver = Receiver()
    feed = make_feed([receiver.configured()])
    async with running(feed):
        await publishing(feed)
    await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(5)))
    await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '20 days'")
    await forget_log(case)
    lost = await fetch(case.pool, "SELECT batch_id FROM log_forgotten")
    await case.apply(case.operation("create", "kept", {}))
    feed = make_feed([receiver.configured()])
    async with running(feed):
        await receiver.until_count(2)
    assert len(receiver.resets) == 1  # of the cursor that began
    gap, kept = receiver.events
    assert (gap.kind, gap.subject) == (FeedKind.GAP, "a")
    assert gap.bounds is not None
    assert gap.bounds.through == lost[0]["batch_id"]
    assert gap.bounds.behind < lost[0]["batch_id"]
    assert kept.resource_id == "kept"


async def forget_log(case: TenantCase) -> None:
    await fetch(case.pool, QUERIES["forget_batches"], 864_000.0, 1000, datetime(1, 1, 2, tzinfo=UTC))


async def test_new_destination_begins_where_its_terms_say(make_feed: FeedMaker, case: TenantCase) -> None:
    await case.apply(case.operation("create", "old", {}))
    await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '2 hours'")
    await case.apply(case.operation("create", "new", {}))
    now, since, oldest = Receiver("now"), Receiver("since"), Receiver("oldest")
    hour_ago = DestinationTerms("since", begin=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    beginnings = [now.configured(), since.configured(terms=hour_ago), oldest.configured(begin=FeedBeginning.OLDEST)]
    feed = make_feed(beginnings)
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
    pool, token = pools.pool_of(address.shard_id), str(uuid4())
    assert await claim(pool, token=token, publisher="one")
    async with case.pool.transaction() as connection:
        await mark_changes(connection, [(case.tenant_id, "patient", "earlier")])
        await case.apply(case.operation("create", "later", {}))
        assert await read_log(pool, token, Place(0, 0), 9, END) == []
    found = await read_log(pool, token, Place(0, 0), 9, END)
    assert [one.resource for one in found] == [key_of_id("earlier"), key_of_id("later")]


@pytest.mark.parametrize("name", ["patient", "patients"])
async def test_feed_sends_what_its_filter_lets_through_with_the_row_when_it_is_wanted(
    make_feed: FeedMaker, case: TenantCase, name: str
) -> None:
    receiver = Receiver()
    terms = DestinationTerms("receiver", resource_types=frozenset({name}), data=FeedData.CURRENT)
    feed = make_feed([receiver.configured(terms=terms)])
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
