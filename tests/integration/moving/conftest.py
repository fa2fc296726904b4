"""The shards of most tests of moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.moves.world import LOGGED, ROWS, TENANT_ID, World
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant, fetch

from simplu_worker.shards.postgres.pool import Pools


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give two shards, and a tenant on the first one with resources and a log."""
    addresses = [await make_shard("a"), await make_shard("b")]
    async with Pools(size=6) as pools:
        world = World(pools, addresses)
        await add_tenant(world.shard_pools["a"])
        await fetch(world.shard_pools["a"], ROWS, TENANT_ID, 3000)
        await fetch(world.shard_pools["a"], LOGGED, TENANT_ID, 500)
        yield world
