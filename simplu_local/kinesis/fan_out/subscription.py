"""One subscription to a stream shard: the events that it sends, and its end; callers pass the time, in ms. Pure."""

from __future__ import annotations

import msgspec

from simplu_local.kinesis.consumers import RegisteredConsumer
from simplu_local.kinesis.descriptions import child_shard_description
from simplu_local.kinesis.errors import resource_in_use
from simplu_local.kinesis.model import KinesisOptions, LocalStream
from simplu_local.kinesis.quotas import MIB, READ_BYTES_PER_S, TokenBucket
from simplu_local.kinesis.stream_shard import LocalStreamShard

MAX_EVENT_RECORDS = 10_000
MAX_EVENT_BYTES = MIB  # of records, unless a single one is larger


class LocalSubscription:
    """The answer to one successful call of SubscribeToShard. It has a rate of its own, whatever other readers take."""

    def __init__(
        self,
        consumer: RegisteredConsumer,
        stream: LocalStream,
        stream_shard: LocalStreamShard,
        position: int,
        now_ms: int,
        *,
        options: KinesisOptions,
    ) -> None:
        self.consumer = consumer
        self.stream_shard = stream_shard
        self.is_over = False
        self._stream = stream
        self._position = position
        self._number = consumer.subscribe(stream_shard.stream_shard_id, now_ms)
        self._ends_ms = now_ms + options.subscription_ms
        self._options = options
        self._rate = TokenBucket(READ_BYTES_PER_S)
        self._sent_ms: int | None = None

    def __repr__(self) -> str:
        return f"LocalSubscription({self.consumer.name}, {self.stream_shard!r}, at {self._position})"

    def next_event(self, now_ms: int) -> bytes | None:
        """Return the next SubscribeToShardEvent in JSON; none when there is nothing to send now, or `is_over`.

        Raises ResourceInUseException when a later call has taken the subscription, and ResourceNotFoundException when
        the consumer is not registered any more.
        """
        self._stream.apply_due(now_ms)
        self._stream.consumers.find(None, self.consumer.arn)
        if self.consumer.calls[self.stream_shard.stream_shard_id][0] != self._number:
            raise resource_in_use(f"another call has subscribed to shard {self.stream_shard.stream_shard_id}")
        if now_ms >= self._ends_ms:
            self.is_over = True
        since_sent_ms = None if self._sent_ms is None else now_ms - self._sent_ms
        if self.is_over or (since_sent_ms is not None and since_sent_ms < self._options.push_interval_ms):
            return None
        if self._options.read_throttling and not self._rate.has(1, now_ms):
            return None
        return self._read(now_ms, is_due=since_sent_ms is None or since_sent_ms >= self._options.heartbeat_ms)

    def _read(self, now_ms: int, *, is_due: bool) -> bytes | None:
        """Return an event: with records, of the end, or where it *is_due* one without records."""
        source = self.stream_shard
        records = source.read(self._position, limit=MAX_EVENT_RECORDS, max_bytes=MAX_EVENT_BYTES)
        is_read = not source.is_open and not records.encoded and records.next_position >= source.end_position
        self.is_over = is_read
        if not (records.encoded or self.is_over or is_due):
            return None
        self._rate.take(records.size_bytes)
        self._position, self._sent_ms = records.next_position, now_ms
        head = b'{"Records":[%b],"MillisBehindLatest":%d' % (
            b",".join(records.encoded),
            source.millis_behind(records, now_ms),
        )
        if self.is_over:
            children = [child_shard_description(child) for child in source.child_shards]
            return b'%b,"ChildShards":%b}' % (head, msgspec.json.encode(children))
        number = source.number_before(self._position, now_ms)
        return b'%b,"ContinuationSequenceNumber":"%b"}' % (head, number.encode())
