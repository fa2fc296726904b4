"""What befalls Postgres servers, made on one of the embedded stack: each is there while its context is entered.

When a context is left the server can be written to again. None of them needs anything of the server's tables but their
names, and none leaves anything behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import StackError, poll_until

CONNECT_TIMEOUT_S = 10.0
TAKES_HOLD_WITHIN_S = 180.0  # on a machine that has much other work
OTHERS_END = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> ALL($1::int[])
"""
SLOW_FUNCTION = """
CREATE OR REPLACE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
"""
SLOW_TRIGGER = """
CREATE TRIGGER be_slow AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION be_slow();
"""

Connection: TypeAlias = "asyncpg.Connection[Any]"


@contextlib.asynccontextmanager
async def killed(server: PostgresServer) -> AsyncIterator[None]:
    """End a server as a crash of its machine would; at the end it is started again."""
    await server.kill()
    try:
        yield
    finally:
        await server.start()


@contextlib.asynccontextmanager
async def frozen(server: PostgresServer) -> AsyncIterator[None]:
    server.suspend()
    try:
        yield
    finally:
        server.resume()


@contextlib.asynccontextmanager
async def read_only(server: PostgresServer) -> AsyncIterator[None]:
    """Let every transaction that begins be a read-only one, as a person does before a switch to another server."""
    await _set(server, "default_transaction_read_only", "on")
    try:
        yield
    finally:
        await _set(server, "default_transaction_read_only", None)


@contextlib.asynccontextmanager
async def in_recovery(server: PostgresServer) -> AsyncIterator[None]:
    """Restart a server as a standby, which takes no writes; at the end it is promoted."""
    async with connected(server) as connection:
        data = Path(await connection.fetchval("SHOW data_directory"))
    await server.stop()
    _note_standby(data)
    await server.start()
    try:
        yield
    finally:
        async with connected(server) as connection:
            await connection.execute("SELECT pg_promote(true)")


@contextlib.asynccontextmanager
async def slowed(server: PostgresServer, *tables: str, statement_s: float = 1.0) -> AsyncIterator[None]:
    """Let each statement that writes one of *tables* of the server's own database take so much longer."""
    async with connected(server, server.database) as connection:
        await connection.execute(SLOW_FUNCTION.format(seconds=statement_s))
        for table in tables:
            await connection.execute(SLOW_TRIGGER.format(table=table))
        try:
            yield
        finally:
            # It is quick from here on, also for sessions that block the drop of the triggers.
            await connection.execute(SLOW_FUNCTION.format(seconds=0))
            await connection.execute("DROP FUNCTION be_slow CASCADE")


@contextlib.asynccontextmanager
async def without_connections(server: PostgresServer) -> AsyncIterator[None]:
    taken: list[Connection] = []
    try:
        await _take_all(server, taken)
        room = int(await taken[0].fetchval("SHOW max_connections"))
        deadline = asyncio.get_running_loop().time() + TAKES_HOLD_WITHIN_S
        # Not until no other is listed: one that ends is not in the list any more when it still has its place.
        while len(taken) < room:
            if asyncio.get_running_loop().time() > deadline:
                raise StackError(f"Postgres {server.database} still has {room - len(taken)} connections of others")
            await taken[0].fetchval(OTHERS_END, [one.get_server_pid() for one in taken])
            await _take_all(server, taken)
        yield
    finally:
        for connection in taken:
            connection.terminate()


@contextlib.asynccontextmanager
async def connected(server: PostgresServer, database: str = "postgres") -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(
        server.url_of(database), timeout=CONNECT_TIMEOUT_S, command_timeout=TAKES_HOLD_WITHIN_S
    )
    try:
        yield connection
    finally:
        connection.terminate()


def _note_standby(data: Path) -> None:
    note = data / "standby.signal"
    note.touch()
    owner = data.stat()
    shutil.chown(note, owner.st_uid, owner.st_gid)


async def _set(server: PostgresServer, name: str, value: str | None) -> None:
    """Set a setting of the whole server, its default without *value*, and wait until new connections have it."""

    async def holds() -> bool:
        async with connected(server) as connection:
            shown = await connection.fetchrow("SELECT setting, boot_val FROM pg_settings WHERE name = $1", name)
        return shown is not None and shown["setting"] == (shown["boot_val"] if value is None else value)

    async with connected(server) as connection:
        change = f"RESET {name}" if value is None else f"SET {name} = '{value}'"
        await connection.execute(f"ALTER SYSTEM {change}")
        await connection.execute("SELECT pg_reload_conf()")
    if not await poll_until(holds, within_s=TAKES_HOLD_WITHIN_S):
        raise StackError(f"Postgres {server.database} does not take {name} = {value} within {TAKES_HOLD_WITHIN_S:g} s")


async def _take_all(server: PostgresServer, taken: list[Connection]) -> None:
    deadline = asyncio.get_running_loop().time() + TAKES_HOLD_WITHIN_S
    while asyncio.get_running_loop().time() < deadline:
        try:
            taken.append(await asyncpg.connect(server.url_of("postgres"), timeout=CONNECT_TIMEOUT_S))
        except asyncpg.TooManyConnectionsError:
            return
    raise StackError(f"Postgres {server.database} still takes connections after {len(taken)}")
