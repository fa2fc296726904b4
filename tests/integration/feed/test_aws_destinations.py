"""A queue or a stream of AWS as a destination: whatever it refuses, the events of a resource arrive in order."""

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
from simplu_worker.aws.sending import PutRecord, queue_producer, stream_producer
from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.feed.destinations import SQS_EVENT_MAX_BYTES as EVENT_MAX_BYTES
from simplu_worker.feed.destinations import AwsDestination, message_of, open_aws, record_of
from simplu_worker.feed.types import Delivered, Refused, RetryLater

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def client(sqs_url: str) -> AsyncIterator[Client]:
    async with open_client("sqs", region=REGION, endpoint_url=sqs_url, read_timeout_s=60.0) as client:
        yield client


@pytest.fixture
async def impatient(sqs_url: str) -> AsyncIterator[Client]:
    """Open a client that waits for no answer longer than a second: a busy server may take that for a large one."""
    async with open_client("sqs", region=REGION, endpoint_url=sqs_url, read_timeout_s=1.0) as client:
        yield client


@pytest.fixture
async def url(client: Client, sqs_url: str) -> AsyncIterator[str]:
    answer = await client.create_queue(QueueName=f"changes-{uuid4()}.fifo", Attributes={"FifoQueue": "true"})
    yield answer["QueueUrl"]
    await command_server(sqs_url, do="clear_faults")


def queue_of(client: Client, url: str) -> AwsDestination[OutgoingMessage]:
    return AwsDestination(queue_producer(Queue(client, url)), message_of)


async def messages_of(client: Client, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    options = {"MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]}
    while messages := (await client.receive_message(QueueUrl=url, **options)).get("Messages"):
        for message in messages:
            found.append({"group": message["Attributes"]["MessageGroupId"], **json.loads(message["Body"])})
            await client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


@pytest.mark.slow(2)
async def test_group_arrives_in_order_when_requests_are_taken_in_part(client: Client, url: str, sqs_url: str) -> None:
    events = [feed_event(number, f"p-{number * number % 13}") for number in range(200)]
    await command_server(sqs_url, do="fault", action="SendMessageBatch", kind="entries", entries=3, count=12)
    calls = await publish_all(queue_of(client, url), events)
    errors = {one.error for call in calls for one in call if isinstance(one, RetryLater)}
    assert errors == {"SendMessageBatch: InternalError"}
    found = [(message["group"], message["id"]) for message in await messages_of(client, url)]
    assert len(found) == len(events)
    assert first_by_key(found) == expected_by_key(events)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"kind": "throttle"}, {"kind": "cut", "applied": True}, {"kind": "hang"}])
async def test_request_that_fails_as_a_whole_is_repeated_and_comes_once(
    client: Client, impatient: Client, url: str, sqs_url: str, fault: dict[str, Any]
) -> None:
    events = [feed_event(number, f"p-{number}") for number in range(10)]
    await command_server(sqs_url, do="fault", action="SendMessageBatch", **fault)
    assert {type(one) for one in await queue_of(impatient, url).publish(events)} == {RetryLater}
    await command_server(sqs_url, do="clear_faults")
    await publish_all(queue_of(client, url), events)
    found = [(message["group"], message["id"]) for message in await messages_of(client, url)]
    assert len(found) == len(events)
    assert first_by_key(found) == expected_by_key(events)


async def test_event_comes_again_from_another_publisher_or_incarnation(client: Client, url: str) -> None:
    again = [feed_event(), feed_event(incarnation="two"), feed_event(sender="another")]
    for event in (again[0], *again, *again[1:]):
        assert await queue_of(client, url).publish([event]) == [Delivered()]
    assert [one["simpluincarnation"] for one in await messages_of(client, url)] == ["one", "two", "one"]


