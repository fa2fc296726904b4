"""The actions of enhanced fan-out: from requests to answers, on the model; callers pass the time, in ms. Pure."""

from __future__ import annotations

from typing import Any

from simplu_local.kinesis.arguments import start_position
from simplu_local.kinesis.consumers import RegisteredConsumer
from simplu_local.kinesis.errors import KinesisError, invalid_argument, resource_in_use
from simplu_local.kinesis.fan_out import requests
from simplu_local.kinesis.fan_out.subscription import LocalSubscription
from simplu_local.kinesis.model import KinesisAccount, LocalStream
from simplu_local.kinesis.requests import GetShardIterator


class FanOutActions:
    """The part of the account's API that is about registered consumers. All raise KinesisError."""

    def __init__(self, account: KinesisAccount) -> None:
        self._account = account

    def __repr__(self) -> str:
        return f"FanOutActions({self._account!r})"

    def register(self, request: requests.RegisterStreamConsumer, now_ms: int) -> dict[str, Any]:
        """API_RegisterStreamConsumer."""
        stream = self._stream_of(request.stream_arn)
        if stream.status == "CREATING":
            raise resource_in_use(f"stream {stream.name} is still being created")
        active_at_ms = now_ms + self._account.options.consumer_delay_ms
        consumer = stream.consumers.register(request.consumer_name, now_ms, active_at_ms=active_at_ms)
        return {"Consumer": _description(consumer, now_ms)}

    def describe(self, request: requests.ConsumerOnly, now_ms: int) -> dict[str, Any]:
        """API_DescribeStreamConsumer."""
        stream, consumer = self._find(request)
        return {"ConsumerDescription": _description(consumer, now_ms) | {"StreamARN": stream.arn}}

    def list(self, request: requests.ListStreamConsumers, now_ms: int) -> dict[str, Any]:
        """API_ListStreamConsumers; the token is the last name."""
        consumers = self._stream_of(request.stream_arn).consumers.all()
        left = [consumer for consumer in consumers if consumer.name > (request.next_token or "")]
        page = left[: request.max_results]
        token = {"NextToken": page[-1].name} if len(left) > len(page) else {}
        return {"Consumers": [_description(consumer, now_ms) for consumer in page]} | token

    def deregister(self, request: requests.ConsumerOnly, _now_ms: int) -> None:
        """API_DeregisterStreamConsumer."""
        stream, consumer = self._find(request)
        stream.consumers.deregister(consumer)

    def subscribe(self, request: requests.SubscribeToShard, now_ms: int) -> LocalSubscription:
        """API_SubscribeToShard: return the subscription, which has the events."""
        stream = self._stream_of(request.consumer_arn.partition("/consumer/")[0])
        consumer = stream.consumers.find(None, request.consumer_arn)
        if consumer.status(now_ms) != "ACTIVE":
            raise resource_in_use(f"consumer {consumer.name} is not ACTIVE, it is {consumer.status(now_ms)}")
        stream_shard = stream.find(request.shard_id)
        start = request.starting_position
        as_iterator = GetShardIterator(
            stream_name=stream.name,
            shard_id=request.shard_id,
            shard_iterator_type=start.type,
            starting_sequence_number=start.sequence_number,
            timestamp=start.timestamp,
        )
        position = start_position(as_iterator, stream, stream_shard, now_ms)
        return LocalSubscription(consumer, stream, stream_shard, position, now_ms, options=self._account.options)

    def _find(self, request: requests.ConsumerOnly) -> tuple[LocalStream, RegisteredConsumer]:
        arn = request.consumer_arn
        stream_arn = request.stream_arn if arn is None else arn.partition("/consumer/")[0]
        if stream_arn is None or (arn is None and request.consumer_name is None):
            raise invalid_argument("expected ConsumerARN, or StreamARN and ConsumerName")
        stream = self._stream_of(stream_arn)
        return stream, stream.consumers.find(request.consumer_name, arn)

    def _stream_of(self, arn: str) -> LocalStream:
        if ":stream/" not in arn:
            raise KinesisError("ValidationException", f"expected the ARN of a stream, got {arn}")
        return self._account.find(arn.rpartition(":stream/")[2])


def _description(consumer: RegisteredConsumer, now_ms: int) -> dict[str, Any]:
    return {
        "ConsumerName": consumer.name,
        "ConsumerARN": consumer.arn,
        "ConsumerStatus": consumer.status(now_ms),
        "ConsumerCreationTimestamp": consumer.created_ms / 1000,
    }
