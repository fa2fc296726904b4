from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.network.tls_front import make_certificate

from simplu_worker.status import tls
from simplu_worker.status.tls import server_context


class _Worker(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()


@contextmanager
def a_worker(certificate: tuple[Path, Path] | None = None, status: int = 200) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), type("Worker", (_Worker,), {"status": status})) as server:
        if certificate is not None:
            server.socket = server_context(*certificate).wrap_socket(server.socket, server_side=True)
        serving = Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_worker_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    certificate = make_certificate(tmp_path) if scheme == "https" else None
    if certificate is not None:
        monkeypatch.setenv("HTTP_TLS_CERT_FILE", str(certificate[0]))
    with a_worker(certificate) as port:
        monkeypatch.setenv("HTTP_PORT", str(port))
        tls.main()


def test_service_link_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_worker() as port:
        monkeypatch.setattr(tls, "DEFAULT_PORT", str(port))
        monkeypatch.setenv("HTTP_PORT", "tcp://10.0.0.1:80")
        tls.main()
