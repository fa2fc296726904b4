"""The cause of a request over HTTP that got no answer, in words, without the bytes that came."""

from __future__ import annotations

import os
import socket
import ssl

import aiohttp

CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "its answer broke off, or cannot be decompressed"),
    (aiohttp.ClientResponseError, "its answer is not HTTP"),
)


def network_cause(error: BaseException) -> str:
    """Return why a request of aiohttp got no whole answer."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _tls_cause(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _tls_cause(error.os_error) if isinstance(error.os_error, ssl.SSLError) else _os_cause(error.os_error)
    known = next((cause for kind, cause in CAUSES if isinstance(error, kind)), None)
    return known or (_os_cause(error) if isinstance(error, OSError) else type(error).__name__)


def _os_cause(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host's name was not resolved: {error.strerror}"
    return os.strerror(error.errno) if error.errno else "no connection to any of its addresses"


def _tls_cause(error: BaseException) -> str:
    return f"TLS: {getattr(error, 'verify_message', None) or getattr(error, 'reason', None) or type(error).__name__}"
