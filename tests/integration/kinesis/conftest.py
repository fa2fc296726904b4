"""What the integration tests of this folder share."""

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
    """Open a client of the DynamoDB of moto, which is empty at first for the tests of a file."""
    async with client_of("dynamodb", endpoint_url) as client:
        yield client


@pytest.fixture
async def world(endpoint_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give a world without tenants, with the worker's own deadlines, which a busy machine keeps."""
    async with open_world(endpoint_url, make_shard, timeouts=DEFAULT_TIMEOUTS) as world:
        yield world
