"""A FIFO queue of SQS as a destination of the feed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, FifoIds, OutgoingMessage, Queue
from simplu_worker.feed.cloud_events import encode_event
from simplu_worker.feed.destinations.rounds import CONTENT_CODES, publish_in_rounds
from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, Refused, RetryLater

EVENT_MAX_BYTES: Final = 262_144  # the limit of every queue before August 2025, of a message and of a request
EVENTS_MAX: Final = 1000
REQUESTS_AT_ONCE: Final = 8
READ_TIMEOUT_S: Final = 10.0
_ID: Final = re.compile("[!-~]{1,128}")  # SQS API reference, SendMessage
_REGION: Final = re.compile(r"https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")
# The characters of JSON that SQS does not take. Within JSON they are in texts alone, where an escape is the same.
_REFUSED: Final = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event as a message."""

    body: str
    size_bytes: int
    ids: FifoIds


class SqsDestination:
    """The FIFO queue *queue*. The group of a message is the partition key.

    What a new incarnation or a replay sends again has a new de-duplication id: a receiver takes back what does not come
    again, and the queue would swallow it for five minutes.
    """

    request_max_count = BATCH_MAX_COUNT
    request_max_bytes = EVENT_MAX_BYTES
    max_events = EVENTS_MAX

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._requests_at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    def __repr__(self) -> str:
        return f"SqsDestination({self._queue.name!r})"

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each."""
        return await publish_in_rounds(self, events, self._requests_at_once)

    def pack(self, event: FeedEvent) -> QueuedEvent | None:
        """Return the message of *event*; None if it is too large."""
        encoded = encode_event(event, EVENT_MAX_BYTES)
        if encoded is None:
            return None
        body = encoded.decode()
        size_bytes = len(encoded)
        if not body.isascii():
            body = body.translate(_REFUSED)
            size_bytes = len(body.encode())
        sending = f"{event.id}-{event.incarnation.id}-{event.replay or 0}"
        ids = FifoIds(fifo_id(event.subject), fifo_id(sending))
        return QueuedEvent(body, size_bytes, ids) if size_bytes <= EVENT_MAX_BYTES else None

    async def send(self, entries: Sequence[QueuedEvent]) -> list[Delivery]:
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
        pool_size=REQUESTS_AT_ONCE,
    ) as client:
        yield SqsDestination(Queue(client, url))
