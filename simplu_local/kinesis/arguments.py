"""Parse the arguments of PutRecord, PutRecords and GetShardIterator. Pure."""

from __future__ import annotations

import binascii
import hashlib

from simplu_local.kinesis.errors import KinesisError, invalid_argument
from simplu_local.kinesis.model import LocalStream
from simplu_local.kinesis.requests import GetShardIterator, PutEntry
from simplu_local.kinesis.reshard import HASH_KEYS
from simplu_local.kinesis.stream_shard import LocalStreamShard, NewRecord
from simplu_local.kinesis.tokens import parse_sequence_number

AT_TYPES = frozenset({"AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"})


def parse_record(entry: PutEntry, stream: LocalStream) -> NewRecord:
    """Parse a record to put. Its hash key is the MD5 of its partition key, unless *entry* names one (API_PutRecord)."""
    try:
        size_bytes = len(binascii.a2b_base64(entry.data, strict_mode=True))
    except ValueError as exc:
        raise KinesisError("SerializationException", f"Data: expected base64: {exc}") from exc
    key = entry.partition_key.encode()
    size_bytes += len(key)
    if size_bytes > stream.max_record_bytes:
        raise invalid_argument(f"expected at most {stream.max_record_bytes} bytes of data and key, got {size_bytes}")
    if entry.explicit_hash_key is None:
        hash_key = int.from_bytes(hashlib.md5(key, usedforsecurity=False).digest(), "big")
    elif (hash_key := int(entry.explicit_hash_key)) >= HASH_KEYS:
        raise invalid_argument(f"ExplicitHashKey {hash_key} is not in 0 … 2^128-1")
    return NewRecord(entry.partition_key, entry.data, size_bytes, hash_key)


def start_position(request: GetShardIterator, stream: LocalStream, stream_shard: LocalStreamShard, now_ms: int) -> int:
    """Return the position at which an iterator starts (API_GetShardIterator). Raises InvalidArgumentException."""
    kind = request.shard_iterator_type
    if kind in AT_TYPES:
        return _sequence_position(request, stream, stream_shard)
    if request.starting_sequence_number is not None:
        raise invalid_argument(f"{kind}: expected no StartingSequenceNumber")
    if kind == "AT_TIMESTAMP":
        if request.timestamp is None:
            raise invalid_argument("AT_TIMESTAMP: expected a Timestamp")
        if (at_ms := round(request.timestamp * 1000)) > now_ms:
            raise invalid_argument(f"the Timestamp {at_ms} is later than now, {now_ms}")
        return stream_shard.position_at_time(at_ms)
    return stream_shard.first_position if kind == "TRIM_HORIZON" else stream_shard.end_position


def _sequence_position(request: GetShardIterator, stream: LocalStream, stream_shard: LocalStreamShard) -> int:
    """Return the position of a sequence number, or that of the next record when no record has this number."""
    text = request.starting_sequence_number
    if text is None:
        raise invalid_argument(f"{request.shard_iterator_type}: expected a StartingSequenceNumber")
    if text == "0":
        return stream_shard.first_position
    number = parse_sequence_number(text)
    if number is None:
        raise invalid_argument(f"StartingSequenceNumber {text} in stream {stream.name} is invalid")
    if number.shard_index != stream_shard.index:
        raise invalid_argument(f"StartingSequenceNumber {text} is not of shard {stream_shard.stream_shard_id}")
    if number.made_s != stream_shard.made_s:
        raise invalid_argument(f"StartingSequenceNumber {text} did not come from this stream")
    if number.ordinal == 0:
        return stream_shard.first_position
    after = request.shard_iterator_type == "AFTER_SEQUENCE_NUMBER"
    return min(number.ordinal - (0 if after else 1), stream_shard.end_position)
