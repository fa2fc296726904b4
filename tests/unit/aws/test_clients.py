"""Clients and their errors. No request leaves this process."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiobotocore
import botocore
import pytest
from aiobotocore.session import AioSession
from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_worker.aws import clients
from simplu_worker.aws.clients import open_client, translate_errors
from simplu_worker.aws.credentials import CredentialSource
from simplu_worker.errors import ConfigurationError, RetryableError
from simplu_worker.network_errors import BROKEN_OFF, NO_ANSWER, NO_SERVER

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def variables_of_botocore() -> list[str]:
    source = "".join(
        file.read_text(encoding="utf-8")
        for package in (botocore, aiobotocore)
        for file in Path(package.__file__).parent.rglob("*.py")
    )
    names = set(re.findall(r"""['"]((?:AWS|BOTO|BOTOCORE|REQUESTS)_[A-Z0-9_]+)['"]""", source))
    services = {f"AWS_ENDPOINT_URL_{service}" for service in ("KINESIS", "SQS", "DYNAMODB")}
    return sorted(names | services | {"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"})


@pytest.mark.slow(8)
async def test_variable_that_botocore_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: dict[str, str] = {}
    loader = clients._session().get_component("data_loader")
    async with serving(no_streams) as url:
        for name in variables_of_botocore():
            session = AioSession()
            session.register_component("data_loader", loader)
            source = CredentialSource(clients._new_chain)
            session.register_component("credential_provider", source)
            with monkeypatch.context() as patch:
                patch.setattr(clients, "_session", lambda session=session: session)
                patch.setattr(clients, "credential_source", lambda source=source: source)
                patch.setenv(name, "/nowhere/bogus!")
                try:
                    async with open_client("kinesis", region=REGION):
                        pass
                    async with open_client("kinesis", region=REGION, endpoint_url=url) as client:
                        assert await client.list_streams(), name
                except ConfigurationError as exc:
                    problems[name] = str(exc)
    assert [text for name, text in problems.items() if not text.startswith(f"{name}: ")] == []
    assert problems.keys() >= {
        "AWS_STS_REGIONAL_ENDPOINTS",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_CA_BUNDLE",
        "HTTPS_PROXY",
    }


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


async def no_streams(_: web.Request) -> web.StreamResponse:
    return web.Response(text='{"StreamNames": [], "HasMoreStreams": false}', content_type="application/x-amz-json-1.1")


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
