"""A replay on a real shard whose publisher is killed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.moves.world import World

from simplu_worker.feed.cursors import replay
from simplu_worker.feed.types import Delivered, RetryLater


@pytest.mark.slow(12)
async def test_replay_loses_nothing_when_the_publisher_is_killed_behind_it(world: World) -> None:
    address, case = world.shard_pools["a"].address, world.case("a")
    receiver = Receiver()
    receiver.answer = lambda event: RetryLater("busy") if event.resource_id == "r5" else Delivered()
    names = [f"r{number}" for number in range(10)]
    feed = feed_of(world.pools, [address], [receiver.configured()])
    async with running(feed) as publisher:
        await publishing(feed, 2)
        await case.apply(case.operation("create", "before", {}))
        await receiver.until_count(1)
        since = datetime.now(UTC)
        await case.apply_each(*(case.operation("create", name, {}) for name in names))
        await receiver.until_count(10)
        before = {one.resource_id: one.id for one in receiver.events}
        assert await replay(case.pool, "receiver", since, apply=True) is not None
        publisher.cancel()
    receiver.answer = lambda _: Delivered()
    receiver.events.clear()
    feed = feed_of(world.pools, [address], [receiver.configured()], "two")
    async with running(feed):
        await receiver.until_count(10)
    again = {one.resource_id: one.id for one in receiver.events}
    assert list(again) == names
    assert before.items() - again.items() == {("before", before["before"])}
