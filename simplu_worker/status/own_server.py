"""The HTTP server of a worker on this machine, for its clients there: its URL, and trust in its certificate."""

from __future__ import annotations

import ssl
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
