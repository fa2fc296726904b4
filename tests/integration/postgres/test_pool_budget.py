from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest
from support.postgres.databases import ShardMaker
from support.postgres.pool_trouble import AT_ONCE_S, UNHURRIED
from support.postgres.shard_line import ShardLine

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow(2)


@pytest.fixture
async def empty(make_shard: ShardMaker) -> ShardAddress:
    return await make_shard(is_empty=True)


def shards(pools: Pools, address: ShardAddress, count: int) -> list[ShardPool]:
    return [pools.ensure_pool(ShardAddress(f"shard-{n}", address.connection_string)) for n in range(count)]


async def use(pool: ShardPool, seconds: float = 0.0) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)


@contextlib.asynccontextmanager
async def watched(address: ShardAddress) -> AsyncIterator[list[int]]:
    counts: list[int] = []
    is_over = False

    async def watch() -> None:
        observer = await asyncpg.connect(address.connection_string)
        try:
            while not is_over:
                counts.append(
                    await observer.fetchval(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
        finally:
            await observer.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        try:
            yield counts
        finally:
            is_over = True


@pytest.mark.parametrize(("shard_count", "max_connections"), [(60, 1), (150, 15)])
async def test_pools_serve_every_shard_when_there_are_few_connections(
    empty: ShardAddress, shard_count: int, max_connections: int
) -> None:
    patient = ShardTimeouts(acquire_s=60.0)
    async with watched(empty) as counts, Pools(size=4, max_connections=max_connections, timeouts=patient) as pools:
        for _ in range(2):
            async with asyncio.TaskGroup() as tasks:
                for pool in shards(pools, empty, shard_count):
                    for _ in range(3):
                        tasks.create_task(use(pool))
            opened = [pool.counts()["open"] for pool in pools.by_shard_id().values()]
            assert sum(opened) <= max_connections
    # One that was closed is gone for us before it is for the server.
    assert max(counts) <= max_connections + max(10, max_connections // 2)


async def test_pools_give_the_places_of_a_shard_that_hangs_to_others(empty: ShardAddress) -> None:
    timeouts = msgspec.structs.replace(UNHURRIED, reply_s=1.0, cancel_s=0.5)
    async with ShardLine(empty) as line, Pools(size=2, max_connections=2, timeouts=timeouts) as pools:
        hanging = pools.ensure_pool(line.address)
        (other,) = shards(pools, empty, 1)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(use(hanging, 0.05))
        with line.blackhole():
            ended_count = 0

            async def hang() -> None:
                nonlocal ended_count
                with contextlib.suppress(ShardUnavailableError):
                    await use(hanging)
                ended_count += 1

            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(hang()) for _ in range(20)]
                await asyncio.sleep(0)
                started = time.monotonic()
                await use(other)
                assert time.monotonic() - started < AT_ONCE_S
                assert ended_count == 2  # not behind all the others that wait for the shard
                for task in waiting:
                    task.cancel()
