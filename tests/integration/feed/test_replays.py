"""Replays on real shards: which events come again when it has an end, a publisher is killed, or a tenant waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.moves.world import OTHER, TENANT_ID, World
from support.postgres.tenant_cases import TenantCase, fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.feed.steering import replay
from simplu_worker.feed.types import Delivered, RetryLater

UP_TO_R5_SQL = "SELECT FROM feed_cursors JOIN log_rows USING (batch_id) WHERE resource = simplu_key('r5')"
HELD_SQL = """
SELECT FROM feed_cursors WHERE held <> '[]' AND position >= 0 AND batch_id = (SELECT max(batch_id) FROM log_batches)
"""
AGAIN_SQL = "SELECT FROM feed_cursors WHERE again_through IS NOT NULL"


@pytest.mark.slow(12)
@pytest.mark.parametrize(
    ("has_end", "run_is_new", "left_out"), [(False, False, ()), (True, False, ("r3", "r4")), (True, True, ())]
)
async def test_replay_loses_nothing_when_the_publisher_is_killed_behind_it(
    world: World, *, has_end: bool, run_is_new: bool, left_out: tuple[str, ...]
) -> None:
    """The next one sends all of it, and what was not delivered, under the same ids.

    Where the replay has an end, the rest comes only behind a promotion, which may have undone it.
    """
    address, case = world.shard_pools["a"].address, world.case("a")
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda event: RetryLater("busy") if is_down and event.resource_id == "r5" else Delivered()
    names = [f"r{number}" for number in range(10)]
    feed = feed_of(world.pools, [address], [receiver.configured()])
    async with running(feed) as publisher:
        await publishing(feed, 2)
        await case.apply(case.operation("create", "before", {}))
        await receiver.until_count(1)
        since = datetime.now(UTC)
        await case.apply_each(*(case.operation("create", name, {}) for name in names[:3]))
        until = datetime.now(UTC)
        await case.apply_each(*(case.operation("create", name, {}) for name in names[3:]))
        await receiver.until_count(10)

        async def is_noted() -> bool:
            return await fetch(case.pool, UP_TO_R5_SQL) != []

        assert await poll_until(is_noted, within_s=10)
        before = {one.resource_id: one.id for one in receiver.events}
        plan = await replay(case.pool, "receiver", since, until if has_end else None, apply=True)
        publisher.cancel()
    assert plan is not None
    assert plan.change_count == (3 if has_end else 6)
    if run_is_new:
        await fetch(case.pool, "UPDATE feed_cursors SET server_run = 'another'")
    is_down = False
    receiver.events.clear()
    feed = feed_of(world.pools, [address], [receiver.configured()], "two")
    async with running(feed):
        await publishing(feed)
        await case.apply(case.operation("create", "new", {}))
        await receiver.until(lambda events: "new" in {one.resource_id for one in events})

        async def is_over() -> bool:
            return await fetch(case.pool, AGAIN_SQL) == []

        assert await poll_until(is_over, within_s=10)
    again = {one.resource_id: one.id for one in receiver.events}
    assert list(again) == [name for name in [*names, "new"] if name not in left_out]
    assert len(receiver.events) == len(again)
    assert before.items() - again.items() == {(name, before[name]) for name in ("before", *left_out)}


@pytest.mark.slow(12)
async def test_replay_with_an_end_keeps_a_tenant_that_waits_for_its_source(world: World) -> None:
    receiver = Receiver()
    is_down = True
    receiver.answer = lambda event: RetryLater("down", 0.2) if is_down and event.shard_id == "a" else Delivered()
    source, target = world.case("a"), world.case("b")
    other = TenantCase(world.shard_pools["b"], OTHER)
    feed = feed_of(world.pools, [pool.address for pool in world.shard_pools.values()], [receiver.configured()])
    async with running(feed):
        await publishing(feed, 2)
        since = datetime.now(UTC)
        await other.apply(other.operation("create", "o0", {}))
        until = datetime.now(UTC)
        await other.apply(other.operation("create", "o1", {}))
        await source.apply(source.operation("create", "r1", {}))
        await world.move()
        await target.apply(target.operation("update", "r1", {"n": 1}))
        await other.apply(other.operation("create", "o2", {}))
        await receiver.until_count(3)

        async def is_held() -> bool:
            return await fetch(other.pool, HELD_SQL) != []

        assert await poll_until(is_held, within_s=10)
        plan = await replay(other.pool, "receiver", since, until, apply=True)
        assert plan is not None
        assert plan.change_count == 1
        await receiver.until(lambda events: sum(one.resource_id == "o2" for one in events) == 2)
        assert not [one for one in receiver.events if one.subject.startswith(TENANT_ID)]
        is_down = False
        await receiver.until_count(6)
        await target.apply(target.operation("update", "r1", {"n": 2}))
        await receiver.until_count(7)
    assert [one.resource_id for one in receiver.events if one.subject.startswith("other")] == [
        *("o0", "o1", "o2"),
        *("o0", "o2"),
    ]
    assert receiver.told()[3:] == [
        ("resource.created", f"{TENANT_ID}/patient/r1"),
        ("tenant.moved", TENANT_ID),
        ("resource.updated", f"{TENANT_ID}/patient/r1"),
        ("resource.updated", f"{TENANT_ID}/patient/r1"),
    ]
