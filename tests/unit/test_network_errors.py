"""Network errors in words, by the class and code of what was raised."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import aiohttp
import pytest

from simplu_worker import network_errors
from simplu_worker.network_errors import network_cause


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def tls_error(reason: str | None, message: str | None = None) -> ssl.SSLError:
    error: Any = ssl.SSLError(1, "an error")
    error.reason, error.verify_message = reason, message
    return error  # type: ignore[no-any-return]


def http_error(kind: type[aiohttp.ClientError], cause: BaseException | None = None, *texts: Any) -> aiohttp.ClientError:
    """Return an error of aiohttp; its own constructors want parts of requests."""
    error = kind.__new__(kind, *texts)
    error.args = texts
    for name in ("_os_error", "_certificate_error"):
        setattr(error, name, cause)
    error.status = 407  # type: ignore[attr-defined]
    return error


def certificate_error(code: int) -> ssl.SSLCertVerificationError:
    error: Any = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_code = code
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), network_errors.NO_SERVER),
        (OSError(errno.ECONNREFUSED, "Multiple exceptions"), network_errors.NO_SERVER),
        (OSError("Multiple exceptions: [Errno 111], [Errno 113]"), "expected a connection, got none to any of its"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), network_errors.CLOSED),
        (BrokenPipeError(), network_errors.CLOSED),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), network_errors.UNKNOWN_HOST),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), network_errors.NO_DNS),
        (TimeoutError(), network_errors.NO_ANSWER),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), network_errors.NO_CONNECTION),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "expected a way to the host"),
        (OSError(errno.EMFILE, "Too many open files"), "expected a socket, this process may open no more files"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "expected a socket in the file system"),
        (certificate_error(10), "expected a valid certificate, got one that has expired"),
        (certificate_error(9), "expected a valid certificate, got one of the future"),
        (certificate_error(62), "expected a certificate for that host"),
        (certificate_error(18), "got one of another; name the CA in sslrootcert"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "expected TLS, it closed the connection"),
        (chained(RuntimeError("asyncpg"), ConnectionRefusedError()), network_errors.NO_SERVER),
        (RuntimeError("unforeseen"), network_errors.UNEXPLAINED),
        (tls_error("WRONG_VERSION_NUMBER"), network_errors.NO_TLS),
        (tls_error("NO_SHARED_CIPHER"), "got an error (no shared cipher); see the log"),
        (tls_error("OTHER", "its own words"), "got an error (its own words); see the log"),
        (tls_error(None), "got an error (no reason given); see the log"),
        (http_error(aiohttp.ClientHttpProxyError), "expected a tunnel of the proxy, got HTTP status 407"),
        (
            http_error(aiohttp.ClientConnectorCertificateError, certificate_error(18)),
            "got one of another; name the CA in sslrootcert",
        ),
        (http_error(aiohttp.ClientConnectorError, ConnectionRefusedError()), network_errors.NO_SERVER),
        (http_error(aiohttp.ClientConnectorSSLError, certificate_error(2)), "name the CA in sslrootcert"),
        (http_error(aiohttp.InvalidURL), network_errors.NO_URL),
        (http_error(aiohttp.ConnectionTimeoutError), network_errors.NO_CONNECTION),
        (http_error(aiohttp.ServerDisconnectedError), network_errors.CLOSED),
        (http_error(aiohttp.ClientPayloadError), network_errors.BROKEN_OFF),
        (http_error(aiohttp.ClientResponseError), network_errors.NOT_HTTP),
    ],
)
def test_cause_is_in_words(error: BaseException, cause: str) -> None:
    text = network_cause(error, ca_setting="sslrootcert")
    assert cause in text
    assert ":" not in text
    assert "rrno" not in text


def test_ca_is_named_by_the_setting_of_openssl() -> None:
    assert "name the CA in SSL_CERT_FILE" in network_cause(certificate_error(18))


def test_cause_is_that_of_the_context_too() -> None:
    error = RuntimeError("a library's")
    error.__context__ = ConnectionRefusedError()
    assert network_cause(error) == network_errors.NO_SERVER
