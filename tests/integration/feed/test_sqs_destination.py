"""A FIFO queue as a destination: whatever it refuses, the events of a resource arrive in order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from support.aws.endpoints import REGION
from support.feed.events import feed_event
from support.feed.publishing import command_server, expected_by_key, first_by_key, publish_all

from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sending import queue_producer
from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.feed.destinations import SQS_EVENT_MAX_BYTES as EVENT_MAX_BYTES
from simplu_worker.feed.destinations import AwsDestination, message_of
from simplu_worker.feed.types import Delivered, FeedEvent, Refused, RetryLater

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


def resources(count: int, keys: int) -> list[FeedEvent]:
    return [feed_event(number, f"p-{number * number % keys}") for number in range(count)]


@pytest.mark.slow(2)
async def test_group_arrives_in_order_when_requests_are_taken_in_part(client: Client, url: str, sqs_url: str) -> None:
    events = resources(200, 13)
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
