"""A local Citrus for a command in the process of a test, behind a server that refuses what the test tells it to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web
from support.citrus.cases import API_KEY
from support.settings import settings_in
from yarl import URL

from simplu_local.processes.loopback import HOST
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.address import ShardAddress

Lie = Callable[[web.Request], web.Response | None]
"""What to answer instead of the truth; `None`: the truth."""


class LyingCitrus:
    """Listens while it is entered."""

    def __init__(self, citrus_url: str) -> None:
        self._citrus_url = citrus_url
        self._lie: Lie | None = None
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

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self._lie is not None and (lie := self._lie(request)) is not None:
            return lie
        url = URL(f"{self._citrus_url}{request.raw_path}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), content_type=answer.content_type, charset="utf-8"
            )


@dataclass(frozen=True)
class CommandCitrus:
    """The local Citrus, the server in front of it, and the settings of a command that asks it."""

    server: CitrusServer
    door: LyingCitrus
    settings: Settings

    def named(self, tenant_id: str) -> str:
        return self.server.registry.homes[tenant_id].shard_id


@contextlib.asynccontextmanager
async def citrus_for_commands(
    shards: Sequence[ShardAddress], homes: Mapping[str, str], *, limits: Mapping[str, int] | None = None
) -> AsyncIterator[CommandCitrus]:
    """Put a Citrus in front of *shards*, with the *homes* of tenants, and a limit of tenants by shard (100)."""

    async def make_shard() -> tuple[str, str]:
        raise AssertionError("all shards are full")

    server = CitrusServer(api_key=API_KEY, make_shard=make_shard, max_businesses=100)
    for shard in shards:
        added = server.add_shard(shard.shard_id, shard.connection_string)
        added.max_businesses = (limits or {}).get(shard.shard_id, added.max_businesses)
    for tenant_id, shard_id in homes.items():
        server.registry.place(tenant_id, server.registry.shards[shard_id])
    async with server.serve() as url, LyingCitrus(url) as door:
        env = {"CITRUS_SERVER_URL": door.url, "CITRUS_API_KEY": API_KEY, "CITRUS_RETRY_ATTEMPTS": "1"}
        yield CommandCitrus(server, door, settings_in({"AWS_REGION": "eu-west-1"} | env))


def refused(method: str, status: int) -> Lie:
    return _instead(method, lambda _: web.json_response({"error": "not here"}, status=status))


def cut(method: str) -> Lie:
    def abort(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return _instead(method, abort)


def _instead(method: str, answer: Callable[[web.Request], web.Response]) -> Lie:
    return lambda request: answer(request) if request.method == method else None
