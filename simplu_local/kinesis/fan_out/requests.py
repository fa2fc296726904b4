"""The requests of enhanced fan-out, with the names of its model. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from simplu_local.kinesis.requests import Name, Number, Timestamp

PositionType = Literal["AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER", "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"]


class RegisterStreamConsumer(msgspec.Struct, rename="pascal", kw_only=True):
    """API_RegisterStreamConsumer."""

    stream_arn: str = msgspec.field(name="StreamARN")
    consumer_name: Name


class ConsumerOnly(msgspec.Struct, rename="pascal", kw_only=True):
    """API_DescribeStreamConsumer, API_DeregisterStreamConsumer: the consumer, by ARN or by name."""

    stream_arn: str | None = msgspec.field(default=None, name="StreamARN")
    consumer_arn: str | None = msgspec.field(default=None, name="ConsumerARN")
    consumer_name: Name | None = None


class ListStreamConsumers(msgspec.Struct, rename="pascal", kw_only=True):
    """API_ListStreamConsumers."""

    stream_arn: str = msgspec.field(name="StreamARN")
    max_results: Annotated[int, Meta(ge=1, le=100)] = 100
    next_token: str | None = None
    stream_creation_timestamp: Timestamp | None = None


class StartingPosition(msgspec.Struct, rename="pascal", kw_only=True):
    """API_StartingPosition."""

    type: PositionType
    sequence_number: Number | None = None
    timestamp: Timestamp | None = None


class SubscribeToShard(msgspec.Struct, rename="pascal", kw_only=True):
    """API_SubscribeToShard."""

    consumer_arn: str = msgspec.field(name="ConsumerARN")
    shard_id: Name
    starting_position: StartingPosition
