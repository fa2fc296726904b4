"""Consumers of the local Kinesis, and their subscriptions, at times that the tests set."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from simplu_local.kinesis.actions import KinesisActions
from simplu_local.kinesis.errors import KinesisError
from simplu_local.kinesis.fan_out.event_stream import encode_message
from simplu_local.kinesis.fan_out.subscription import LocalSubscription
from simplu_local.kinesis.model import KinesisAccount, KinesisOptions
from simplu_local.kinesis.quotas import MIB

START_MS = 1_700_000_000_000
SHARD = "shardId-000000000000"
NAME = "stream"


class Kinesis:
    """An account with one stream of one stream shard, and a consumer, at a time that the test sets."""

    def __init__(self, **options: Any) -> None:
        quick = {"create_delay_ms": 0, "update_delay_ms": 0, "consumer_delay_ms": 0}
        self.account = KinesisAccount(KinesisOptions(**(quick | options)))
        self.actions = KinesisActions(self.account)
        self.now_ms = START_MS
        self("CreateStream", StreamName=NAME, ShardCount=1)
        self.arn = self.account.streams[NAME].arn

    def __call__(self, action: str, **request: Any) -> dict[str, Any]:
        """Do one action."""
        asked = self.actions.decode(action, json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self.actions.answer(action, asked, self.now_ms) or b"{}")
        return answer

    def register(self, name: str = "me") -> str:
        """Register a consumer; return its ARN."""
        answer = self("RegisterStreamConsumer", StreamARN=self.arn, ConsumerName=name)
        return str(answer["Consumer"]["ConsumerARN"])

    def put(self, text: str) -> str:
        """Put a record; return its number."""
        data = base64.b64encode(text.encode()).decode()
        return str(self("PutRecord", StreamName=NAME, PartitionKey="k", Data=data)["SequenceNumber"])

    def subscribe(self, arn: str, kind: str = "TRIM_HORIZON", **more: Any) -> LocalSubscription:
        """Subscribe to the stream shard."""
        start = {"Type": kind} | more
        body = json.dumps({"ConsumerARN": arn, "ShardId": SHARD, "StartingPosition": start}).encode()
        return self.actions.subscribe(self.actions.decode("SubscribeToShard", body), self.now_ms)

    def event(self, subscription: LocalSubscription) -> dict[str, Any] | None:
        """Return the next event."""
        event = subscription.next_event(self.now_ms)
        return None if event is None else json.loads(event)


def texts(event: dict[str, Any] | None) -> list[str]:
    """Return the data of an event's records."""
    assert event is not None
    return [base64.b64decode(one["Data"]).decode() for one in event["Records"]]


def code_of(action: Any, *arguments: Any, **more: Any) -> str:
    """Return the code of the error that *action* raises."""
    with pytest.raises(KinesisError) as caught:
        action(*arguments, **more)
    return caught.value.code


def test_consumer_is_registered_found_listed_and_deregistered() -> None:
    kinesis = Kinesis(consumer_delay_ms=100)
    arn = kinesis.register()
    by_name = kinesis("DescribeStreamConsumer", StreamARN=kinesis.arn, ConsumerName="me")["ConsumerDescription"]
    assert (by_name["ConsumerStatus"], by_name["StreamARN"]) == ("CREATING", kinesis.arn)
    assert code_of(kinesis.subscribe, arn) == "ResourceInUseException"
    kinesis.now_ms += 100
    by_arn = kinesis("DescribeStreamConsumer", ConsumerARN=arn)["ConsumerDescription"]
    assert by_arn == by_name | {"ConsumerStatus": "ACTIVE"}
    assert code_of(kinesis.register) == "ResourceInUseException"
    for number in range(19):
        kinesis.register(f"other-{number:02}")
    assert code_of(kinesis.register, "more") == "LimitExceededException"
    first = kinesis("ListStreamConsumers", StreamARN=kinesis.arn, MaxResults=15)
    rest = kinesis("ListStreamConsumers", StreamARN=kinesis.arn, NextToken=first["NextToken"])
    names = [one["ConsumerName"] for one in first["Consumers"] + rest["Consumers"]]
    assert names == ["me", *(f"other-{number:02}" for number in range(19))]
    assert "NextToken" not in rest
    kinesis("DeregisterStreamConsumer", ConsumerARN=arn)
    assert code_of(kinesis, "DescribeStreamConsumer", ConsumerARN=arn) == "ResourceNotFoundException"
    assert code_of(kinesis.subscribe, arn) == "ResourceNotFoundException"


