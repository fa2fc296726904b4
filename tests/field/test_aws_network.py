"""The way to AWS: authorities of one's own, and proxies. STS is reached the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from support.field.identities import Health, Identities, WebIdentity
from support.field.proxy import Proxy
from support.network.tls_front import TlsFront

from simplu_worker.aws import clients
from simplu_worker.aws.clients import open_client, translate_errors
from simplu_worker.aws.credentials import CredentialSource
from simplu_worker.errors import RetryableError

REGION = "eu-west-1"
CALLS = {"kinesis": "list_streams", "dynamodb": "list_tables", "sqs": "list_queues"}


@pytest_asyncio.fixture
async def identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Identities]:
    async with Identities(tmp_path).running() as running:
        running.life_s = 3600.0
        source = WebIdentity(running)
        source.make(Health.WELL)
        keys = running.issue()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        for name, value in source.env().items():
            monkeypatch.setenv(name, value)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        clients._session.cache_clear()
        clients.credential_source.cache_clear()
        yield running
        clients._session.cache_clear()
        clients.credential_source.cache_clear()


async def call_all(url: str) -> None:
    for service, method in CALLS.items():
        async with open_client(service, region=REGION, endpoint_url=f"{url}/kinesis") as client:
            with translate_errors():
                await getattr(client, method)()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_STS", url)
        patch.delenv("AWS_ACCESS_KEY_ID")
        with translate_errors():
            await CredentialSource(clients._new_chain).get_frozen_credentials()


@pytest.mark.slow
async def test_authorities_of_ca_bundle_are_trusted_and_no_others(
    identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TlsFront(identities.url, tmp_path) as front:
        url = f"https://localhost:{front.port}"
        with pytest.raises(RetryableError, match="got one of another; name the CA in AWS_CA_BUNDLE"):
            await call_all(url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "localhost.crt"))
        await call_all(url)
    assert len(identities.accepted) == len(CALLS)


@pytest.mark.slow
async def test_proxies_are_used_but_for_the_hosts_of_no_proxy(
    identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    async with proxy.running() as proxy_url, TlsFront(identities.url, tmp_path) as front:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "localhost.crt"))
        monkeypatch.setenv("HTTP_PROXY", proxy_url)
        monkeypatch.setenv("HTTPS_PROXY", proxy_url)
        tls_url, plain_host = f"https://localhost:{front.port}", identities.url.removeprefix("http://")
        await call_all(identities.url)
        await call_all(tls_url)
        plain, tunnel = ("POST", plain_host), ("CONNECT", f"localhost:{front.port}")
        count = len(CALLS) + 1
        assert proxy.asked == [plain] * count + [tunnel] * count
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        await call_all(identities.url)
        await call_all(tls_url)
        assert len(proxy.asked) == 2 * count
