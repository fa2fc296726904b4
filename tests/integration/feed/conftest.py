"""The servers of our Kinesis and SQS, and two shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from support.moves.world import OTHER, World
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant

from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_kinesis, start_sqs
from simplu_worker.shards.postgres.pool import Pools


@pytest.fixture(scope="module")
def group() -> Iterator[ProcessGroup]:
    """Give the processes of the servers."""
    with ProcessGroup() as group:
        yield group


@pytest.fixture(scope="module")
def kinesis_url(group: ProcessGroup) -> str:
    """Start our Kinesis."""
    return asyncio.run(start_kinesis(group))


@pytest.fixture(scope="module")
def sqs_url(group: ProcessGroup) -> str:
    """Start our SQS."""
    return asyncio.run(start_sqs(group))


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give two shards with a tenant on each, of which that on the first one can move."""
    addresses = [await make_shard("a"), await make_shard("b")]
    async with Pools(size=6) as pools:
        world = World(pools, addresses)
        await add_tenant(world.shard_pools["a"])
        await add_tenant(world.shard_pools["b"], OTHER)
        yield world
