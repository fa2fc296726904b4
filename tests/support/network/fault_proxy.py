"""A TCP proxy on loopback that causes faults of a network and of a server, without changing either end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from support.network.tcp_proxy import READ_BYTES, TcpProxy

from simplu_local.processes.loopback import HOST

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def http_answer(status: int, body: bytes, *headers: str, content_type: str = "application/x-amz-json-1.1") -> bytes:
    lines = [f"HTTP/1.1 {status} As Scripted", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body


class FaultProxy(TcpProxy):
    """Forwards connections to *target_url*, except for the current fault. Enter it to listen."""

    def __init__(self, target_url: str) -> None:
        super().__init__()
        self._target = _place_of(target_url)
        self._is_one_way = False
        self._broken_share = 0.0
        self._chance = random.Random()
        self._swallowed: bytes | None = None  # requests that contain this are not forwarded now; b"": all
        self._changed = asyncio.Event()
        self._answer: bytes | None = None
        self.asked_count = 0  # connections, and chunks that clients have sent

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def lead_to(self, target_url: str) -> None:
        self._target = _place_of(target_url)
        self.cut()

    @contextlib.contextmanager
    def hold_answers(self) -> Iterator[None]:
        """Forward requests, and hold back what the server answers until the end."""
        self._is_one_way = True
        try:
            yield
        finally:
            self._is_one_way = False
            self._changed.set()
            self._changed = asyncio.Event()

    @contextlib.contextmanager
    def break_answers(self, share: float, chance: random.Random) -> Iterator[None]:
        self._broken_share, self._chance = share, chance
        try:
            yield
        finally:
            self._broken_share = 0.0

    @contextlib.contextmanager
    def hold_requests(self, about: bytes = b"") -> Iterator[None]:
        """Hold back requests that contain *about*, on old and new connections, and forward them at the end."""
        self._swallowed = about
        try:
            yield
        finally:
            self._swallowed = None
            self._changed.set()
            self._changed = asyncio.Event()

    @contextlib.contextmanager
    def answer_all(self, answer: bytes) -> Iterator[None]:
        self.cut()
        self._answer = answer
        try:
            yield
        finally:
            self._answer = None

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._connections.add(to_client)
        self.asked_count += 1
        to_server: asyncio.StreamWriter | None = None
        try:
            if (answer := self._answer) is not None:
                self.struck_count += 1
                await _skip_request(client)
                to_client.write(answer)
                await to_client.drain()
                to_client.close()
                return
            server, to_server = await asyncio.open_connection(*self._target)
            self._connections.add(to_server)
            ways = (self._forward_requests(client, to_server), self._forward_answers(server, to_client))
            async with asyncio.TaskGroup() as tasks:
                passing = [tasks.create_task(way) for way in ways]
                await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
                for task in passing:
                    task.cancel()
        except OSError:
            pass  # either end has closed: close the other
        finally:
            for writer in filter(None, (to_client, to_server)):
                self._connections.discard(writer)
                writer.close()

    async def _forward_requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await _read(source):
            self.asked_count += 1
            while self._swallowed is not None and self._swallowed in chunk:
                self.struck_count += 1
                await self._changed.wait()
            if self._latency_s:
                self.struck_count += 1
                await asyncio.sleep(self._latency_s)
            target.write(chunk)

    async def _forward_answers(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await _read(source):
            while self._is_one_way:
                self.struck_count += 1
                await self._changed.wait()
            is_broken = self._chance.random() < self._broken_share
            self.struck_count += is_broken
            target.write(chunk[: len(chunk) // 2] if is_broken else chunk)
            with contextlib.suppress(OSError):
                await target.drain()
            if is_broken:
                return


def _place_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or HOST, parts.port or 80


async def _read(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(READ_BYTES)
    except OSError:  # the connection was cut
        return b""


async def _skip_request(client: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        head = await client.readuntil(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        await client.readexactly(int(length[1]) if length else 0)
