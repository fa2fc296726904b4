"""Event streams of SubscribeToShard: replies, or the door's own error, and each with the same result in other parts."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import check_faults
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_local.kinesis.fan_out.event_stream import encode_event, encode_exception
from simplu_worker.consumers.kinesis.stream.client import Reply
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscription
from simplu_worker.errors import PermanentError, RetryableError

RAW: Final = b"!"  # the first byte of an input that is no payload, but the bytes of a stream
JSON: Final = "application/x-amz-json-1.1"
RECORD: Final = {"SequenceNumber": "1", "ApproximateArrivalTimestamp": 1.7e9, "PartitionKey": "k", "Data": "e30="}
CHILD: Final = {
    "ShardId": "shardId-1",
    "ParentShards": ["shardId-0"],
    "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "1"},
}
USUAL: Final = {"Records": [RECORD], "ContinuationSequenceNumber": "1", "MillisBehindLatest": 0, "ChildShards": [CHILD]}


class _Body:
    """Bytes that are there, in parts."""

    def __init__(self, data: bytes, part_bytes: int) -> None:
        self._parts = [data[at : at + part_bytes] for at in range(0, len(data), part_bytes)]

    async def read_any(self) -> bytes:
        """Return the next part; none at the end."""
        return self._parts.pop(0) if self._parts else b""

    def close(self) -> None: ...


async def read(data: bytes, part_bytes: int) -> tuple[list[Reply], str]:
    subscription, replies = Subscription(_Body(data, part_bytes)), list[Reply]()
    try:
        while True:
            if subscription.next_size() is not None and (reply := subscription.take()) is not None:
                replies.append(reply)
            else:
                await subscription.receive(asyncio.Event(), within_s=1.0)
    except (RetryableError, PermanentError) as exc:
        return replies, str(exc)


def check(data: bytes) -> None:
    is_raw = data.startswith(RAW)
    stream = data[1:] if is_raw else encode_event("SubscribeToShardEvent", data, JSON)
    assert asyncio.run(read(stream, 1 << 16)) == asyncio.run(read(stream, 1 + len(stream) // 3))
    check_faults()


SEEDS: Final = (
    json.dumps(USUAL).encode(),
    RAW + encode_event("initial-response", b"{}", JSON) + encode_event("SubscribeToShardEvent", b"{}", JSON),
    RAW + encode_event("initial-response", b"{}", JSON) + b"no prelude of a message",
    RAW + encode_exception("ResourceInUseException", b'{"message": "taken"}', JSON),
)
WORDS: Final = tuple(json.dumps(name).encode() for name in (*USUAL, *RECORD, *CHILD))
TARGET: Final = Target(
    check=check, seeds=SEEDS, words=WORDS, inputs=messages(USUAL) | spliced(st.sampled_from(SEEDS), WORDS)
)
