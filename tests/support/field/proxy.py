"""An HTTP proxy on loopback, which forwards requests and opens tunnels, and records to where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

READ_BYTES = 65_536


class Proxy:
    """The proxy; *asked* has the method and the target of each connection."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen; yield the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter | None = None
        try:
            head = await client.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            self.asked.append((method, parts.netloc))
            server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
            if method == "CONNECT":
                to_client.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                to_server.write(head)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(client, to_server))
                tasks.create_task(_pump(server, to_client))
        finally:
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Forward until either side closes; then close the other."""
    with suppress(OSError):
        while data := await source.read(READ_BYTES):
            target.write(data)
            await target.drain()
    target.close()
