"""Consumers of the local Kinesis, and their subscriptions, at times that the tests set."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from simplu_local.kinesis.actions import KinesisActions
from simplu_local.kinesis.errors import KinesisError
from simplu_local.kinesis.fan_out.subscription import LocalSubscription
from simplu_local.kinesis.model import KinesisAccount, KinesisOptions

START_MS = 1_700_000_000_000
SHARD = "shardId-000000000000"
NAME = "stream"


class Kinesis:
    def __init__(self, **options: Any) -> None:
        quick = {"create_delay_ms": 0, "update_delay_ms": 0, "consumer_delay_ms": 0}
        self.account = KinesisAccount(KinesisOptions(**(quick | options)))
        self.actions = KinesisActions(self.account)
        self.now_ms = START_MS
        self("CreateStream", StreamName=NAME, ShardCount=1)
        self.arn = self.account.streams[NAME].arn

    def __call__(self, action: str, **request: Any) -> dict[str, Any]:
        asked = self.actions.decode(action, json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self.actions.answer(action, asked, self.now_ms) or b"{}")
        return answer

    def register(self, name: str = "me") -> str:
        answer = self("RegisterStreamConsumer", StreamARN=self.arn, ConsumerName=name)
        return str(answer["Consumer"]["ConsumerARN"])

    def put(self, text: str) -> str:
        data = base64.b64encode(text.encode()).decode()
        return str(self("PutRecord", StreamName=NAME, PartitionKey="k", Data=data)["SequenceNumber"])

    def subscribe(self, arn: str, kind: str = "TRIM_HORIZON", **more: Any) -> LocalSubscription:
        start = {"Type": kind} | more
        body = json.dumps({"ConsumerARN": arn, "ShardId": SHARD, "StartingPosition": start}).encode()
        return self.actions.subscribe(self.actions.decode("SubscribeToShard", body), self.now_ms)

    def event(self, subscription: LocalSubscription) -> dict[str, Any] | None:
        event = subscription.next_event(self.now_ms)
        return None if event is None else json.loads(event)


def texts(event: dict[str, Any] | None) -> list[str]:
    assert event is not None
    return [base64.b64decode(one["Data"]).decode() for one in event["Records"]]


def code_of(action: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(KinesisError) as caught:
        action(*arguments, **more)
    return caught.value.code


def test_subscription_sends_what_is_stored_and_what_comes() -> None:
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
