"""`make audit` asks for advisories about each pin, here a small server in place of the service with the advisories."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from support.requires import ROOT, required_program

ADVISED = "mypy"  # it is in dev.txt alone
IDENTIFIER = "PYSEC-2026-1"
ADVISORY = {"id": IDENTIFIER, "affected": [{"package": {"ecosystem": "PyPI", "name": ADVISED}}]}


class Advisories(BaseHTTPRequestHandler):
    """OSV's API, with one advisory."""

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"vulns": [ADVISORY]} if asked["package"]["name"] == ADVISED else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def advisories_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow(10)
def test_audit_fails_for_the_lock_file_that_an_advisory_is_about(advisories_url: str) -> None:
    commands: list[str] = runpy.run_path(str(ROOT / "run.py"))["COMMANDS"]["audit"][2]
    assert len(commands) == len(list((ROOT / "requirements").glob("*.txt")))
    failed = []
    for command in (one for one in commands if one.endswith(("/dev.txt", "/worker.txt"))):
        program, *words = command.split()
        path = required_program(program, how="python3 run.py tools")
        service = ["--vulnerability-service", "osv", "--osv-url", advisories_url]
        done = subprocess.run([path, *words, *service], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            failed.append(words[-1])
            assert IDENTIFIER in done.stdout, done.stderr
    assert failed == ["requirements/dev.txt"]
