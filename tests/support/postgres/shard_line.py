"""A TCP line to a Postgres server that does what networks do: delays, cuts, or swallows everything."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from support.network.tcp_proxy import READ_BYTES, TcpProxy

from simplu_local.processes.loopback import HOST
from simplu_worker.shards.postgres.address import ShardAddress

ASKS_FOR_TLS = struct.pack("!ii", 8, 80877103)
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"  # a message of Postgres's simple query protocol
TOO_MANY = ("53300", "sorry, too many clients already")


class ShardLine(TcpProxy):
    """Passes everything on between its port and a server, but for the fault that is being made. Enter it to listen."""

    def __init__(self, address: ShardAddress) -> None:
        super().__init__()
        self._address = address
        self._target = urlsplit(address.connection_string)
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusal: tuple[str, str] | None = None
        self.connection_count = 0
        self.asked: list[bytes] = []  # the bytes sent to the server, part by part
        self.cut_before_commit = False  # of the next one
        self.cut_after_commit = False

    @property
    def place(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> ShardAddress:
        netloc = f"{self._target.netloc.rpartition('@')[0]}@{self.place}"
        return ShardAddress(self._address.shard_id, urlunsplit(self._target._replace(netloc=netloc)))

    async def __aexit__(self, *_: object) -> None:
        self._passing.set()
        await super().__aexit__()

    @contextlib.contextmanager
    def blackhole(self) -> Iterator[None]:
        """Swallow everything, both ways, and take connections without a word; what waits goes on at the end."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    @contextlib.contextmanager
    def saying(self, refusal: tuple[str, str]) -> Iterator[None]:
        self._refusal = refusal
        try:
            yield
        finally:
            self._refusal = None

    def lead_to(self, address: ShardAddress) -> None:
        """Lead new connections to another server, as a name does that was given to another machine."""
        self._target = urlsplit(address.connection_string)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        self._connections.add(to_client)
        if self._refusal is not None:
            if await client.read(READ_BYTES) == ASKS_FOR_TLS:
                to_client.write(b"N")
                await client.read(READ_BYTES)
            to_client.write(error_message(*self._refusal))
            to_client.close()
            return
        try:
            await self._passing.wait()
            server, to_server = await asyncio.open_connection(HOST, self._target.port)
        except OSError:
            to_client.transport.abort()
            return
        self._connections.add(to_server)
        async with asyncio.TaskGroup() as tasks:
            ways = [
                tasks.create_task(way)
                for way in (self._pass(client, to_server, is_asking=True), self._pass(server, to_client))
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        for writer in (to_client, to_server):
            writer.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_asking: bool = False
    ) -> None:
        with contextlib.suppress(OSError):  # cut
            while part := await source.read(READ_BYTES):
                if is_asking:
                    self.asked.append(part)
                    await asyncio.sleep(self._latency_s)
                await self._passing.wait()
                if self._is_cut_at(part, is_asking=is_asking):
                    self.cut()
                    return
                target.write(part)

    def _is_cut_at(self, part: bytes, *, is_asking: bool) -> bool:
        if is_asking and self.cut_before_commit and part == COMMIT:
            self.cut_before_commit = False
            return True
        if not is_asking and self.cut_after_commit and b"COMMIT" in part:  # the command tag of its reply
            self.cut_after_commit = False
            return True
        return False


def error_message(code: str, text: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C{code}\0M{text}\0\0".encode()
    return b"E" + struct.pack("!i", 4 + len(fields)) + fields