async def test_entry_at_fault_is_refused_alone(client: Client, url: str, sqs_url: str) -> None:
    code = "InvalidMessageContents"
    fault = {"kind": "entries", "entries": 1, "code": code, "sender_fault": True}
    await command_server(sqs_url, do="fault", action="SendMessageBatch", **fault)
    found = await queue_of(client, url).publish([feed_event(0, "p-1"), feed_event(1, "p-2")])
    assert found == [Refused(f"SendMessageBatch: {code}"), Delivered()]


async def test_message_is_what_a_queue_of_any_age_takes(client: Client, url: str) -> None:
    data = b'"' + b"x" * (EVENT_MAX_BYTES - 2000) + b'"'
    odd = "\ufffe \uffff \x00 ü"
    events = [
        feed_event(0, "a", data=data),
        feed_event(1, "b", data=data),
        feed_event(2, "c", data=data + b" " * 2000),
        feed_event(3, odd, data=json.dumps(odd, ensure_ascii=False).encode()),
        feed_event(4, "x" * 200),
    ]
    assert await queue_of(client, url).publish(events) == [Delivered()] * 5
    found = {message["id"]: message for message in await messages_of(client, url)}
    states = [found[event.id].get("simpludata") for event in events]
    assert states == ["current", "current", "omitted", "current", None]
    assert (found["token-7-3"]["data"], found["token-7-3"]["simpluresourceid"]) == (odd, odd)
    assert [len(found[event.id]["group"]) for event in events[3:]] == [64, 64]
    assert found["token-7-0"]["group"] == "smile-berlin/patient/a"


async def test_event_that_is_too_large_without_its_data_is_refused(client: Client, url: str) -> None:
    large = [feed_event(0, "a", request_id="x" * EVENT_MAX_BYTES), feed_event(1, "b", request_id="\uffff" * 80_000)]
    deliveries = await queue_of(client, url).publish(large)
    assert [type(delivery) for delivery in deliveries] == [Refused, Refused]


@pytest.fixture
async def kinesis(kinesis_url: str) -> AsyncIterator[Client]:
    async with open_client("kinesis", region=REGION, endpoint_url=kinesis_url, read_timeout_s=60.0) as kinesis:
        yield kinesis


@pytest.fixture
async def impatient_kinesis(kinesis_url: str) -> AsyncIterator[Client]:
    """Open a client that waits for no answer longer than a second: a busy server may take that for a large one."""
    async with open_client("kinesis", region=REGION, endpoint_url=kinesis_url, read_timeout_s=1.0) as kinesis:
        yield kinesis


@pytest.fixture
async def stream(kinesis: Client, kinesis_url: str) -> AsyncIterator[str]:
    name = f"changes-{uuid4()}"
    await kinesis.create_stream(StreamName=name, ShardCount=2)
    await kinesis.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 0.05})
    yield name
    await command_server(kinesis_url, do="clear_faults")
    await command_server(kinesis_url, do="set", options={"write_throttling": False})


def stream_of(kinesis: Client, name: str) -> AwsDestination[PutRecord]:
    return AwsDestination(stream_producer(kinesis, name), record_of)


async def records_of(kinesis: Client, stream: str) -> list[dict[str, Any]]:
    """Return the records of all stream shards, those of each in order, as a client of AWS reads them."""
    records = []
    async with aws_client("kinesis", kinesis.meta.endpoint_url) as reader:
        for shard in (await reader.list_shards(StreamName=stream))["Shards"]:
            start = {"ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator: str | None = (await reader.get_shard_iterator(StreamName=stream, **start))["ShardIterator"]
            while iterator is not None:
                await command_server(kinesis.meta.endpoint_url, do="advance_clock", ms=10_000)  # a read's own quota
                reply = await reader.get_records(ShardIterator=iterator, Limit=10_000)
                records += [{"key": one["PartitionKey"], **json.loads(one["Data"])} for one in reply["Records"]]
                iterator = reply["NextShardIterator"] if reply["MillisBehindLatest"] or reply["Records"] else None
    return records


async def received(kinesis: Client, stream: str) -> list[tuple[str, str]]:
    return [(record["key"], record["id"]) for record in await records_of(kinesis, stream)]


@pytest.mark.slow(2)
async def test_events_of_a_key_arrive_in_order_when_the_stream_takes_a_part_of_each_request(
    kinesis: Client, stream: str, kinesis_url: str
) -> None:
    await command_server(kinesis_url, do="set", options={"write_throttling": True})
    # So large that a call is over the quota of several seconds, however slow the machine is.
    data = json.dumps({"text": 16 * 1024 * "x"}).encode()
    events = [feed_event(number, f"p-{number * number % 997}", data=data) for number in range(1000)]
    refill = partial(command_server, kinesis_url, do="advance_clock", ms=500)
    calls = await publish_all(stream_of(kinesis, stream), events, between=refill)
    assert any(isinstance(one, RetryLater) and "ThroughputExceeded" in str(one) for call in calls for one in call)
    found = await received(kinesis, stream)
    assert len(found) == len(events)  # none twice: a refused record was not taken
    assert first_by_key(found) == expected_by_key(events)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"kind": "throttle"}, {"kind": "cut", "applied": True}, {"kind": "hang"}])
