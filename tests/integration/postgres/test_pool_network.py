"""A pool and the network: lost, late, cut or swallowed replies cost a bounded time, and reach no later caller."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
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
from support.postgres.trouble import backends, nobody_is_left, waiters

from simplu_local.processes.loopback import poll_until
from simplu_worker.network_errors import NO_ANSWER
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import KEEPALIVE, USER_TIMEOUT_MS, enable_keepalive
from simplu_worker.shards.postgres.errors import ALL_IN_USE, state_words
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.types import ShardUnavailableError


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


@pytest.mark.slow
async def test_pool_gives_a_connect_up_in_time_when_the_line_swallows_everything(line: ShardLine) -> None:
    pool = ShardPool(line.address, size=1, timeouts=msgspec.structs.replace(UNHURRIED, connect_s=0.5))
    with line.blackhole(), within(0.5, AT_ONCE_S):
        assert await unavailable(pool) == NO_ANSWER
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


async def test_pool_ends_a_cancelled_use_in_time_when_the_line_swallows_everything(line: ShardLine) -> None:
    pool = ShardPool(line.address, size=1, timeouts=UNHURRIED)
    await ask(pool)
    asked_before = len(line.asked)

    async def is_sent() -> bool:
        return len(line.asked) > asked_before

    async with asyncio.TaskGroup() as tasks:
        with line.blackhole():
            asking = tasks.create_task(ask(pool))
            assert await poll_until(is_sent, within_s=PATIENT_S)
            with within(0, AT_ONCE_S):
                asking.cancel()
                await asyncio.wait([asking])
            assert (asking.cancelled(), pool.counts()["open"]) == (True, 1)  # for `ShardTimeouts.cancel_s` at most
            with within(0, AT_ONCE_S):
                await pool.close()
    assert await poll_until(partial(nothing_is_open, pool), within_s=PATIENT_S)


@pytest.mark.slow
async def test_pool_stops_the_server_when_an_answer_takes_too_long(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=1, timeouts=msgspec.structs.replace(UNHURRIED, statement_s=60.0, reply_s=0.5))
    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)

    assert await unavailable(pool, "SELECT pg_sleep(60)") == NO_ANSWER

    assert await nobody_is_left(address, "query LIKE 'SELECT pg_sleep%' AND state = 'active'")
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


async def test_pool_waits_for_a_use_to_end_when_it_is_closed(make_shard: ShardMaker) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=1, timeouts=msgspec.structs.replace(UNHURRIED, lock_s=60.0, statement_s=60.0))
    holder = await asyncpg.connect(address.connection_string)
    await holder.execute("SELECT pg_advisory_lock(1)")
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(pool, "SELECT 'waited' FROM pg_advisory_lock(1)"))
        await waiters(holder)
        closing = tasks.create_task(pool.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        await holder.close()
        with within(0, AT_ONCE_S):
            await closing
        assert (asking.done(), pool.counts()["open"]) == (True, 0)
    assert asking.result() == "waited"


@pytest.mark.slow
async def test_pool_is_bounded_when_one_who_has_a_connection_asks_for_another(make_shard: ShardMaker) -> None:
    hurried = msgspec.structs.replace(UNHURRIED, acquire_s=0.5)
    pool = ShardPool(await make_shard("shard-nested"), size=2, timeouts=hurried)
    both = asyncio.Barrier(2)
    messages = []

    async def nested() -> None:
        async with pool.connection():
            await both.wait()
            with pytest.raises(ShardUnavailableError) as caught:
                await ask(pool)
            messages.append(str(caught.value))
            await both.wait()

    async with asyncio.timeout(PATIENT_S), asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(nested())

    assert all(ALL_IN_USE in message for message in messages)
    assert (len(messages), pool.is_healthy, await ask(pool)) == (2, True, 1)
    labels = {"shard_id": "shard-nested", "kind": "busy"}
    assert REGISTRY.get_sample_value("simplu_shard_errors_total", labels) == 2
    await pool.close()


async def test_pool_serves_in_the_order_of_asking(make_shard: ShardMaker) -> None:
    pool = ShardPool(await make_shard(), size=3)
    served = []

    async def use(number: int) -> None:
        async with pool.connection() as connection:
            served.append(number)
            await connection.execute("SELECT pg_sleep(0.001)")

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(use(number))
        await asyncio.sleep(0)
        assert pool.counts() == {"open": 3, "idle": 0, "waiting": 97}

    # The first three open their connections, each in its own time.
    assert [number for number in served if number > 2] == list(range(3, 100))
    assert pool.counts() == {"open": 3, "idle": 3, "waiting": 0}
    await pool.close()


@pytest.mark.parametrize("when", ["waits", "has its turn"])
async def test_pool_loses_no_place_when_one_who_waits_is_cancelled(make_shard: ShardMaker, when: str) -> None:
    pool = ShardPool(await make_shard(), size=1)
    async with asyncio.TaskGroup() as tasks:
        async with pool.connection():
            waiting = tasks.create_task(ask(pool))
            behind = tasks.create_task(ask(pool))
            await asyncio.sleep(0.01)
            if when == "waits":
                waiting.cancel()
        waiting.cancel()  # in the same step as it got the connection, unless before

    assert (waiting.cancelled(), behind.result()) == (True, 1)
    assert pool.counts() == {"open": 1, "idle": 1, "waiting": 0}
    await pool.close()


async def test_pool_asks_the_server_nothing_but_what_its_users_do(line: ShardLine, pool: ShardPool) -> None:
    await ask(pool, "SELECT 2")
    line.asked.clear()
    for _ in range(10):
        await ask(pool, "SELECT 2")

    assert (len(line.asked), line.connection_count) == (10, 1)


async def test_pool_does_not_lend_a_connection_that_was_cut_while_it_was_idle(line: ShardLine, pool: ShardPool) -> None:
    for end in (line.cut, line.half_close):
        before = line.connection_count
        end()
        assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)
        assert (await ask(pool), pool.is_healthy, line.connection_count) == (1, True, before + 1)


async def test_pool_replaces_a_connection_that_is_cut_in_the_middle_of_its_use(line: ShardLine) -> None:
    pool = ShardPool(line.address, size=2, timeouts=msgspec.structs.replace(UNHURRIED, statement_s=60.0))

    async def is_sent() -> bool:
        return any(b"pg_sleep" in part for part in line.asked)

    async with asyncio.TaskGroup() as tasks:
        for end in (line.cut, line.half_close):
            line.asked.clear()
            asking = tasks.create_task(unavailable(pool, "SELECT pg_sleep(60)"))
            assert await poll_until(is_sent, within_s=PATIENT_S)
            with within(0, AT_ONCE_S):
                end()
                assert await asking in {
                    state_words("08003"),
                    "ConnectionDoesNotExistError",
                }
            assert await ask(pool) == 1
    await pool.close()


async def test_pool_takes_its_time_when_the_line_is_slow(line: ShardLine, pool: ShardPool) -> None:
    with line.add_latency(0.05):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(ask(pool))
    assert pool.is_healthy
    assert "Breaker(closed, failures=0)" in repr(pool)


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
        assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)
        assert await nobody_is_left(address)


async def test_pool_lets_the_system_watch_over_its_sockets(make_shard: ShardMaker) -> None:
    pool = ShardPool(await make_shard(), size=1)
    async with pool.connection() as connection:
        endpoint = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        wanted = {name: value for name, value in KEEPALIVE.items() if hasattr(socket, name)}
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            wanted["TCP_USER_TIMEOUT"] = USER_TIMEOUT_MS
        came = {name: endpoint.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in wanted}
        assert (came, endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == (wanted, 1)
    await pool.close()
    with socket.socket(socket.AF_UNIX) as local:
        enable_keepalive(local)  # has none of these


async def test_pools_cost_nothing_for_shards_that_are_down(line: ShardLine, make_shard: ShardMaker) -> None:
    async with line.refuse_connections(), Pools(size=4) as pools:
        dead = pools.ensure_pool(ShardAddress("dead", line.address.connection_string))
        assert await ask(pools.ensure_pool(await make_shard())) == 1
        assert dead.counts() == {"open": 0, "idle": 0, "waiting": 0}
