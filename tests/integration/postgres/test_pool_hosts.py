from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest
from support.postgres.databases import SHARD_ID, TEMPLATE, execute
from support.postgres.pool_trouble import AT_ONCE_S, UNHURRIED, within
from support.postgres.shard_line import ShardLine
from support.postgres.trouble import nobody_is_left

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import ShardUnavailableError

pytestmark = pytest.mark.slow


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


async def unavailable(pool: ShardPool) -> str:
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
        assert "leads to the database of shard shard-9" in await unavailable(pool)
    problem = "its connection string leads to the database of shard shard-9; correct it in the map"
    assert (pool.is_healthy, pool.last_error) == (False, problem)

    pair.first.lead_to(pair.addresses[0])
    assert await port_of(pool) == breakable_server.port
    assert pool.is_healthy
    await pool.close()
