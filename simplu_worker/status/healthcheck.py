"""Whether the worker on this machine is live: `python -m simplu_worker.status.healthcheck`, the image's HEALTHCHECK.

It goes by the worker's own variables. Exit status 0 only if `/livez` answers 200.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

from simplu_worker.status.own_server import own_client_context, own_url

ANSWER_WITHIN_S = 4.0


def main() -> None:
    """Ask `/livez`. Raises OSError unless it answers 200."""
    certificate = os.environ.get("HTTP_TLS_CERT_FILE")
    url = own_url(os.environ.get("HTTP_HOST"), os.environ.get("HTTP_PORT") or 8080, is_https=bool(certificate))
    context = own_client_context(Path(certificate)) if certificate else None
    urllib.request.urlopen(f"{url}/livez", timeout=ANSWER_WITHIN_S, context=context).close()  # noqa: S310 - own_url


if __name__ == "__main__":
    main()
