"""What Helm's `lookup` asks of a cluster, answered for one Deployment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.chart.render import NAMESPACE, RELEASE

HOST = "127.0.0.1"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
KINDS = {"kind": "APIResourceList", "groupVersion": "apps/v1"} | {
    "resources": [{"name": "deployments", "namespaced": True, "kind": "Deployment", "verbs": ["get"]}]
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@contextmanager
def running_cluster(replicas: int | None) -> Iterator[str]:
    """Yield the URL of a cluster in which the release has so many replicas; None: in which it is not installed."""
    answers: dict[str, Any] = {"/apis/apps/v1": KINDS}
    if replicas is not None:
        answers[DEPLOYMENT] = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": replicas}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or NOT_FOUND).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
