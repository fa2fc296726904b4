"""The shards of most tests of moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from support.moves.world import LOGGED, ROWS, TENANT_ID, World, open_world
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.histories import keep_history
from support.postgres.tenant_cases import fetch

from simplu_local.postgres.server import PostgresServer


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    async with _open_filled(make_shard) as world:
        yield world


@pytest.fixture
async def fresh_world(postgres_server: PostgresServer) -> AsyncIterator[World]:
    """Give shards that no test has used before: plans depend on what autovacuum has last seen of the tables."""
    async with _open_filled(partial(copy_shard, postgres_server)) as world:
        yield world


@asynccontextmanager
async def _open_filled(make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(make_shard) as world:
        for pool in world.shard_pools.values():
            await keep_history(pool, "patient")
        await fetch(world.shard_pools["a"], ROWS, TENANT_ID, 3000)
        await fetch(world.shard_pools["a"], LOGGED, TENANT_ID, 500)
        yield world
