from __future__ import annotations

import asyncio
from functools import partial

import msgspec
import pytest
from support.postgres.databases import ShardMaker
from support.postgres.pool_trouble import (
    AT_ONCE_S,
    PATIENT_S,
    UNHURRIED,
    ask,
    has_answered,
    nothing_is_open,
    unavailable,
    within,
)
from support.postgres.shard_line import ShardLine
from support.postgres.trouble import backends, nobody_is_left

from simplu_local.processes.loopback import poll_until
from simplu_worker.network_errors import NO_ANSWER
from simplu_worker.shards.postgres.pool import Pools, ShardPool


@pytest.mark.slow
async def test_pool_gives_an_answer_up_in_time_when_the_line_swallows_everything(line: ShardLine) -> None:
    pool = ShardPool(line.address, size=2, timeouts=msgspec.structs.replace(UNHURRIED, reply_s=0.5, cancel_s=1.0))
    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)
    with line.blackhole():
        with within(0.5, AT_ONCE_S):
            assert await unavailable(pool) == NO_ANSWER
        assert pool.counts()["open"] == 1  # for `ShardTimeouts.cancel_s`, which nobody waits for
        with within(0, AT_ONCE_S):
            assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)

    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)
    await pool.close()


async def test_pool_stops_the_server_when_a_use_is_cancelled(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=1, timeouts=msgspec.structs.replace(UNHURRIED, statement_s=60.0))
    sleeping = "query LIKE 'SELECT pg_sleep%' AND state = 'active'"

    async def asleep() -> bool:
        return await backends(address, sleeping) == 1

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(pool, "SELECT pg_sleep(60)"))
        assert await poll_until(asleep, within_s=PATIENT_S)
        with within(0, AT_ONCE_S):
            asking.cancel()
            await asyncio.wait([asking])

    assert await nobody_is_left(address, sleeping)
    assert asking.cancelled()
    assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)
    await pool.close()


@pytest.mark.slow
async def test_pool_closes_in_time_when_a_connection_is_in_use(line: ShardLine) -> None:
    pool = ShardPool(line.address, size=2, timeouts=msgspec.structs.replace(UNHURRIED, close_s=0.5))
    await ask(pool)
    asked_before = len(line.asked)

    async def is_sent() -> bool:
        return len(line.asked) > asked_before

    async with asyncio.TaskGroup() as tasks:
        with line.blackhole():
            tasks.create_task(unavailable(pool))
            assert await poll_until(is_sent, within_s=PATIENT_S)
            with within(0.5, AT_ONCE_S):
                await pool.close()
    assert pool.counts() == {"open": 0, "idle": 0, "waiting": 0}


@pytest.mark.slow
async def test_pool_grows_only_as_needed_and_closes_what_is_idle(make_shard: ShardMaker) -> None:
    address = await make_shard()
    all_four, counts = asyncio.Barrier(4), set[int]()
    async with Pools(size=4, timeouts=msgspec.structs.replace(UNHURRIED, idle_s=0.3)) as pools:
        pool = pools.ensure_pool(address)

        async def use() -> None:
            async with pool.connection():
                await all_four.wait()
                counts.add(pool.counts()["open"])
                await all_four.wait()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(use())
        assert counts == {4}

        async def has(count: int) -> bool:
            await ask(pool)
            return pool.counts()["open"] == count

        assert await poll_until(lambda: has(1), within_s=PATIENT_S)
    assert await nobody_is_left(address)
