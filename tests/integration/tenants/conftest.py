"""What the integration tests of this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    """Give two shards behind a local Citrus, which fills the first one first."""
    async with routed_shards([await make_shard("shard-1"), await make_shard("shard-2")]) as routed:
        yield routed