def test_subscription_sends_what_is_stored_what_comes_and_signs_of_life() -> None:
    kinesis = Kinesis(heartbeat_ms=1000)
    arn = kinesis.register()
    first = kinesis.put("a")
    subscription = kinesis.subscribe(arn)
    event = kinesis.event(subscription)
    assert texts(event) == ["a"]
    assert event is not None
    assert (event["MillisBehindLatest"], event["ContinuationSequenceNumber"]) == (0, first)
    kinesis.now_ms += 999
    assert kinesis.event(subscription) is None
    kinesis.now_ms += 1
    idle = kinesis.event(subscription)
    assert idle is not None
    assert (idle["Records"], int(idle["ContinuationSequenceNumber"]) > int(first)) == ([], True)
    second = kinesis.put("b")
    assert int(idle["ContinuationSequenceNumber"]) < int(second)
    kinesis.now_ms += 10
    assert texts(kinesis.event(subscription)) == ["b"]
    kinesis.now_ms += 5000
    again = kinesis.subscribe(arn, "AFTER_SEQUENCE_NUMBER", SequenceNumber=idle["ContinuationSequenceNumber"])
    assert texts(kinesis.event(again)) == ["b"]


def test_later_call_takes_the_subscription_after_five_seconds() -> None:
    kinesis = Kinesis()
    arn = kinesis.register()
    earlier = kinesis.subscribe(arn)
    kinesis.event(earlier)
    kinesis.now_ms += 4999
    assert code_of(kinesis.subscribe, arn) == "ResourceInUseException"
    kinesis.now_ms += 1
    later = kinesis.subscribe(arn)
    assert code_of(kinesis.event, earlier) == "ResourceInUseException"
    assert kinesis.event(later) is not None
    kinesis("DeregisterStreamConsumer", ConsumerARN=arn)
    assert code_of(kinesis.event, later) == "ResourceNotFoundException"


def test_subscription_ends_after_its_time() -> None:
    kinesis = Kinesis()
    subscription = kinesis.subscribe(kinesis.register())
    kinesis.now_ms += 299_999
    assert kinesis.event(subscription) is not None
    assert not subscription.is_over
    kinesis.now_ms += 1
    assert kinesis.event(subscription) is None
    assert subscription.is_over


def test_last_event_of_a_closed_stream_shard_names_its_children() -> None:
    kinesis = Kinesis(push_interval_ms=0)
    subscription = kinesis.subscribe(kinesis.register())
    kinesis.put("a")
    kinesis("SplitShard", StreamName=NAME, ShardToSplit=SHARD, NewStartingHashKey=str(2**127))
    assert texts(kinesis.event(subscription)) == ["a"]
    assert not subscription.is_over
    end = kinesis.event(subscription)
    assert end is not None
    assert (end["Records"], end.get("ContinuationSequenceNumber")) == ([], None)
    assert [child["ParentShards"] for child in end["ChildShards"]] == [[SHARD]] * 2
    assert subscription.is_over


def test_consumers_have_two_mebibytes_a_second_each() -> None:
    kinesis = Kinesis(push_interval_ms=0)
    for number in range(8):
        kinesis.put("x" * (MIB - 1 - number))
    subscriptions = [kinesis.subscribe(kinesis.register(name)) for name in ("one", "two")]
    for subscription in subscriptions:
        sent = 0
        while (event := kinesis.event(subscription)) is not None:
            sent += sum(map(len, texts(event)))
        assert 2 * MIB - 16 < sent <= 3 * MIB  # a part of the quota is enough for an event
    kinesis.now_ms += 2000
    assert kinesis.event(subscriptions[0]) is not None


@given(
    headers=st.dictionaries(st.text("abc:-", min_size=1, max_size=30), st.text(max_size=40), max_size=4),
    payload=st.binary(max_size=300),
)
def test_messages_are_those_that_botocore_reads(headers: dict[str, str], payload: bytes) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(encode_message(headers, payload))
    (message,) = list(buffer)
    assert (message.headers, message.payload) == (headers, payload)
