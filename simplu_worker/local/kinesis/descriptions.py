"""How the local Kinesis describes its streams and stream shards. Does no I/O."""

from __future__ import annotations

from typing import Any

from simplu_worker.local.kinesis.model import LocalStream
from simplu_worker.local.kinesis.reshard import HashRange
from simplu_worker.local.kinesis.stream_shard import LocalStreamShard


def stream_summary(stream: LocalStream) -> dict[str, Any]:
    """Return what ListStreams says of a stream (API_StreamSummary)."""
    return {
        "StreamName": stream.name,
        "StreamARN": stream.arn,
        "StreamStatus": stream.status,
        "StreamModeDetails": {"StreamMode": "PROVISIONED"},
        "StreamCreationTimestamp": stream.created_ms / 1000,
    }


def stream_description(stream: LocalStream) -> dict[str, Any]:
    """Return what API_StreamDescription and API_StreamDescriptionSummary have in common."""
    return stream_summary(stream) | {
        "RetentionPeriodHours": stream.retention_hours,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
    }


def shard_description(stream_shard: LocalStreamShard) -> dict[str, Any]:
    """Return API_Shard: of two parents the second is the adjacent one; an open one has no ending sequence number."""
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
