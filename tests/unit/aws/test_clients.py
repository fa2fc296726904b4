"""Our clients send and read the same as botocore's, faster. No request leaves this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import EndpointConnectionError
from botocore.loaders import JSONFileLoader, Loader
from botocore.useragent import UserAgentString

from simplu_worker.aws.clients import Client, ModelFiles, open_client
from simplu_worker.consumers.kinesis.leases.table_requests import decode_rows
from simplu_worker.errors import ConfigurationError

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

    async with AioSession().create_client("kinesis", region_name=REGION) as plain:
        expected = (await agents_of(plain, 1))[0]  # it tries more than once
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
    assert decode_rows(body) == {"Items": [{"leaseKey": {"S": "one"}, "parents": {"SS": ["a"]}}], "Count": 1}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"Items": "\xff"}'])
def test_rows_that_are_none_are_an_error(body: bytes) -> None:
    """It becomes a `ResponseParserError`, which is transient."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_rows(body)
