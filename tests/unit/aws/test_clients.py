"""Our clients send and read the same as botocore's, faster, and up to a limit. No request leaves this process."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from aiohttp import web
from aiohttp.typedefs import Handler
from botocore.exceptions import EndpointConnectionError, UnknownServiceError
from botocore.loaders import JSONFileLoader, Loader
from botocore.useragent import UserAgentString

from simplu_worker.aws.clients import REPLY_MAX_BYTES, Client, ModelFiles, ServiceModels, open_client, translate_errors
from simplu_worker.aws.direct_calls import decode_frequent
from simplu_worker.errors import ConfigurationError, RetryableError

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize(
    "name",
    ["endpoints", "partitions", "kinesis/2013-12-02/service-2", "sqs/2012-11-05/endpoint-rule-set-1", "sqs/missing"],
)
def test_models_are_what_botocore_reads(name: str) -> None:
    """A model is read compressed or not; a missing file gives None."""
    path = f"{Loader.BUILTIN_DATA_PATH}/{name}"
    assert ModelFiles().load_file(path) == JSONFileLoader().load_file(path)


def test_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Models of `AWS_DATA_PATH` and `~/.aws/models` override those of botocore."""
    (tmp_path / "service-2.json").write_text('{"metadata": ')
    with pytest.raises(ConfigurationError, match=r"service-2\.json: expected a model of botocore in JSON; .*truncated"):
        ModelFiles().load_file(str(tmp_path / "service-2"))


def test_model_of_the_users_own_is_found_before_that_of_botocore(tmp_path: Path) -> None:
    """As with botocore's own loader, which looks through the folders of all services first."""
    folder = tmp_path / "kinesis" / "2013-12-02"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text('{"metadata": {"own": true}}')
    assert ServiceModels(f"{tmp_path}/none:{tmp_path}").load_service_model("kinesis", "service-2") == {
        "metadata": {"own": True}
    }
    assert ServiceModels(None).load_service_model("sqs", "service-2")["metadata"]["endpointPrefix"] == "sqs"
    with pytest.raises(UnknownServiceError, match="s3"):
        ServiceModels(None).load_service_model("s3", "service-2")


async def test_clients_share_one_tls_context() -> None:
    """The authorities that it knows take a while to load, for each client when it first connects."""
    async with open_client("kinesis", region=REGION) as one, open_client("sqs", region=REGION) as other:
        contexts = [client._endpoint.http_session._build_ssl_contexts(None) for client in (one, other)]
    assert contexts[0][0] is contexts[1][0]
    assert contexts[0][0].check_hostname
    assert contexts[0][0].verify_mode is ssl.CERT_REQUIRED
    assert contexts[0][0].cert_store_stats()["x509_ca"] > 100


async def test_clients_have_models_without_ordered_dicts() -> None:
    """OrderedDicts would take 5 MiB more."""
    async with open_client("kinesis", region=REGION) as client:
        assert type(client.meta.service_model.metadata) is dict


async def agents_of(client: Client, count: int) -> list[str]:
    """Return the User-Agents of *count* requests of *client*; none of them is sent."""
    agents: list[str] = []

    def note(request: Any, **_: Any) -> None:
        agents.append(request.headers["User-Agent"].decode())
        raise EndpointConnectionError(endpoint_url=request.url)

    client.meta.events.register("before-send", note)
    for _ in range(count):
        with pytest.raises(EndpointConnectionError):
            await client.list_shards(StreamName="stream")
    return agents


