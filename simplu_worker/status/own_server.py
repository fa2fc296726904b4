"""The HTTP server of a worker on this machine, for its clients there: its URL, and trust in its certificate.

As a program it is the image's HEALTHCHECK: its exit status is 0 only if `/livez` answers 200. No proxy is asked.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from pathlib import Path


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
    context = _any_certificate() if is_https else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    opener.open(f"{url}/livez", timeout=ANSWER_WITHIN_S).close()


def _any_certificate() -> ssl.SSLContext:
    """Return a client's context that takes every certificate: an expired one must not end replicas that work.

    The request has no token.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


if __name__ == "__main__":
    main()
