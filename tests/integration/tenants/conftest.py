from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker

from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    # A test that locks the row of a tenant may take long to let it go.
    async with routed_shards(shards, timeouts=ShardTimeouts(pause_lock_s=60.0)) as routed:
        yield routed
