"""The servers of our Kinesis and SQS, and two shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from support.moves.world import OTHER, World, open_world
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import add_tenant

from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_kinesis, start_sqs


@pytest.fixture(autouse=True)
def _no_shard_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a destination that begins now have nothing of what a test has done before, as on shards in use."""
    monkeypatch.setattr("simplu_worker.feed.rows.NEW_S", 0.0)


@pytest.fixture(scope="module")
def group() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


@pytest.fixture(scope="module")
def kinesis_url(group: ProcessGroup) -> str:
    return asyncio.run(start_kinesis(group))


@pytest.fixture(scope="module")
def sqs_url(group: ProcessGroup) -> str:
    return asyncio.run(start_sqs(group))


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give two shards with a tenant on each, of which that on the first one can move."""
    async with open_world(make_shard) as world:
        await add_tenant(world.shard_pools["b"], OTHER)
        yield world
