"""TLS of the HTTP server, and files of settings that are read again at each SIGHUP."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from simplu_worker.errors import ConfigurationError
from simplu_worker.status.own_server import own_client_context

NO_CHECK_TIME: Final = 0x200000  # OpenSSL, x509_vfy.h: X509_V_FLAG_NO_CHECK_TIME


class ServerTls:
    """The *context* of a server; handshakes need `read` first."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context = _empty_context()

    def read(self) -> datetime:
        """Use the files from the next handshake on, and return when the certificate expires.

        Raises OSError, and changes nothing, for files that do not fit.
        """
        trial = server_context(self._certificate, self._key)
        end = _end_of(self._certificate, trial)
        self.context.load_cert_chain(self._certificate, self._key, password=_refuse_password)
        return end


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context. Raises OSError for files that do not fit."""
    context = _empty_context()
    context.load_cert_chain(certificate, key, password=_refuse_password)
    return context


def _empty_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _end_of(certificate: Path, context: ssl.SSLContext) -> datetime:
    """Return when a certificate expires, by a handshake in memory: `ssl` decodes only a peer's."""
    trusting = own_client_context(certificate)
    trusting.verify_flags |= NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = (trusting.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True))
    for one in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.do_handshake()
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"])), UTC)


def _refuse_password() -> str:
    raise ValueError("expected a private key without a password")


Value = TypeVar("Value")

log = structlog.get_logger(__name__)


class WatchedFiles(Generic[Value]):
    """The *value* that *load* makes of the files that *variables* name.

    Where *load* raises ValueError or OSError, that is a `ConfigurationError` at first; later the value stays.
    """

    def __init__(self, variables: Sequence[str], load: Callable[[], Value]) -> None:
        self._variables = list(variables)
        self._load = load
        try:
            self.value = load()
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"{', '.join(variables)}: {_problem_of(exc)}") from exc

    def reread(self) -> None:
        """Take over the files, or log why not."""
        try:
            self.value = self._load()
        except (OSError, ValueError) as exc:
            log.error("file.refused", variables=self._variables, problem=_problem_of(exc))  # noqa: TRY400  # the text tells it all
        else:
            log.info("file.reread", variables=self._variables)


def _problem_of(exc: Exception) -> str:
    """Return what is wrong, without the path; ValueErrors are for people."""
    return f"expected a file that can be used, got: {exc.strerror or exc}" if isinstance(exc, OSError) else str(exc)
