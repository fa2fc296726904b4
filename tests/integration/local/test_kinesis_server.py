"""The local Kinesis over HTTP, for a client of AWS: its protocol, and the commands of its control path."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from botocore.exceptions import BotoCoreError, ClientError
from support.aws.endpoints import CREDENTIALS, client_of

from simplu_local.aws_server.faults import ClearFaults, SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import KinesisFault
from simplu_local.kinesis.model import KinesisOptions
from simplu_local.kinesis.server import serve_kinesis
from simplu_local.processes.loopback import free_port, poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.consumers.kinesis.stream.positions import TrimHorizon

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
    return [record.data for record in answer["Records"]]


async def has_called(url: str, action: str) -> bool:
    return action in (await send_commands(url))["calls"]


async def code_of(awaitable: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        await awaitable
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (KinesisFault(action="PutRecord", kind="throttle"), ("ProvisionedThroughputExceededException", 400)),
        (KinesisFault(action="PutRecord", kind="fail"), ("InternalFailure", 500)),
        (
            KinesisFault(action="PutRecord", kind="fail", code="KMSDisabledException", status=400),
            ("KMSDisabledException", 400),
        ),
    ],
)
async def test_fault_refuses_the_next_calls_only(
    url: str, kinesis: Client, fault: KinesisFault, expected: tuple[str, int]
) -> None:
    await send_commands(url, fault)
    assert await code_of(put(kinesis, b"refused")) == expected
    await put(kinesis, b"taken")
    assert await kept(kinesis) == [b"taken"]


@pytest.mark.parametrize(("applied", "expected"), [(False, []), (True, [b"cut"])])
async def test_cut_loses_the_request_or_only_its_answer(
    url: str, kinesis: Client, *, applied: bool, expected: list[bytes]
) -> None:
    await send_commands(url, KinesisFault(action="PutRecord", kind="cut", applied=applied))
    with pytest.raises(BotoCoreError):
        await put(kinesis, b"cut")
    assert await kept(kinesis) == expected


async def test_hang_lasts_until_the_faults_are_cleared(url: str, kinesis: Client) -> None:
    await send_commands(url, KinesisFault(action="PutRecord", kind="hang"))
    async with asyncio.TaskGroup() as tasks:
        late = tasks.create_task(put(kinesis, b"late"))
        assert await poll_until(lambda: has_called(url, "PutRecord"), within_s=5)
        assert await kept(kinesis) == []
        await send_commands(url, ClearFaults())
        await late
    assert await kept(kinesis) == [b"late"]


async def test_sixth_read_of_a_second_is_throttled_unless_throttling_is_off(url: str, kinesis: Client) -> None:
    place = await iterator(kinesis)
    # At once, and many: on a busy machine a few may take over a second.
    reads = [kinesis.get_records(ShardIterator=place) for _ in range(60)]
    answers = await asyncio.gather(*reads, return_exceptions=True)
    throttled = [one.response["Error"]["Code"] for one in answers if isinstance(one, ClientError)]
    assert set(throttled) == {"ProvisionedThroughputExceededException"}
    assert len(answers) - len(throttled) >= 5
    await send_commands(url, SetOptions({"read_throttling": False}))
    assert (await kinesis.get_records(ShardIterator=place))["Records"] == []


@pytest.mark.slow(0.4)
async def test_four_writers_at_once_lose_nothing(kinesis: Client) -> None:
    async def write(writer: int) -> None:
        for start in range(0, 5000, 500):
            entries = [
                {"PartitionKey": str(writer), "Data": f"{writer}-{n}".encode()} for n in range(start, start + 500)
            ]
            assert (await kinesis.put_records(StreamName=NAME, Records=entries))["FailedRecordCount"] == 0

    async with asyncio.TaskGroup() as tasks:
        for writer in range(4):
            tasks.create_task(write(writer))
    stream, read = Stream(kinesis, NAME), []
    for one in await stream.list_stream_shards():
        place: str | None = await stream.get_iterator(one.stream_shard_id, TrimHorizon())
        while place is not None:
            reply = await stream.get_records(place, limit=10_000)
            read += [record.data.decode() for record in reply.records]
            place = reply.next_iterator if reply.records else None
    by_writer = [[text for text in read if text.startswith(f"{writer}-")] for writer in range(4)]
    assert by_writer == [[f"{writer}-{number}" for number in range(5000)] for writer in range(4)]


@pytest.mark.slow(0.4)
async def test_program_serves_until_it_is_told_to_stop() -> None:
    port = free_port()
    argv = [sys.executable, "-m", "simplu_local.kinesis.server", "--port", str(port), "--no-throttling"]
    with ProcessGroup() as group:
        log_path = group.directory / "kinesis.log"
        process = group.spawn(argv, log_path=log_path)

        async def started() -> bool:
            return b"kinesis.started" in log_path.read_bytes()

        assert await poll_until(started, within_s=60)
        assert (await send_commands(f"http://127.0.0.1:{port}"))["options"]["read_throttling"] is False
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


async def test_request_in_cbor_is_answered_in_cbor(url: str, kinesis: Client) -> None:
    bodies = {
        "PutRecord": b"\xa3\x6aStreamName\x66stream\x6cPartitionKey\x61k\x64Data\x42\xff\x00",
        "PutRecords": b"\x18",
    }
    answers = {}
    async with ClientSession() as session:
        for action, body in bodies.items():
            headers = {"X-Amz-Target": f"Kinesis_20131202.{action}", "Content-Type": "application/x-amz-cbor-1.1"}
            async with session.post(url, data=body, headers=headers) as reply:
                answers[action] = (reply.status, reply.content_type, (await reply.read())[:8])
    shards = (await kinesis.list_shards(StreamName=NAME))["Shards"]
    found = []
    for shard in shards:
        iterator = await kinesis.get_shard_iterator(
            StreamName=NAME, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        reply = await kinesis.get_records(ShardIterator=iterator["ShardIterator"])
        found += [record.data for record in reply["Records"]]

    assert answers["PutRecord"] == (200, "application/x-amz-cbor-1.1", b"\xa2\x67ShardI")
    assert answers["PutRecords"] == (400, "application/x-amz-cbor-1.1", b"\xa2\x66__type")
    assert found == [b"\xff\x00"]
