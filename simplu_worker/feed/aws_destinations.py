"""Destinations of the feed in AWS: streams of Kinesis and FIFO queues of SQS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from simplu_worker.aws.clients import THROTTLING_CODES, Client, open_client, translate_errors
from simplu_worker.aws.put_records import (
    REQUEST_MAX_BYTES,
    REQUEST_MAX_COUNT,
    PutRecord,
    put_records,
    speed_up_put_records,
)
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, FifoIds, OutgoingMessage, Queue
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.delivery_rounds import CONTENT_CODES, publish_in_rounds
from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, Refused, RetryLater
from simplu_worker.instruments import KINESIS_THROTTLED

EVENT_MAX_BYTES: Final = 1_000_000  # of 1 MiB, the limit of every stream, with the partition key
EVENTS_MAX: Final = 1000
KEY_MAX_CHARS: Final = 256  # Kinesis API reference, PutRecordsRequestEntry
REQUESTS_AT_ONCE: Final = 4
READ_TIMEOUT_S: Final = 10.0


class KinesisDestination:
    """The stream *name_or_arn*; *client* has the hooks of `speed_up_put_records`."""

    request_max_count = REQUEST_MAX_COUNT
    request_max_bytes = REQUEST_MAX_BYTES
    max_events = EVENTS_MAX

    def __init__(self, client: Client, name_or_arn: str) -> None:
        self._client = client
        self._stream = {"StreamARN" if name_or_arn.startswith("arn:") else "StreamName": name_or_arn}
        self._requests_at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each."""
        return await publish_in_rounds(self, events, self._requests_at_once)

    def pack(self, event: FeedEvent) -> PutRecord | None:
        """Return the record of *event*; None if it is too large."""
        data = encode_event(event, EVENT_MAX_BYTES)
        return None if data is None else PutRecord(data, partition_key_of(event.subject))

    async def send(self, entries: Sequence[PutRecord]) -> list[Delivery]:
        """Put the records with one request."""
        with translate_errors():
            results = await put_records(self._client, self._stream, entries)
        if any([result.error in THROTTLING_CODES for result in results]):
            KINESIS_THROTTLED.inc()
        return [
            Delivered() if result.error is None else RetryLater(f"PutRecords: {result.error}: {result.message}")
            for result in results
        ]


def partition_key_of(key: str) -> str:
    """Return *key*, if it is a partition key of Kinesis, or else its hash."""
    return key if len(key) <= KEY_MAX_CHARS else hashlib.sha256(key.encode()).hexdigest()


def region_of_stream(name_or_arn: str, region: str | None) -> str | None:
    """Return the region of a stream: that of its ARN, or else *region*."""
    return name_or_arn.split(":")[3] if name_or_arn.startswith("arn:") else region


@contextlib.asynccontextmanager
async def open_kinesis(name_or_arn: str, *, region: str | None) -> AsyncIterator[KinesisDestination]:
    """Open a stream, which is in the region of its ARN, or else in *region*."""
    own_region = region_of_stream(name_or_arn, region)
    async with open_client(
        "kinesis", region=own_region, read_timeout_s=READ_TIMEOUT_S, pool_size=REQUESTS_AT_ONCE
    ) as client:
        speed_up_put_records(client)
        yield KinesisDestination(client, name_or_arn)


SQS_EVENT_MAX_BYTES: Final = 262_144  # the limit of every queue before August 2025, of a message and of a request
SQS_REQUESTS_AT_ONCE: Final = 8
_ID: Final = re.compile("[!-~]{1,128}")  # SQS API reference, SendMessage
_REGION: Final = re.compile(r"https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")
# The characters of JSON that SQS does not take. Within JSON they are in texts alone, where an escape is the same.
_REFUSED: Final = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})


class _QueuedEvent(msgspec.Struct, frozen=True):
    body: str
    size_bytes: int
    ids: FifoIds


class SqsDestination:
    """The FIFO queue *queue*. What is sent again on purpose has a new de-duplication id: SQS would swallow it."""

    request_max_count = BATCH_MAX_COUNT
    request_max_bytes = SQS_EVENT_MAX_BYTES
    max_events = EVENTS_MAX

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._requests_at_once = asyncio.Semaphore(SQS_REQUESTS_AT_ONCE)

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each."""
        return await publish_in_rounds(self, events, self._requests_at_once)

    def pack(self, event: FeedEvent) -> _QueuedEvent | None:
        """Return the message of *event*; None if it is too large."""
        encoded = encode_event(event, SQS_EVENT_MAX_BYTES)
        if encoded is None:
            return None
        body = encoded.decode()
        size_bytes = len(encoded)
        if not body.isascii():
            body = body.translate(_REFUSED)
            size_bytes = len(body.encode())
        sending = f"{event.id}-{event.incarnation.id}-{event.replay or 0}"
        ids = FifoIds(fifo_id(event.subject), fifo_id(sending))
        return _QueuedEvent(body, size_bytes, ids) if size_bytes <= SQS_EVENT_MAX_BYTES else None

    async def send(self, entries: Sequence[_QueuedEvent]) -> list[Delivery]:
        """Send the messages with one request."""
        unsent = await self._queue.send([OutgoingMessage(body=entry.body, fifo=entry.ids) for entry in entries])
        codes = {failure.index: failure.code for failure in unsent}
        return [_delivery(codes.get(index)) for index in range(len(entries))]


def _delivery(code: str | None) -> Delivery:
    if code is None:
        return Delivered()
    error = f"SendMessageBatch: {code}"
    return Refused(error) if code in CONTENT_CODES else RetryLater(error)


def fifo_id(text: str) -> str:
    """Return *text*, if it is an id of a FIFO queue, or else its hash."""
    return text if _ID.fullmatch(text) is not None else hashlib.sha256(text.encode()).hexdigest()


def region_of_queue(url: str, region: str | None) -> str | None:
    """Return the region of a queue: that of its URL, or else *region*."""
    named = _REGION.match(url)
    return region if named is None else named[1]


@contextlib.asynccontextmanager
async def open_sqs(url: str, *, region: str | None) -> AsyncIterator[SqsDestination]:
    """Open a queue, which is in the region of its URL, or else in *region*."""
    async with open_client(
        "sqs",
        region=region_of_queue(url, region),
        read_timeout_s=READ_TIMEOUT_S,
        pool_size=SQS_REQUESTS_AT_ONCE,
    ) as client:
        yield SqsDestination(Queue(client, url))
