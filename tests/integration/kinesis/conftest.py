from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.aws.endpoints import client_of
from support.postgres.databases import ShardMaker
from support.reader_world import World, open_world

from simplu_worker.aws.clients import Client
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS


@pytest.fixture
async def dynamodb(endpoint_url: str, aws_credentials: None) -> AsyncIterator[Client]:
    async with client_of("dynamodb", endpoint_url) as client:
        yield client


@pytest.fixture
async def world(endpoint_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(endpoint_url, make_shard, timeouts=DEFAULT_TIMEOUTS) as world:
        yield world
