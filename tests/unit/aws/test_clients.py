"""Clients and their errors. No request leaves this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_worker.aws.clients import open_client, translate_errors
from simplu_worker.errors import RetryableError
from simplu_worker.network_errors import BROKEN_OFF, NO_ANSWER, NO_SERVER

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@contextlib.asynccontextmanager
async def serving(answer: Handler) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/", answer)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def broken_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"secret")
    assert request.transport is not None
    request.transport.close()
    return response


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.Response()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (broken_off, f"^URL: {BROKEN_OFF}$"),
        (never, f"^URL: {NO_ANSWER}$"),
        (None, f"^http://127.0.0.1:1/: {NO_SERVER}$"),
    ],
)
async def test_error_names_address_and_cause(answer: Handler | None, error: str) -> None:
    read_timeout_s = 0.3 if answer is never else 60.0  # a busy machine takes its time for an answer that comes
    async with serving(answer or never) as url:
        asked = "http://127.0.0.1:1/" if answer is None else url
        async with open_client("dynamodb", region=REGION, endpoint_url=asked, read_timeout_s=read_timeout_s) as client:
            with pytest.raises(RetryableError, match=error.replace("URL", url)) as caught, translate_errors():
                await client.list_tables()
    assert "secret" not in str(caught.value)
