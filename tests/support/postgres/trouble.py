"""Real trouble for tests: a line to Postgres that is cut at a chosen moment, a transaction that stops half way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from simplu_local.processes.loopback import HOST, poll_until
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"  # a message of Postgres's simple query protocol
GATE = 5  # key of the advisory lock behind which a gated transaction waits
PATIENCE_S = 60.0


class Line:
    """A TCP line to a Postgres server. Cuts itself at the next COMMIT on request: before it, or after it."""

    def __init__(self, address: ShardAddress) -> None:
        self._target = urlsplit(address.connection_string)
        self._shard_id = address.shard_id
        self._connections: set[asyncio.StreamWriter] = set()
        self.connection_count = 0
        self.port = 0
        self.cut_before_commit = False
        self.cut_after_commit = False

    @property
    def address(self) -> ShardAddress:
        netloc = f"{self._target.netloc.rpartition(':')[0]}:{self.port}"
        return ShardAddress(self._shard_id, urlunsplit(self._target._replace(netloc=netloc)))

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._target.port)
        self._connections |= {to_client, to_server}
        self.connection_count += 1
        async with asyncio.TaskGroup() as tasks:
            ways = (self._pass(server, to_client), self._pass_queries(client, to_server))
            passing = [tasks.create_task(way) for way in ways]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for task in passing:
                task.cancel()
        for writer in (to_client, to_server):
            writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while part := await _read(source):
            if self.cut_after_commit and b"COMMIT" in part:  # the command tag of its reply
                self.cut_after_commit = False
                self.cut()
                return
            target.write(part)

    async def _pass_queries(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while part := await _read(source):
            if self.cut_before_commit and part == COMMIT:
                self.cut_before_commit = False
                self.cut()
                return
            target.write(part)


async def _read(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(65536)
    except OSError:  # cut
        return b""


@dataclass(frozen=True)
class Gate:
    """A place within every transaction that writes the log, behind which it waits while the gate is shut."""

    holder: asyncpg.Connection[Any]

    async def reached(self) -> None:
        """Wait until a transaction stands before the gate."""
        await waiters(self.holder, "locktype = 'advisory'")

    async def open(self) -> None:
        await self.holder.execute("SELECT pg_advisory_unlock_all()")


async def waiters(connection: asyncpg.Connection[Any], condition: str = "true", *, count: int = 1) -> None:
    """Wait until *count* wait for a lock in the database of *connection*."""
    query = (
        f"SELECT count(*) FROM pg_locks WHERE NOT granted AND {condition} AND pid IN"
        " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    )

    async def enough_wait() -> bool:
        return int(await connection.fetchval(query)) >= count

    assert await poll_until(enough_wait, within_s=PATIENCE_S), f"expected {count} to wait for a lock"


async def backends(address: ShardAddress, condition: str = "true") -> int:
    connection = await asyncpg.connect(address.connection_string)
    try:
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        )
        return int(count)
    finally:
        await connection.close()


async def nobody_is_left(address: ShardAddress, condition: str = "true") -> bool:
    """Wait until the server has no such connection; a cancelled query takes a moment."""

    async def nobody() -> bool:
        return await backends(address, condition) == 0

    return await poll_until(nobody, within_s=PATIENCE_S)


async def make_touchy(pool: ShardPool, *, deferred: bool = False) -> None:
    """Let a healthy shard fail at resources with a member `raise` (a code), and sleep at those with `sleep` (s).

    *deferred* lets it fail at the commit.
    """
    moment = "AFTER" if deferred else "BEFORE"
    kind = f"CREATE {'CONSTRAINT ' if deferred else ''}TRIGGER"
    when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    async with pool.connection() as connection:
        await connection.execute(
            f"""
            CREATE FUNCTION be_touchy() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_sleep((NEW.data ->> 'sleep')::float);
                IF NEW.data ? 'raise' THEN RAISE 'a secret' USING ERRCODE = NEW.data ->> 'raise'; END IF;
                RETURN NEW;
            END $$;
            {kind} touchy {moment} INSERT OR UPDATE ON resources {when} FOR EACH ROW EXECUTE FUNCTION be_touchy();
            """
        )


async def calm(pool: ShardPool) -> None:
    async with pool.connection() as connection:
        await connection.execute("DROP FUNCTION be_touchy CASCADE")


@contextlib.asynccontextmanager
async def shut_gate(pool: ShardPool) -> AsyncIterator[Gate]:
    holder = await asyncpg.connect(pool.address.connection_string)
    try:
        await holder.execute(
            f"""
            CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '60s'
            AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
            CREATE TRIGGER gate AFTER INSERT ON log_rows FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate();
            SELECT pg_advisory_lock({GATE});
            """
        )
        yield Gate(holder)
    finally:
        holder.terminate()