async def test_request_that_fails_as_a_whole_comes_again(
    kinesis: Client, impatient_kinesis: Client, stream: str, kinesis_url: str, fault: dict[str, Any]
) -> None:
    events = [feed_event(number, f"p-{number}") for number in range(70)]
    await command_server(kinesis_url, do="fault", action="PutRecords", **fault)
    assert {type(one) for one in await stream_of(impatient_kinesis, stream).publish(events)} == {RetryLater}
    await command_server(kinesis_url, do="clear_faults")
    await publish_all(stream_of(kinesis, stream), events)
    assert first_by_key(await received(kinesis, stream)) == expected_by_key(events)


async def test_partition_key_is_that_of_the_event_or_the_hash_of_a_longer_one(kinesis: Client, stream: str) -> None:
    ids = ["漢" * 200, "x" * 300]
    await publish_all(stream_of(kinesis, stream), [feed_event(n, text) for n, text in enumerate(ids)])
    keys = {record["simpluresourceid"]: record["key"] for record in await records_of(kinesis, stream)}
    assert keys[ids[0]] == f"smile-berlin/patient/{ids[0]}"
    assert keys[ids[1]] == hashlib.sha256(f"smile-berlin/patient/{ids[1]}".encode()).hexdigest()


async def test_stream_that_does_not_exist_or_may_not_be_written_refuses_no_event(kinesis: Client) -> None:
    (delivery,) = await stream_of(kinesis, "none").publish([feed_event()])
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
    async with aws.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as kinesis:
        destination = stream_of(kinesis, "changes")
        good, bad = await destination.publish([feed_event(0, "p-1"), feed_event(1, "p-2")])
    assert good == Delivered()
    assert isinstance(bad, Refused)
    assert [len(request["Records"]) for _, request in aws.requests] == [2, 1, 1]


async def test_stream_is_named_by_its_arn_in_its_own_region(
    kinesis_url: str, kinesis: Client, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    arn = (await kinesis.describe_stream_summary(StreamName=stream))["StreamDescriptionSummary"]["StreamARN"]
    async with open_aws("kinesis", arn, region="us-west-2") as destination:
        assert await destination.publish([feed_event()]) == [Delivered()]
    assert await received(kinesis, stream) == [("smile-berlin/patient/p-1", "token-7-0")]


async def test_records_are_those_that_botocore_would_send() -> None:
    aws = ScriptedAws()
    records = [PutRecord(bytes(range(256)), "ü"), PutRecord(b"", "k")]
    for _ in range(2):
        aws.answer({"FailedRecordCount": 0, "Records": [{}, {}]})
    async with aws.running() as url, open_client("kinesis", region=REGION, endpoint_url=url) as kinesis:
        plain = [{"Data": record.data, "PartitionKey": record.partition_key} for record in records]
        await kinesis.put_records(StreamName="s", Records=plain)
        await stream_producer(kinesis, "s").send(records)
    assert aws.requests[0] == aws.requests[1]
