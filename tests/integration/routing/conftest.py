from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.shard_map_world import Shards, World, worker, write_map


@pytest.fixture
async def shards(make_shard: ShardMaker) -> Shards:
    return await make_shard("shard-1"), await make_shard("shard-2"), await make_shard("shard-3")


@pytest.fixture
async def world(shards: Shards, tmp_path: Path) -> AsyncIterator[World]:
    write_map(tmp_path / "map.json", *shards[:2])
    async with worker(tmp_path / "map.json") as world:
        yield world


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    async with routed_shards([await make_shard("shard-1"), await make_shard("shard-2")]) as routed:
        yield routed
