"""What the integration tests of this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.aws.endpoints import client_of
from support.postgres.databases import QUICK, ShardMaker
from support.reader_world import World, open_world

from simplu_worker.aws.clients import Client


@pytest.fixture
async def dynamodb(endpoint_url: str, aws_credentials: None) -> AsyncIterator[Client]:
    """Open a client of the DynamoDB of moto, which is empty at first for the tests of a file."""
    async with client_of("dynamodb", endpoint_url) as client:
        yield client


@pytest.fixture
async def world(request: pytest.FixtureRequest, endpoint_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give a world without tenants; its deadlines may be given as the fixture's parameter."""
    async with open_world(endpoint_url, make_shard, timeouts=getattr(request, "param", QUICK)) as world:
        yield world
