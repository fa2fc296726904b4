"""Network errors in words, by the class and code of what was raised."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest

from simplu_worker import network_errors
from simplu_worker.network_errors import listen_cause, network_cause


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
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
    ],
)
def test_cause_is_in_words(error: BaseException, cause: str) -> None:
    text = network_cause(error, ca_setting="sslrootcert")
    assert cause in text
    assert ":" not in text
    assert "rrno" not in text


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EADDRINUSE, "address already in use"), "another program listens there; end it"),
        (OSError(errno.EADDRNOTAVAIL, "cannot assign"), "this machine has no such address"),
        (PermissionError(errno.EACCES, "Permission denied"), "this user may not listen there"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "this machine has no such address"),
    ],
)
def test_reason_not_to_listen_has_a_remedy(error: OSError, cause: str) -> None:
    assert listen_cause(error).startswith(cause)
