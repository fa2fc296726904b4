"""Replays on real shards: which events come again when it has an end, a publisher is killed, or a tenant waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.moves.world import World
from support.postgres.tenant_cases import fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.feed.cursors import replay
from simplu_worker.feed.types import Delivered, RetryLater

UP_TO_R5_SQL = "SELECT FROM feed_cursors JOIN log_rows USING (batch_id) WHERE resource = simplu_key('r5')"
AGAIN_SQL = "SELECT FROM feed_cursors WHERE again_through IS NOT NULL"


@pytest.mark.slow(12)
@pytest.mark.parametrize(
    ("has_end", "run_is_new", "left_out"), [(False, False, ()), (True, False, ("r3", "r4")), (True, True, ())]
)
async def test_replay_loses_nothing_when_the_publisher_is_killed_behind_it(
    world: World, *, has_end: bool, run_is_new: bool, left_out: tuple[str, ...]
) -> None:
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
