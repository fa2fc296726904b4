from __future__ import annotations

import asyncio

import pytest

from simplu_local.kinesis.fan_out.event_stream import encode_event, encode_exception, encode_message
from simplu_worker.consumers.kinesis.stream.client import Reply
from simplu_worker.consumers.kinesis.stream.subscriptions import Subscription
from simplu_worker.errors import PermanentError, RetryableError

EVENT = "SubscribeToShardEvent"
RECORD = b'{"SequenceNumber":"12","ApproximateArrivalTimestamp":1700000000.5,"PartitionKey":"key","Data":"e30="}'


class Body:
    """An answer that is there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read_any(self) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None: ...


async def first(data: bytes) -> Reply:
    subscription = Subscription(Body(data))
    while (reply := subscription.take()) is None:
        await subscription.receive(asyncio.Event(), within_s=1.0)
    return reply


async def test_event_is_the_reply_that_get_records_would_give() -> None:
    body = b'{"Records":[%b],"ContinuationSequenceNumber":"13","MillisBehindLatest":7}' % RECORD
    reply = await first(encode_event("initial-response", b"{}", "") + encode_event(EVENT, body, ""))
    (record,) = reply.records
    assert (record.sequence_number, record.partition_key, record.data) == ("12", "key", b"{}")
    assert record.arrived_at.timestamp() == 1700000000.5
    assert (reply.next_iterator, reply.millis_behind, reply.child_shards, reply.size_bytes) == ("13", 7, None, 5)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", RetryableError),
        (encode_exception("ResourceInUseException", b'{"message":"taken"}', ""), RetryableError),
        (encode_exception("ResourceNotFoundException", b'{"message":"gone"}', ""), PermanentError),
        (encode_exception("InternalFailureException", b"{}", ""), RetryableError),
        (encode_exception("InternalFailureException", b"none", ""), RetryableError),
        (encode_message({":message-type": "error", ":error-code": "InternalError"}, b""), RetryableError),
        (encode_event(EVENT, b"[]", ""), RetryableError),
    ],
)
async def test_everything_else_is_an_error_of_the_worker(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await first(data)
