"""What the integration tests of this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.postgres.databases import QUICK, ShardMaker
from support.reader_world import World, open_world


@pytest.fixture
async def world(request: pytest.FixtureRequest, endpoint_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    """Give a world without tenants; its deadlines may be given as the fixture's parameter."""
    async with open_world(endpoint_url, make_shard, timeouts=getattr(request, "param", QUICK)) as world:
        yield world
