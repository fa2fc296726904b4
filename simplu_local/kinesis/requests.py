"""The requests of the Kinesis API that the local one implements, with the names of its model. Pure.

The limits on values are those of the API reference; a request beyond them is a ValidationException.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]
HashKey = Annotated[str, Meta(pattern=r"^(0|([1-9][0-9]{0,38}))$")]
Number = Annotated[str, Meta(pattern=r"^(0|([1-9][0-9]{0,128}))$")]
Count = Annotated[int, Meta(ge=1)]
PartitionKey = Annotated[str, Meta(min_length=1, max_length=256)]
Timestamp = float  # seconds of the epoch


class KinesisRequest(msgspec.Struct, rename="pascal", kw_only=True):
    """Base of the requests: every action accepts the stream by name or by ARN."""

    stream_name: Name | None = None
    stream_arn: str | None = msgspec.field(default=None, name="StreamARN")


class CreateStream(KinesisRequest):
    """API_CreateStream."""

    stream_name: Name
    shard_count: Count | None = None
    max_record_size_in_kib: Annotated[int, Meta(ge=1024, le=10240)] = msgspec.field(
        default=1024, name="MaxRecordSizeInKiB"
    )


class StreamOnly(KinesisRequest):
    """API_DeleteStream, API_DescribeStreamSummary: only the stream."""


class DescribeStream(KinesisRequest):
    """API_DescribeStream."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    exclusive_start_shard_id: Name | None = None


class ListStreams(KinesisRequest):
    """API_ListStreams."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    exclusive_start_stream_name: Name | None = None
    next_token: str | None = None


class ShardFilter(msgspec.Struct, rename="pascal"):
    """API_ShardFilter."""

    type: Literal[
        "AFTER_SHARD_ID", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST", "AT_TIMESTAMP", "FROM_TIMESTAMP"
    ]
    shard_id: Name | None = None
    timestamp: Timestamp | None = None


class ListShards(KinesisRequest):
    """API_ListShards."""

    next_token: str | None = None
    exclusive_start_shard_id: Name | None = None
    max_results: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    stream_creation_timestamp: Timestamp | None = None
    shard_filter: ShardFilter | None = None


class GetShardIterator(KinesisRequest):
    """API_GetShardIterator."""

    shard_id: Name
    shard_iterator_type: Literal[
        "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER", "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"
    ]
    starting_sequence_number: Number | None = None
    timestamp: Timestamp | None = None


class GetRecords(KinesisRequest):
    """API_GetRecords; a *limit* above 10,000 is its own InvalidArgumentException."""

    shard_iterator: str
    limit: Count = 10_000


class PutEntry(msgspec.Struct, rename="pascal"):
    """A record to put (API_PutRecordsRequestEntry); *data* is base64."""

    data: str
    partition_key: PartitionKey
    explicit_hash_key: HashKey | None = None


class PutRecord(KinesisRequest):
    """API_PutRecord."""

    data: str
    partition_key: PartitionKey
    explicit_hash_key: HashKey | None = None
    sequence_number_for_ordering: Number | None = None  # ignored: our numbers always grow


class PutRecords(KinesisRequest):
    """API_PutRecords."""

    records: Annotated[list[PutEntry], Meta(min_length=1, max_length=500)]


class SplitShard(KinesisRequest):
    """API_SplitShard."""

    shard_to_split: Name
    new_starting_hash_key: HashKey


class MergeShards(KinesisRequest):
    """API_MergeShards."""

    shard_to_merge: Name
    adjacent_shard_to_merge: Name


class UpdateShardCount(KinesisRequest):
    """API_UpdateShardCount."""

    target_shard_count: Count
    scaling_type: Literal["UNIFORM_SCALING"]


class SetRetention(KinesisRequest):
    """API_IncreaseStreamRetentionPeriod, API_DecreaseStreamRetentionPeriod."""

    retention_period_hours: int
