"""A TCP proxy on loopback between a client and a server: faults that do not depend on the protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Self

from simplu_local.processes.loopback import HOST, free_port

READ_BYTES = 65_536


class TcpProxy:
    """Listens while it is entered. A subclass forwards a connection in `_serve`, and adds it to `_connections`."""

    def __init__(self) -> None:
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._latency_s = 0.0
        self.struck_count = 0  # connections and chunks that a fault has hit

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()

    def cut(self) -> None:
        """Cut every open connection; new ones work."""
        self.struck_count += len(self._connections)
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()

    @contextlib.asynccontextmanager
    async def refuse_connections(self) -> AsyncIterator[None]:
        self._stop_listening()
        try:
            yield
        finally:
            await self._listen()

    @contextlib.contextmanager
    def add_latency(self, latency_s: float) -> Iterator[None]:
        self._latency_s = latency_s
        try:
            yield
        finally:
            self._latency_s = 0.0

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