async def test_user_agent_is_botocores_own_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS counts features by it, and users find their requests by it. Each client has its own."""
    made: list[str] = []
    make = UserAgentString.to_string

    def counted(self: UserAgentString) -> str:
        made.append(make(self))
        return made[-1]

    once = AioConfig(retries={"total_max_attempts": 1})
    async with AioSession().create_client("kinesis", region_name=REGION, config=once) as plain:
        (expected,) = await agents_of(plain, 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:1")
    monkeypatch.setattr(UserAgentString, "to_string", counted)
    async with open_client("kinesis", region=REGION) as client:
        made.clear()
        elsewhere = await agents_of(client, 3)
    assert len(made) == 1
    assert len(set(elsewhere)) == 1
    monkeypatch.delenv("AWS_ENDPOINT_URL_KINESIS")
    async with open_client("kinesis", region=REGION) as client:
        ours = await agents_of(client, 2)
    assert elsewhere[0] != ours[0]  # it marks an endpoint that is not AWS's
    assert parts_of(ours[0]) == parts_of(ours[1]) == parts_of(expected)


def parts_of(agent: str) -> set[str]:
    """Return the parts of a User-Agent that botocore decides; features have no order."""
    parts = set(agent.split())
    features = next(part for part in parts if part.startswith("m/"))
    not_of_client = {"D", "E", "g"}  # modes of retry, and credentials that were read for it
    counted = set(features.removeprefix("m/").split(",")) - not_of_client
    return {part for part in parts if not part.startswith(("m/", "cfg/"))} | counted


def test_rows_are_decoded_as_botocore_does() -> None:
    """A member that is null counts as missing."""
    body = b'{"Items": [{"leaseKey": {"S": "one"}, "parents": {"SS": ["a"]}}], "Count": 1, "LastEvaluatedKey": null}'
    assert decode_frequent(body) == {"Items": [{"leaseKey": {"S": "one"}, "parents": {"SS": ["a"]}}], "Count": 1}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"Items": "\xff"}', b'{"Items": 1}', b'{"Messages": ["a"]}'])
def test_rows_that_are_none_are_an_error(body: bytes) -> None:
    """It becomes a `ResponseParserError`, which is transient."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_frequent(body)


@contextlib.asynccontextmanager
async def serving(answer: Handler) -> AsyncIterator[str]:
    """Serve *answer* as every answer of AWS; yield the URL."""
    application = web.Application()
    application.router.add_post("/", answer)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


MEGABYTE = b"x" * 1024 * 1024


async def endless(request: web.Request) -> web.StreamResponse:
    """Answer without an end."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-amz-json-1.0"})
    await response.prepare(request)
    for _ in range(4 * REPLY_MAX_BYTES // len(MEGABYTE)):
        await response.write(MEGABYTE)
    return response


async def packed(_: web.Request) -> web.StreamResponse:
    """Answer with something that is long when it is decompressed."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/x-amz-json-1.0"}
    return web.Response(body=gzip.compress(b" " * 2 * REPLY_MAX_BYTES), headers=headers)


async def broken_off(request: web.Request) -> web.StreamResponse:
    """Answer with half of what is announced."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"secret")
    assert request.transport is not None
    request.transport.close()
    return response


async def never(_: web.Request) -> web.StreamResponse:
    """Answer too late."""
    await asyncio.sleep(5)
    return web.Response()


@pytest.mark.parametrize("service", ["dynamodb", "kinesis", "sqs"])
async def test_answer_is_read_up_to_a_limit(service: str) -> None:
    """No service sends as much."""
    calls = {"dynamodb": "list_tables", "kinesis": "list_streams", "sqs": "list_queues"}
    async with serving(endless) as url, open_client(service, region=REGION, endpoint_url=url) as client:
        error = f"^{url}: expected an answer of at most {REPLY_MAX_BYTES} bytes"
        with pytest.raises(RetryableError, match=error), translate_errors():
            await getattr(client, calls[service])()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (packed, "expected JSON of AWS, got something else"),
        (broken_off, "^URL: its answer broke off, or cannot be decompressed$"),
        (never, "^URL: no answer in time$"),
        (None, "^http://127.0.0.1:1/: Connection refused$"),
    ],
)
async def test_error_names_address_and_cause(answer: Handler | None, error: str) -> None:
    """Not a class of a library, and no byte of the answer. A compressed answer, never asked for, stays compressed."""
    async with serving(answer or never) as url:
        asked = "http://127.0.0.1:1/" if answer is None else url
        async with open_client("dynamodb", region=REGION, endpoint_url=asked, read_timeout_s=0.3) as client:
            with pytest.raises(RetryableError, match=error.replace("URL", url)) as caught, translate_errors():
                await client.list_tables()
    assert "secret" not in str(caught.value)
