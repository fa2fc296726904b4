"""Real trouble for tests: a line to Postgres that is cut at a chosen moment, a transaction that stops half way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from simplu_worker.local.loopback import HOST, until
from simplu_worker.shards.address import ShardAddress
from simplu_worker.shards.pools import ShardPool

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"  # a message of Postgres's simple query protocol
GATE = 5  # key of the advisory lock behind which a gated transaction waits
PATIENCE_S = 10.0


class Line:
    """A TCP line to a Postgres server. Cuts itself at the next COMMIT when told so: before it, or after it."""

    def __init__(self, address: ShardAddress) -> None:
        self._target = urlsplit(address.connection_string)
        self._shard_id = address.shard_id
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.cut_before_commit = False
        self.cut_after_commit = False

    @property
    def address(self) -> ShardAddress:
        """The shard's address at this end of the line."""
        netloc = f"{self._target.netloc.rpartition(':')[0]}:{self.port}"
        return ShardAddress(self._shard_id, urlunsplit(self._target._replace(netloc=netloc)))

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Line]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._target.port)
        self._connections |= {to_client, to_server}
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
        """Let everybody through, now and later."""
        await self.holder.execute("SELECT pg_advisory_unlock_all()")


async def waiters(connection: asyncpg.Connection[Any], condition: str = "true") -> None:
    """Wait until somebody waits for a lock in the database of *connection*."""
    query = (
        f"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND {condition} AND pid IN"
        " (SELECT pid FROM pg_stat_activity WHERE datname = current_database()))"
    )

    async def somebody_waits() -> bool:
        return bool(await connection.fetchval(query))

    assert await until(somebody_waits, within_s=PATIENCE_S), "nobody waits for a lock"


@contextlib.asynccontextmanager
async def shut_gate(pool: ShardPool) -> AsyncIterator[Gate]:
    """Put a gate, shut, behind the first statement that writes the log."""
    holder = await asyncpg.connect(pool.address.connection_string)
    try:
        await holder.execute(
            f"""
            CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
            CREATE TRIGGER gate AFTER INSERT ON operations FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate();
            SELECT pg_advisory_lock({GATE});
            """
        )
        yield Gate(holder)
    finally:
        holder.terminate()
