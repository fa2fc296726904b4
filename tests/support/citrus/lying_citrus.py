"""A server in front of the real local Citrus: it passes requests on, or lies as a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Self
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from simplu_local.processes.loopback import HOST

Lie = Callable[[web.Request], web.Response | None]
"""What to answer instead of the truth; `None`: the truth."""


class LyingCitrus:
    """Listens while it is entered. `requests` are (loop time, method, path, decoded) of all that was asked."""

    def __init__(self, citrus_url: str) -> None:
        self.requests: list[tuple[float, str, str]] = []
        self._citrus_url = citrus_url
        self._lie: Lie | None = None
        self._latency_s = 0.0
        self._exit = contextlib.AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as entered:
            self._session = await entered.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", self._serve)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
            await runner.setup()
            entered.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, HOST, 0).start()
            self.url = f"http://{HOST}:{runner.addresses[0][1]}"
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    @contextlib.contextmanager
    def lying(self, lie: Lie) -> Iterator[None]:
        self._lie = lie
        try:
            yield
        finally:
            self._lie = None

    @contextlib.contextmanager
    def slow(self, latency_s: float) -> Iterator[None]:
        self._latency_s = latency_s
        try:
            yield
        finally:
            self._latency_s = 0.0

    def asked_at(self, text: str) -> list[float]:
        return [at for at, _, path in self.requests if text in path]

    async def _serve(self, request: web.Request) -> web.Response:
        self.requests.append((asyncio.get_running_loop().time(), request.method, unquote(request.raw_path)))
        body = await request.read()
        if self._lie is not None and (lie := self._lie(request)) is not None:
            return lie
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        url = URL(f"{self._citrus_url}{request.raw_path}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), content_type=answer.content_type, charset="utf-8"
            )
