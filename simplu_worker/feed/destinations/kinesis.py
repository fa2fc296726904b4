"""A stream of Kinesis as a destination of the feed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from simplu_worker.aws.clients import THROTTLING_CODES, Client, open_client, translate_errors
from simplu_worker.aws.put_records import (
    REQUEST_MAX_BYTES,
    REQUEST_MAX_COUNT,
    PutRecord,
    put_records,
    speed_up_put_records,
)
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.destinations.rounds import publish_in_rounds
from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, RetryLater
from simplu_worker.metrics.instruments import KINESIS_THROTTLED

EVENT_MAX_BYTES: Final = 1_000_000  # of 1 MiB, the limit of every stream, with the partition key
EVENTS_MAX: Final = 1000
KEY_MAX_CHARS: Final = 256  # Kinesis API reference, PutRecordsRequestEntry
REQUESTS_AT_ONCE: Final = 4
READ_TIMEOUT_S: Final = 10.0


class KinesisDestination:
    """The stream *name_or_arn*. The partition key of a record is that of its event, or the hash of a longer one."""

    request_max_count = REQUEST_MAX_COUNT
    request_max_bytes = REQUEST_MAX_BYTES
    max_events = EVENTS_MAX

    def __init__(self, client: Client, name_or_arn: str) -> None:
        """*client* has the hooks of `speed_up_put_records`."""
        self._client = client
        self._stream = {"StreamARN" if name_or_arn.startswith("arn:") else "StreamName": name_or_arn}
        self._requests_at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    def __repr__(self) -> str:
        return f"KinesisDestination({self._stream})"

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
