"""Endpoints for tests of AWS clients: moto as a child process, and a server that answers by a script."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web

from simplu_local.aws_server.account import REGION
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import CREDENTIALS, start_moto
from simplu_worker.aws.clients import Client, open_client

__all__ = ["CREDENTIALS", "REGION", "ScriptedAws", "client_of", "empty_moto", "running_moto"]


@contextmanager
def running_moto() -> Iterator[str]:
    """Run an empty moto for as long as the context; yield its endpoint URL."""
    with ProcessGroup() as group:
        yield asyncio.run(start_moto(group))


def empty_moto(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")) as answer:  # our own
        assert answer.status == HTTPStatus.OK


@asynccontextmanager
async def client_of(service: str, endpoint_url: str) -> AsyncIterator[Client]:
    async with open_client(service, region=REGION, endpoint_url=endpoint_url) as client:
        yield client


class ScriptedAws:
    """A service of AWS's JSON protocol: gives the answers of `script` in order and records its requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.script: deque[tuple[int, dict[str, Any]]] = deque()
        self.clock_ahead = timedelta()

    def answer(self, body: dict[str, Any]) -> None:
        self.script.append((200, body))

    def refuse(self, code: str, *, status: int = 400) -> None:
        self.script.append((status, {"__type": f"com.amazonaws.example#{code}", "message": "as scripted"}))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen on a free port of loopback; yield the endpoint URL."""
        application = web.Application()
        application.router.add_post("/", self._answer)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        self.requests.append((operation, json.loads(await request.read())))
        status, body = self.script.popleft()
        headers = {"Date": format_datetime(datetime.now(UTC) + self.clock_ahead, usegmt=True)}
        return web.json_response(body, status=status, headers=headers, content_type="application/x-amz-json-1.1")
