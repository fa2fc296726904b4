"""Descriptions of streams and stream shards, as the Kinesis API returns them. Pure."""

from __future__ import annotations

from typing import Any

from simplu_local.kinesis.model import LocalStream
from simplu_local.kinesis.reshard import HashRange
from simplu_local.kinesis.stream_shard import LocalStreamShard


def stream_summary(stream: LocalStream) -> dict[str, Any]:
    """Return API_StreamSummary, of which ListStreams returns a list."""
    return {
        "StreamName": stream.name,
        "StreamARN": stream.arn,
        "StreamStatus": stream.status,
        "StreamModeDetails": {"StreamMode": "PROVISIONED"},
        "StreamCreationTimestamp": stream.created_ms / 1000,
    }


def stream_description(stream: LocalStream) -> dict[str, Any]:
    """Return the common members of API_StreamDescription and API_StreamDescriptionSummary."""
    return stream_summary(stream) | {
        "RetentionPeriodHours": stream.retention_hours,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
    }


def shard_description(stream_shard: LocalStreamShard) -> dict[str, Any]:
    """Return API_Shard: the second of two parents is the adjacent one; only a closed one has an ending number."""
    sequence_numbers = {"StartingSequenceNumber": stream_shard.starting_sequence_number}
    if (ending := stream_shard.ending_sequence_number) is not None:
        sequence_numbers["EndingSequenceNumber"] = ending
    parents = dict(zip(("ParentShardId", "AdjacentParentShardId"), stream_shard.parent_ids, strict=False))
    return {
        "ShardId": stream_shard.stream_shard_id,
        **parents,
        "HashKeyRange": _hash_keys(stream_shard.hash_range),
        "SequenceNumberRange": sequence_numbers,
    }


def child_shard_description(stream_shard: LocalStreamShard) -> dict[str, Any]:
    """Return API_ChildShard."""
    return {
        "ShardId": stream_shard.stream_shard_id,
        "ParentShards": list(stream_shard.parent_ids),
        "HashKeyRange": _hash_keys(stream_shard.hash_range),
    }


def _hash_keys(hash_range: HashRange) -> dict[str, str]:
    return {"StartingHashKey": str(hash_range.start), "EndingHashKey": str(hash_range.end)}
