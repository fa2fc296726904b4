"""What the tests beside real peers share: one stack a file, with a tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from support.peers.shared_stream import SharedStream, provision_tenant

from simplu_local.stack.stack import Stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with Stack(shards=1, stream_shards=1) as running:
        await provision_tenant(running)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def shared(stack: Stack) -> SharedStream:
    """Return a stream and a lease table that no other test has; neither exists yet."""
    return SharedStream(stack)
