"""Each fault of an embedded Postgres server has the effect that its name promises, and leaves no trace afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from support.postgres.faults import (
    Connection,
    frozen,
    is_writable,
    killed,
    on_small_disk,
    read_only,
    without_disk,
)
from support.postgres.small_disk import NoDiskError, SmallDisk
from support.requires import require

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup

WRITE = "INSERT INTO notes SELECT repeat('x', 1000)"
MANY_WRITES = "INSERT INTO notes SELECT repeat('x', 1000) FROM generate_series(1, 10000)"
TRACES_SQL = """
SELECT (SELECT count(*) FROM pg_proc WHERE proname = 'be_slow')
    + (SELECT count(*) FROM pg_tablespace WHERE spcname NOT LIKE 'pg\\_%')
    + (SELECT count(*) FROM pg_class WHERE reltablespace <> 0 AND NOT relisshared)
    + (SELECT count(*) FROM pg_file_settings WHERE sourcefile LIKE '%auto.conf')
"""
DISK_BYTES = 16 * 1024 * 1024
SOON_S = 20.0


@pytest.fixture
async def server(breakable_server: PostgresServer) -> AsyncIterator[PostgresServer]:
    await _execute(breakable_server, "CREATE TABLE notes (text text)")
    yield breakable_server
    connection = await asyncpg.connect(breakable_server.url)
    try:
        assert await connection.fetchval(TRACES_SQL) == 0
        await connection.execute("DROP TABLE notes")
    finally:
        await connection.close()


async def _execute(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.url, timeout=SOON_S)
    try:
        await connection.execute(statement)
    finally:
        connection.terminate()


async def _connected(server: PostgresServer, around: AsyncExitStack) -> Connection:
    connection = await asyncpg.connect(server.url)
    around.callback(connection.terminate)
    return connection


async def test_server_refuses_connections_when_it_is_killed(server: PostgresServer) -> None:
    async with killed(server):
        with pytest.raises(ConnectionError):
            await _execute(server, WRITE)

    assert await is_writable(server, WRITE)


async def test_server_answers_nothing_when_it_is_frozen(server: PostgresServer) -> None:
    async with frozen(server):
        writing = asyncio.create_task(_execute(server, WRITE))
        done, _ = await asyncio.wait({writing}, timeout=0.3)
        assert not done

    await writing


async def test_server_refuses_writes_when_it_is_read_only(server: PostgresServer) -> None:
    async with AsyncExitStack() as around:
        old = await _connected(server, around)
        async with read_only(server):
            assert await poll_until(lambda: _is_refused(old), within_s=SOON_S)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await _execute(server, WRITE)
            assert not await is_writable(server, WRITE)

        assert await is_writable(server, WRITE)
        assert await poll_until(lambda: _works(old), within_s=SOON_S)


@pytest.mark.slow(0.3)
async def test_server_refuses_what_needs_room_when_its_disk_is_full(server: PostgresServer) -> None:
    with ProcessGroup() as group:
        async with AsyncExitStack() as around:
            disk = await _enter_disk(around, server, group)
            async with without_disk(server, disk, "notes"):
                with pytest.raises(asyncpg.DiskFullError):
                    await _execute(server, MANY_WRITES)
                assert await _value(server, "SELECT count(*) FROM notes") == 0
            assert disk.free_bytes > DISK_BYTES / 2
            assert await is_writable(server, WRITE)

        assert not disk.is_mounted
        assert await _value(server, "SELECT count(*) FROM notes") == 1


async def _enter_disk(around: AsyncExitStack, server: PostgresServer, group: ProcessGroup) -> SmallDisk:
    try:
        return await around.enter_async_context(on_small_disk(server, group, DISK_BYTES))
    except NoDiskError as reason:
        require("the right to mount", found=False, how=str(reason))
        raise


async def _value(server: PostgresServer, query: str) -> int:
    connection = await asyncpg.connect(server.url)
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def _works(connection: Connection) -> bool:
    try:
        await connection.execute(WRITE)
    except asyncpg.ReadOnlySQLTransactionError:
        return False
    return True


async def _is_refused(connection: Connection) -> bool:
    return not await _works(connection)
