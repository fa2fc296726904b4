"""HTTPS: connections whose handshake has to succeed before the server sees them, in a bounded number and time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from simplu_worker.status.own_server import own_client_context

NO_CHECK_TIME: Final = 0x200000  # OpenSSL, x509_vfy.h: X509_V_FLAG_NO_CHECK_TIME
ACCEPT_AGAIN_S: Final = 0.1  # after an error such as too many open files

log = structlog.get_logger(__name__)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context of a server: TLS 1.2 or newer. Raises OSError for files that do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=_refuse_password)
    context.set_alpn_protocols(["http/1.1"])
    return context


class ServerTls(NamedTuple):
    """The context of a server, and when its certificate expires."""

    context: ssl.SSLContext
    certificate_end: datetime


def load_tls(certificate: Path, key: Path) -> ServerTls:
    """Return the TLS of a server with these files. Raises OSError for files that do not fit."""
    context = server_context(certificate, key)
    return ServerTls(context, _end_of(certificate, context))


def _end_of(certificate: Path, context: ssl.SSLContext) -> datetime:
    """Return when a certificate expires, by a handshake in memory: `ssl` decodes none but that of a peer."""
    trusting = own_client_context(certificate)
    trusting.verify_flags |= NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = (
        trusting.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    )
    for one in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.do_handshake()
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"])), UTC)


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
