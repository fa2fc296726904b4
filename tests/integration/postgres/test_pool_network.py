"""A pool and the network: lost, late or cut replies cost a bounded time; of several hosts it uses the right one."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import msgspec
import pytest
from support.postgres.databases import SHARD_ID, TEMPLATE, ShardMaker, execute
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

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.network_errors import NO_ANSWER
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
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


PATIENT = msgspec.structs.replace(UNHURRIED, probe_s=60.0)  # whoever waits for a host is noticed, on any machine
DEAF_S = 1.0  # the share of one of two hosts
HURRIED = msgspec.structs.replace(PATIENT, connect_s=2 * DEAF_S)

_numbers = itertools.count(1)


class Pair:
    def __init__(self, addresses: list[ShardAddress], lines: list[ShardLine]) -> None:
        self.addresses = addresses
        self.first, self.second = lines

    def pool(self, option: str = "", *, timeouts: ShardTimeouts = PATIENT) -> ShardPool:
        head, _, tail = self.addresses[0].connection_string.rpartition("@")
        database = tail.partition("/")[2]
        url = f"{head}@{self.first.place},{self.second.place}/{database}{option}"
        return ShardPool(ShardAddress(SHARD_ID, url), size=2, timeouts=timeouts)


@pytest.fixture
async def pair(breakable_server: PostgresServer, postgres_server: PostgresServer) -> AsyncIterator[Pair]:
    name = f"pair_{next(_numbers)}"
    addresses = [
        ShardAddress(SHARD_ID, await server.create_database(name, template=TEMPLATE))
        for server in (breakable_server, postgres_server)
    ]
    async with contextlib.AsyncExitStack() as stack:
        yield Pair(addresses, [await stack.enter_async_context(ShardLine(address)) for address in addresses])
    await execute(postgres_server.url_of("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


async def port_of(pool: ShardPool) -> int:
    async with pool.connection() as connection:
        return int(await connection.fetchval("SELECT current_setting('port')"))


async def refused(pool: ShardPool) -> str:
    with pytest.raises(ShardUnavailableError) as caught:
        await port_of(pool)
    return str(caught.value)


async def make_read_only(server: PostgresServer, *, is_on: bool) -> None:
    setting = "SET default_transaction_read_only = on" if is_on else "RESET default_transaction_read_only"
    expected = "on" if is_on else "off"
    connection = await asyncpg.connect(server.url_of("postgres"))
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER SYSTEM {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.execute("RESET default_transaction_read_only")

    async def is_so() -> bool:
        return bool(await connection.fetchval("SHOW default_transaction_read_only") == expected)

    assert await poll_until(is_so, within_s=60)
    await connection.close()


@pytest.mark.slow
async def test_pool_uses_the_second_host_in_time_when_the_first_is_frozen(
    pair: Pair, breakable_server: PostgresServer, postgres_server: PostgresServer
) -> None:
    pool = pair.pool(timeouts=HURRIED)
    with pair.first.blackhole():
        with within(DEAF_S, AT_ONCE_S):
            assert await port_of(pool) == postgres_server.port
        count = pair.first.connection_count
        await pool.probe()
        async with pool.connection(), pool.connection():
            pass
        assert pair.first.connection_count == count
    async with pair.second.refuse_connections():
        await pool.close()
        assert await port_of(pool) == breakable_server.port
    await pool.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "is_first"),
    [
        ("", False),
        ("?target_session_attrs=read-write", False),
        ("?target_session_attrs=any", True),
        ("?target_session_attrs=primary", True),  # which takes no writes, but is none that follows another
    ],
)
async def test_pool_uses_the_host_that_is_what_is_wanted(
    pair: Pair, breakable_server: PostgresServer, postgres_server: PostgresServer, option: str, *, is_first: bool
) -> None:
    await make_read_only(breakable_server, is_on=True)
    pool = pair.pool(option)
    try:
        assert await port_of(pool) == (breakable_server if is_first else postgres_server).port
    finally:
        await make_read_only(breakable_server, is_on=False)
        await pool.close()


@pytest.mark.slow
async def test_pool_leaves_a_host_that_takes_no_writes_any_more(
    pair: Pair, breakable_server: PostgresServer, postgres_server: PostgresServer
) -> None:
    pool = pair.pool()
    async with pool.connection() as one, pool.connection() as other:
        assert one.place == other.place
    await make_read_only(breakable_server, is_on=True)

    async def knows() -> bool:
        async with pool.connection() as one, pool.connection() as other:
            settings = [await connection.fetchval("SHOW transaction_read_only") for connection in (one, other)]
        return settings == ["on", "on"]

    try:
        assert await poll_until(knows, within_s=60)
        with pytest.raises(ShardUnavailableError, match="25006"):
            async with pool.transaction() as connection:
                await connection.execute("DELETE FROM tenants")

        assert pool.counts() == {"open": 0, "idle": 0, "waiting": 0}
        assert await nobody_is_left(pair.addresses[0])
        async with pool.transaction() as connection:
            await connection.execute("DELETE FROM tenants")
        assert await port_of(pool) == postgres_server.port
        await pool.probe()
    finally:
        await make_read_only(breakable_server, is_on=False)
        await pool.close()


@pytest.mark.slow
async def test_pool_uses_no_connection_to_another_shards_database_when_a_name_is_given_away(
    pair: Pair, breakable_server: PostgresServer
) -> None:
    await execute(pair.addresses[1].connection_string, "UPDATE shard_meta SET shard_id = 'shard-9'")
    pool = ShardPool(pair.first.address, size=1, timeouts=PATIENT)
    assert await port_of(pool) == breakable_server.port
    pair.first.lead_to(pair.addresses[1])
    assert await port_of(pool) == breakable_server.port  # on the connection of before
    await pool.close()

    for _ in range(5):
        assert "leads to the database of shard shard-9" in await refused(pool)
    problem = "its connection string leads to the database of shard shard-9; correct it in the map"
    assert (pool.is_healthy, pool.last_error) == (False, problem)

    pair.first.lead_to(pair.addresses[0])
    assert await port_of(pool) == breakable_server.port
    assert pool.is_healthy
    await pool.close()
