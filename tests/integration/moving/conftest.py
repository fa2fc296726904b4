"""The shards of most tests of moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.moves.world import LOGGED, ROWS, TENANT_ID, World, open_world
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import fetch


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(make_shard) as world:
        await fetch(world.shard_pools["a"], ROWS, TENANT_ID, 3000)
        await fetch(world.shard_pools["a"], LOGGED, TENANT_ID, 500)
        yield world
