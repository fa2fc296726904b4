from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.upgrades import upgrade_pool

from simplu_worker.shards.postgres.pool import ShardPool


@pytest.fixture
async def pool(make_shard: ShardMaker) -> AsyncIterator[ShardPool]:
    async with upgrade_pool(await make_shard()) as pool:
        yield pool
