"""A stream as a destination: whatever the stream refuses, the events of a resource arrive in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from support.aws.endpoints import REGION, ScriptedAws
from support.feed.events import feed_event
from support.feed.publishing import command_server, expected_by_key, first_by_key, publish_all

from simplu_local.stack.aws import aws_client
from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sending import PutRecord, stream_producer
from simplu_worker.feed.destinations import AwsDestination, open_aws, record_of
from simplu_worker.feed.types import Delivered, Refused, RetryLater

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def client(kinesis_url: str) -> AsyncIterator[Client]:
    async with open_client("kinesis", region=REGION, endpoint_url=kinesis_url, read_timeout_s=60.0) as client:
        yield client


@pytest.fixture
async def impatient(kinesis_url: str) -> AsyncIterator[Client]:
    """Open a client that waits for no answer longer than a second: a busy server may take that for a large one."""
    async with open_client("kinesis", region=REGION, endpoint_url=kinesis_url, read_timeout_s=1.0) as client:
        yield client


@pytest.fixture
async def stream(client: Client, kinesis_url: str) -> AsyncIterator[str]:
    name = f"changes-{uuid4()}"
    await client.create_stream(StreamName=name, ShardCount=2)
    await client.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 0.05})
    yield name
    await command_server(kinesis_url, do="clear_faults")
    await command_server(kinesis_url, do="set", options={"write_throttling": False})


def stream_of(client: Client, name: str) -> AwsDestination[PutRecord]:
    return AwsDestination(stream_producer(client, name), record_of)


async def records_of(client: Client, stream: str) -> list[dict[str, Any]]:
    """Return the records of all stream shards, those of each in order, as a client of AWS reads them."""
    records = []
    async with aws_client("kinesis", client.meta.endpoint_url) as reader:
        for shard in (await reader.list_shards(StreamName=stream))["Shards"]:
            start = {"ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator: str | None = (await reader.get_shard_iterator(StreamName=stream, **start))["ShardIterator"]
            while iterator is not None:
                await command_server(client.meta.endpoint_url, do="advance_clock", ms=10_000)  # a read's own quota
                reply = await reader.get_records(ShardIterator=iterator, Limit=10_000)
                records += [{"key": one["PartitionKey"], **json.loads(one["Data"])} for one in reply["Records"]]
                iterator = reply["NextShardIterator"] if reply["MillisBehindLatest"] or reply["Records"] else None
    return records


async def received(client: Client, stream: str) -> list[tuple[str, str]]:
    return [(record["key"], record["id"]) for record in await records_of(client, stream)]


@pytest.mark.slow(2)
async def test_events_of_a_key_arrive_in_order_when_the_stream_takes_a_part_of_each_request(
    client: Client, stream: str, kinesis_url: str
) -> None:
    await command_server(kinesis_url, do="set", options={"write_throttling": True})
    # So large that a call is over the quota of several seconds, however slow the machine is.
    data = json.dumps({"text": 16 * 1024 * "x"}).encode()
    events = [feed_event(number, f"p-{number * number % 997}", data=data) for number in range(1000)]
    refill = partial(command_server, kinesis_url, do="advance_clock", ms=500)
    calls = await publish_all(stream_of(client, stream), events, between=refill)
    assert any(isinstance(one, RetryLater) and "ThroughputExceeded" in str(one) for call in calls for one in call)
    found = await received(client, stream)
    assert len(found) == len(events)  # none twice: a refused record was not taken
    assert first_by_key(found) == expected_by_key(events)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"kind": "throttle"}, {"kind": "cut", "applied": True}, {"kind": "hang"}])
async def test_request_that_fails_as_a_whole_comes_again(
    client: Client, impatient: Client, stream: str, kinesis_url: str, fault: dict[str, Any]
) -> None:
    events = [feed_event(number, f"p-{number}") for number in range(70)]
    await command_server(kinesis_url, do="fault", action="PutRecords", **fault)
    assert {type(one) for one in await stream_of(impatient, stream).publish(events)} == {RetryLater}
    await command_server(kinesis_url, do="clear_faults")
    await publish_all(stream_of(client, stream), events)
    assert first_by_key(await received(client, stream)) == expected_by_key(events)


async def test_partition_key_is_that_of_the_event_or_the_hash_of_a_longer_one(client: Client, stream: str) -> None:
    ids = ["漢" * 200, "x" * 300]
    await publish_all(stream_of(client, stream), [feed_event(n, text) for n, text in enumerate(ids)])
    keys = {record["simpluresourceid"]: record["key"] for record in await records_of(client, stream)}
    assert keys[ids[0]] == f"smile-berlin/patient/{ids[0]}"
    assert keys[ids[1]] == hashlib.sha256(f"smile-berlin/patient/{ids[1]}".encode()).hexdigest()


async def test_stream_that_does_not_exist_or_may_not_be_written_refuses_no_event(client: Client) -> None:
    (delivery,) = await stream_of(client, "none").publish([feed_event()])
    assert isinstance(delivery, RetryLater)
    assert "ResourceNotFoundException" in delivery.error
    aws = ScriptedAws()
    aws.refuse("AccessDeniedException")
    async with aws.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as denied:
        (delivery,) = await stream_of(denied, "changes").publish([feed_event()])
    assert isinstance(delivery, RetryLater)


async def test_record_whose_content_is_refused_takes_no_other_with_it() -> None:
    aws = ScriptedAws()
    aws.refuse("ValidationException")
    aws.answer({"FailedRecordCount": 0, "Records": [{"SequenceNumber": "1", "ShardId": "s"}]})
    aws.refuse("ValidationException")
    async with aws.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as client:
        destination = stream_of(client, "changes")
        good, bad = await destination.publish([feed_event(0, "p-1"), feed_event(1, "p-2")])
    assert good == Delivered()
    assert isinstance(bad, Refused)
    assert [len(request["Records"]) for _, request in aws.requests] == [2, 1, 1]


async def test_stream_is_named_by_its_arn_in_its_own_region(
    kinesis_url: str, client: Client, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    arn = (await client.describe_stream_summary(StreamName=stream))["StreamDescriptionSummary"]["StreamARN"]
    async with open_aws("kinesis", arn, region="us-west-2") as destination:
        assert await destination.publish([feed_event()]) == [Delivered()]
    assert await received(client, stream) == [("smile-berlin/patient/p-1", "token-7-0")]


async def test_records_are_those_that_botocore_would_send() -> None:
    aws = ScriptedAws()
    records = [PutRecord(bytes(range(256)), "ü"), PutRecord(b"", "k")]
    for _ in range(2):
        aws.answer({"FailedRecordCount": 0, "Records": [{}, {}]})
    async with aws.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as client:
        plain = [{"Data": record.data, "PartitionKey": record.partition_key} for record in records]
        await client.put_records(StreamName="s", Records=plain)
        await stream_producer(client, "s").send(records)
    assert aws.requests[0] == aws.requests[1]
