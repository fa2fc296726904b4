from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.pool_trouble import PATIENT_S, UNHURRIED, has_answered
from support.postgres.shard_line import ShardLine

from simplu_local.processes.loopback import poll_until
from simplu_worker.shards.postgres.pool import ShardPool


@pytest.fixture
async def line(make_shard: ShardMaker) -> AsyncIterator[ShardLine]:
    async with ShardLine(await make_shard()) as line:
        yield line


@pytest.fixture
async def pool(line: ShardLine) -> AsyncIterator[ShardPool]:
    pool = ShardPool(line.address, size=2, timeouts=UNHURRIED)
    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)
    yield pool
    await pool.close()
