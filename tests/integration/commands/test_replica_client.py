"""The client of a replica beside a server that answers in parts, as a network does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from support.settings import settings_in

from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.errors import RetryableError

EVENTS = (b": alive\n\n", b"event: status\nda", b'ta: {"a": 1}\n\nevent: fleet\ndata: {}\n\n')
SETTINGS = settings_in({"AWS_REGION": "eu-west-1", "API_VIEWER_TOKEN": "viewer"})


async def answer_in_parts(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for part in EVENTS:
        await response.write(part)
        await asyncio.sleep(0)
    if request.path == "/broken":
        assert request.transport is not None
        request.transport.abort()
    return response


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path}", answer_in_parts)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_events_are_whole_when_they_come_in_parts() -> None:
    async with serving() as url, open_replica(SETTINGS, url) as replica:
        events = [event async for event in replica.listen("/events")]
        assert events == [("status", '{"a": 1}', {"a": 1}), ("fleet", "{}", {})]
        with pytest.raises(RetryableError):
            _ = [event async for event in replica.listen("/broken")]
