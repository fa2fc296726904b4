"""The local Kinesis over HTTP, for a client of AWS: its protocol, and the commands of its control path."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from botocore.exceptions import BotoCoreError
from support.aws.endpoints import CREDENTIALS, client_of

from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import KinesisFault
from simplu_local.kinesis.model import KinesisOptions
from simplu_local.kinesis.server import serve_kinesis
from simplu_worker.aws.clients import Client

NAME = "stream"
SHARD = "shardId-000000000000"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serve_kinesis(options=KinesisOptions(create_delay_ms=0, update_delay_ms=0, delete_delay_ms=0)) as url:
        yield url


@pytest.fixture
async def kinesis(url: str) -> AsyncIterator[Client]:
    async with client_of("kinesis", url) as client:
        await client.create_stream(StreamName=NAME, ShardCount=2)
        yield client


async def put(kinesis: Client, data: bytes) -> str:
    answer = await kinesis.put_record(StreamName=NAME, PartitionKey="k", Data=data, ExplicitHashKey="0")
    return str(answer["SequenceNumber"])


async def iterator(kinesis: Client) -> str:
    answer = await kinesis.get_shard_iterator(StreamName=NAME, ShardId=SHARD, ShardIteratorType="TRIM_HORIZON")
    return str(answer["ShardIterator"])


async def kept(kinesis: Client) -> list[bytes]:
    answer = await kinesis.get_records(ShardIterator=await iterator(kinesis))
    return [record.data for record in answer["Reply"].records]


@pytest.mark.parametrize(("applied", "expected"), [(False, []), (True, [b"cut"])])
async def test_cut_loses_the_request_or_only_its_answer(
    url: str, kinesis: Client, *, applied: bool, expected: list[bytes]
) -> None:
    await send_commands(url, KinesisFault(action="PutRecord", kind="cut", applied=applied))
    with pytest.raises(BotoCoreError):
        await put(kinesis, b"cut")
    assert await kept(kinesis) == expected
