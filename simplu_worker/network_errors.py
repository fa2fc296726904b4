"""Network errors in words, without a text of a library: what was expected, what came, and what to do. Pure."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
from typing import Final

NO_CONNECTION: Final = (
    "expected a connection, got none in time; see whether the server runs, and whether a firewall drops the packets"
)
NO_ANSWER: Final = "expected an answer, got none in time; see whether the server runs, is overloaded or hangs"
NO_SERVER: Final = "expected a server at that port, nothing listens there; start it, or correct the address"
CLOSED: Final = "expected an answer, it closed the connection; see its log, and whether it wants TLS"
# Of several addresses, each with a cause of its own.
NO_ADDRESS: Final = "expected a connection, got none to any of its addresses; start the server, or correct the address"
UNKNOWN_HOST: Final = "expected an address for the host's name, the DNS has none; correct the name, or the DNS"
NO_DNS: Final = "expected an address for the host's name, the DNS does not answer; see whether it works on this machine"
NO_TLS: Final = (
    "expected TLS, got something else; correct the port, or use an address without TLS if it is to have none"
)
NOT_HTTP: Final = "expected HTTP, got something else; correct the address, and whether it begins with http or https"
BROKEN_OFF: Final = "expected a whole answer, it broke off or cannot be decompressed; see the server's log"
NO_URL: Final = "expected a URL of http or https, got another text; correct it"
UNEXPLAINED: Final = "expected an answer, got none; see the server's log"

_CAUSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (TimeoutError, NO_ANSWER),
    (ConnectionRefusedError, NO_SERVER),
    (ConnectionError, CLOSED),
    (asyncio.IncompleteReadError, CLOSED),
)

_NO_ROUTE: Final = "expected a way to the host, there is none; correct the address, or the network of this machine"
_TOO_MANY_FILES: Final = "expected a socket, this process may open no more files; raise RLIMIT_NOFILE (ulimit -n)"
_FORBIDDEN: Final = "expected a connection, this machine forbids it; change its firewall, or the rights of this user"
_BY_ERRNO: Final = {
    errno.ECONNREFUSED: NO_SERVER,
    errno.ECONNRESET: CLOSED,
    errno.ECONNABORTED: CLOSED,
    errno.EPIPE: CLOSED,
    errno.ETIMEDOUT: NO_CONNECTION,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EADDRNOTAVAIL: _NO_ROUTE,
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENOENT: "expected a socket in the file system, there is none; start the server, or correct the path",
}

# OpenSSL, x509_vfy.h: X509_V_ERR_*.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OF_UNKNOWN_CA: Final = frozenset({2, 18, 19, 20, 21, 24})
_FOR_OTHERS: Final = frozenset({62, 64})
# The peer sent no TLS: its first bytes are no record of TLS, by three versions of OpenSSL.
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})


def network_cause(error: BaseException, *, ca_setting: str = "SSL_CERT_FILE") -> str:
    """Return why a request got no whole answer; callers put the address and a colon before it.

    *error* is of aiohttp, asyncio, sockets or TLS, or raised from one. *ca_setting* names where a CA is trusted.
    """
    link: BaseException | None = error
    while link is not None:
        if (cause := _cause_of(link, ca_setting)) is not None:
            return cause
        link = link.__cause__ or link.__context__
    return NO_ADDRESS if isinstance(error, OSError) else UNEXPLAINED


def _cause_of(error: BaseException, ca_setting: str) -> str | None:
    # A program that asks nothing over HTTP does not import aiohttp, and has none of its errors.
    if "aiohttp" in sys.modules and (cause := _http_cause(error, ca_setting)) is not None:
        return cause
    if isinstance(error, ssl.SSLError):
        return _tls_cause(error, ca_setting)
    if isinstance(error, socket.gaierror):
        return NO_DNS if error.errno == socket.EAI_AGAIN else UNKNOWN_HOST
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), None)


def _http_cause(error: BaseException, ca_setting: str) -> str | None:
    import aiohttp  # noqa: PLC0415 - see above

    if isinstance(error, aiohttp.ClientHttpProxyError):
        return (
            f"expected a tunnel of the proxy, got HTTP status {error.status}; have the proxy allow the host, or name "
            "it in NO_PROXY"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _cause_of(error.certificate_error, ca_setting)
    if isinstance(error, aiohttp.ClientConnectorError):
        return _cause_of(error.os_error, ca_setting)
    causes = (
        (aiohttp.InvalidURL, NO_URL),
        (aiohttp.ConnectionTimeoutError, NO_CONNECTION),
        (aiohttp.ServerDisconnectedError, CLOSED),
        (aiohttp.ClientPayloadError, BROKEN_OFF),
        (aiohttp.ClientResponseError, NOT_HTTP),
    )
    return next((cause for kind, cause in causes if isinstance(error, kind)), None)


def _tls_cause(error: ssl.SSLError, ca_setting: str) -> str:
    code = getattr(error, "verify_code", None)
    if code == _EXPIRED:
        return "expected a valid certificate, got one that has expired; have it renewed"
    if code == _NOT_YET_VALID:
        return "expected a valid certificate, got one of the future; set the clocks of both machines"
    if code in _FOR_OTHERS:
        return "expected a certificate for that host, got one for others; correct the address, or the certificate"
    if code in _OF_UNKNOWN_CA:
        return (
            f"expected a certificate of a CA that is trusted here, got one of another; name the CA in {ca_setting}, or "
            "correct the address"
        )
    reason = getattr(error, "reason", None) or "no reason given"
    if reason in _NOT_TLS:
        return NO_TLS
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "expected TLS, it closed the connection; see its log, and whether it has TLS at that port"
    shown = getattr(error, "verify_message", None) or reason.replace("_", " ").lower()
    return f"expected TLS that both sides accept, got an error ({shown}); see the log of the server"
