"""HTTP to a host that others named: each address is judged as it is connected to, and an answer is bounded.

A name may lead to another address at each look-up. So no look-up is judged, but the address of each socket, in the step
that makes it; a connection that is used again was judged as well. Nothing follows a redirect, and no proxy of the
environment is used, which would connect in the worker's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp

from simplu_worker.feed.allowed_hosts import AllowedHosts, parse_address
from simplu_worker.http_connector import BoundedConnector
from simplu_worker.network_errors import network_cause

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_MAX_BYTES: Final = 65_536  # its head included; of its body nothing matters

REQUEST_ERRORS: Final = (aiohttp.ClientError, OSError, TimeoutError)


class AddressNotAllowedError(OSError):
    """The host has an address that may not be connected to."""


@contextlib.asynccontextmanager
async def open_guarded_session(
    host: str, allowed: AllowedHosts, *, connections: int, timeout_s: float
) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session for requests to *host* alone, with at most *connections*; each is over after *timeout_s*."""

    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = info
        _judge(host, place[0], allowed)
        return socket.socket(family, kind, protocol)

    async with aiohttp.ClientSession(
        connector=BoundedConnector(REPLY_MAX_BYTES, limit=connections, socket_factory=make_socket),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "simplu-worker"},
        auto_decompress=False,
    ) as session:
        yield session


async def connect(host: str, port: int, allowed: AllowedHosts, *, has_tls: bool) -> None:
    """Connect to *host*, at the first of its addresses that takes the connection, and close it without a request.

    Raises one of REQUEST_ERRORS, that of the last address.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: Exception = OSError(errno.EHOSTUNREACH, "no address")
    for address in dict.fromkeys(str(place[0]) for *_, place in found):
        try:
            _judge(host, address, allowed)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(
                    address, port, ssl=has_tls or None, server_hostname=host if has_tls else None
                )
        except TimeoutError:
            failure = OSError(errno.ETIMEDOUT, "no connection in time")
            continue
        except REQUEST_ERRORS as exc:
            failure = exc
            continue
        writer.transport.abort()
        return
    raise failure


def _judge(host: str, address: str, allowed: AllowedHosts) -> None:
    """Raise `AddressNotAllowedError` if *host* may not be connected to at *address*."""
    parsed = parse_address(address)
    problem = "expected an address" if parsed is None else allowed.address_problem(host, parsed)
    if problem is not None:
        raise AddressNotAllowedError(errno.EACCES, problem)


def cause_of(exc: BaseException) -> str:
    """Return why a request of such a session got no answer; *exc* is one of REQUEST_ERRORS."""
    inner = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    return str(inner.strerror) if isinstance(inner, AddressNotAllowedError) else network_cause(exc)
