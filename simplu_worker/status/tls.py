"""HTTPS: connections whose handshake has to succeed before the server sees them, in a bounded number and time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import structlog

ACCEPT_AGAIN_S: Final = 0.1  # after an error such as too many open files

log = structlog.get_logger(__name__)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context of a server: TLS 1.2 or newer. Raises OSError for files that do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=_refuse_password)
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextlib.asynccontextmanager
async def accepting(
    listener: asyncio.Server,
    factory: Callable[[], asyncio.BaseProtocol],
    context: Callable[[], ssl.SSLContext],
    *,
    backlog: int,
    handshakes_max: int,
    handshake_s: float,
) -> AsyncIterator[None]:
    """Accept on the sockets of *listener*, which does not serve itself, while the context is open.

    A connection gets its protocol after its handshake. Beyond *handshakes_max* the oldest one ends.
    """
    loop = asyncio.get_running_loop()
    handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def shake_hands(connection: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(factory, connection, ssl=context(), ssl_handshake_timeout=handshake_s)
        except OSError as exc:  # of the peer, or no handshake in time
            log.debug("http.no_handshake", problem=type(exc).__name__)
        except asyncio.CancelledError:
            connection.close()
            raise

    async def accept_on(raw: socket.socket) -> None:
        while True:
            try:
                connection, _ = await loop.sock_accept(raw)
            except OSError:
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if len(handshakes) >= handshakes_max:
                oldest = next(iter(handshakes))
                del handshakes[oldest]
                oldest.cancel()
            task = loop.create_task(shake_hands(connection), name="tls-handshake")
            handshakes[task] = None
            task.add_done_callback(lambda ended: handshakes.pop(ended, None))

    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(one.dup()) for one in listener.sockets]
        for raw in raws:
            raw.setblocking(False)
            raw.listen(backlog)
        accepts = [loop.create_task(accept_on(raw), name="tls-accept") for raw in raws]
        try:
            yield
        finally:
            ending = [*accepts, *handshakes]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)


def _refuse_password() -> str:
    raise ValueError("expected a private key without a password")
