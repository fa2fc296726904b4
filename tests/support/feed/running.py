"""A feed that runs within a test, over shards that the test has made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from support.postgres.tenant_cases import fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.feed.feed import ConfiguredDestination, Feed
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap

PATIENCE_S = 60.0
PASSED_SQL = """
SELECT batch_id = (SELECT max(batch_id) FROM log_batches) AND position >= 0 AS passed
FROM feed_cursors
WHERE destination = $1
"""


def feed_of(
    pools: Pools, addresses: Sequence[ShardAddress], destinations: Sequence[ConfiguredDestination], name: str = "one"
) -> Feed:
    shards = tuple(MappedShard(one.shard_id, one.connection_string) for one in addresses)
    locator = StaticMap(ShardMap(shards=shards))
    return Feed(locator, pools, ReplicationWaiter(pools), name=name, destinations=destinations)


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[asyncio.Task[None]]:
    """Run *feed* for the length of the block; then it gives its rows back, unless the block has cancelled it."""
    stopping = asyncio.Event()
    task = asyncio.create_task(feed.run(stopping))
    try:
        yield task
    finally:
        stopping.set()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise


async def publishing(feed: Feed, count: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while feed.published_count < count:  # noqa: ASYNC110  # nothing there is to be awaited
            await asyncio.sleep(0.02)


async def until_passed(pool: ShardPool, destination: str = "receiver") -> None:
    """Return once the cursor that is on the shard has come to the newest batch, which is to be of one operation."""

    async def is_passed() -> bool:
        return await fetch(pool, PASSED_SQL, destination) == [{"passed": True}]

    assert await poll_until(is_passed, within_s=PATIENCE_S)
