"""A bound for what a server sends to a client of aiohttp, interim answers included, which aiohttp does not bound."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import aiohttp
from aiohttp.connector import Connection


class BoundedConnector(aiohttp.TCPConnector):
    """Closes a connection once an answer has more than *answer_max_bytes*, head included."""

    def __init__(self, answer_max_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        self._answer_max_bytes = answer_max_bytes

    async def connect(self, *args: Any, **options: Any) -> Connection:
        """Return a connection for one request, as aiohttp does."""
        connection = await super().connect(*args, **options)
        if connection.transport is not None and connection.protocol is not None:
            answer = _BoundedAnswer(connection.transport, connection.protocol, self._answer_max_bytes)
            connection.transport.set_protocol(answer)
        return connection


class _BoundedAnswer(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol, max_bytes: int) -> None:
        self._transport = transport
        self._protocol = protocol
        self._left_bytes = max_bytes

    def data_received(self, data: bytes) -> None:
        part = data[: max(self._left_bytes, 0)]
        self._left_bytes -= len(data)
        if part:
            self._protocol.data_received(part)
        if self._left_bytes < 0:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(OSError(errno.EMSGSIZE, "a long answer") if self._left_bytes < 0 else exc)
