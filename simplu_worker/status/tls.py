"""TLS of the HTTP server and of its clients on this machine, and files that are read again at each SIGHUP.

As a program it is the image's HEALTHCHECK: its exit status is 0 only if `/livez` answers 200. No proxy is asked.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from simplu_worker.errors import ConfigurationError


def own_url(http_host: str | None, http_port: int | str, *, is_https: bool = False) -> str:
    """Return the URL at which a server listens that got `HTTP_HOST`, if any, and `HTTP_PORT`."""
    scheme = "https" if is_https else "http"
    host = {None: "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(http_host, http_host)  # noqa: S104 - it is asked
    return f"{scheme}://[{host}]:{http_port}" if ":" in str(host) else f"{scheme}://{host}:{http_port}"


def own_client_context(certificate: Path) -> ssl.SSLContext:
    """Return the context of a client on this machine: it trusts that very certificate, whatever name it has."""
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


ANSWER_WITHIN_S = 4.0
DEFAULT_PORT = "8080"


def main() -> None:
    """Ask `/livez`. Raises OSError unless it answers 200."""
    is_https = bool(os.environ.get("HTTP_TLS_CERT_FILE"))
    port = os.environ.get("HTTP_PORT", "")
    port = port if port.isdecimal() else DEFAULT_PORT  # a service link of Kubernetes counts as unset
    url = own_url(os.environ.get("HTTP_HOST"), port, is_https=is_https)
    context = None
    if is_https:  # whatever its certificate: an expired one must not end replicas that work; the request has no token
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    opener.open(f"{url}/livez", timeout=ANSWER_WITHIN_S).close()


if __name__ == "__main__":
    main()


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
        trial = _empty_context()
        trial.load_cert_chain(self._certificate, self._key, password=_refuse_password)
        end = _end_of(self._certificate, trial)
        self.context.load_cert_chain(self._certificate, self._key, password=_refuse_password)
        return end


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
