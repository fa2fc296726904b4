"""HTTPS: connections whose handshake has to succeed before the server sees them, in a bounded number and time.

Files of settings that are read again while the worker runs: a renewed certificate, another list of tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import structlog

from simplu_worker.bulkheads import keep_running
from simplu_worker.errors import ConfigurationError
from simplu_worker.status.own_server import own_client_context
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import repeat_every
from simplu_worker.vocabulary import TargetKind

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


REREAD_EVERY_S: Final = 5.0
REFUSED_LOG_EVERY_S: Final = 60.0
FILE_MAX_BYTES: Final = 1 << 20

Value = TypeVar("Value")


class WatchedFiles(Generic[Value]):
    """The *value* that *load* makes of the bytes of *files*, which are given by the variables that name them.

    *load* raises ValueError, or OSError, for files that it cannot use. Raises `ConfigurationError` for the first ones;
    later the value before them stays.
    """

    def __init__(self, files: Mapping[str, Path], load: Callable[[Sequence[bytes]], Value]) -> None:
        self._files = files
        self._load = load
        self._contents: Sequence[bytes] = ()
        self._refused_at = float("-inf")
        try:
            self.value = self._read()
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"{self._names}: {_problem_of(exc)}") from exc

    def __repr__(self) -> str:
        return self._names

    @property
    def _names(self) -> str:
        return ", ".join(self._files)

    async def reread(self) -> None:
        """Take over what the files have now; log where they cannot be used, once a minute."""
        before = self._contents
        try:
            self.value = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as exc:
            if loop_time() - self._refused_at >= REFUSED_LOG_EVERY_S:
                self._refused_at = loop_time()
                log.error("file.refused", variables=list(self._files), problem=_problem_of(exc))  # noqa: TRY400  # the text tells it all
            return
        self._refused_at = float("-inf")
        if self._contents != before:
            log.info("file.reread", variables=list(self._files))

    def _read(self) -> Value:
        contents = [_read_bounded(path) for path in self._files.values()]
        if contents == self._contents:
            return self.value
        value = self._load(contents)
        self._contents = contents
        return value


@contextlib.asynccontextmanager
async def rereading(watched: Sequence[WatchedFiles[Any]]) -> AsyncIterator[None]:
    """Read the files again and again while the context is open."""
    tasks = [
        asyncio.create_task(
            keep_running(TargetKind.REPLICA, str(one), "files", partial(repeat_every, REREAD_EVERY_S, one.reread)),
            name=f"files:{one}",
        )
        for one in watched
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_MAX_BYTES + 1)
    if len(content) > FILE_MAX_BYTES:
        raise ValueError(f"expected at most {FILE_MAX_BYTES} bytes, got more")
    return content


def _problem_of(exc: Exception) -> str:
    """Return what is wrong; an error of the system or of TLS without the path, and ValueErrors are for people."""
    return f"expected a file that can be used, got: {exc.strerror or exc}" if isinstance(exc, OSError) else str(exc)
