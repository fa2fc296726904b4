"""Destinations of the feed: streams of Kinesis and queues of SQS, in rounds; receivers over HTTP, in lanes.

A round has one event of a partition key at most, a lane all of one. Over HTTP a name may lead to another address at
each look-up, so the address of each socket is judged as it is made. No redirect is followed, no proxy of the
environment is used, and an answer is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from standardwebhooks import Webhook
from yarl import URL

from simplu_worker.aws.clients import THROTTLING_CODES, Client, error_code, open_client, translate_errors
from simplu_worker.aws.sending import (
    REQUEST_MAX_BYTES,
    REQUEST_MAX_COUNT,
    PutRecord,
    RequestBounds,
    cut,
    put_records,
    speed_up_put_records,
)
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, FifoIds, OutgoingMessage, Queue
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.feed.cloud_events import CONTENT_TYPE, encode_event, encode_notification
from simplu_worker.feed.feed_file import AllowedHosts, parse_address
from simplu_worker.feed.types import Delivered, Delivery, Disabled, FeedEvent, Refused, RetryLater
from simplu_worker.http_connector import BoundedConnector
from simplu_worker.instruments import KINESIS_THROTTLED
from simplu_worker.network_errors import network_cause
from simplu_worker.timing.clock import parse_http_date, utc_now

BEHIND: Final = "the event of its resource before it was not delivered"


class KeyOrder:
    """The events of one call of `publish`, by their indexes, and what became of each."""

    def __init__(self, events: Sequence[FeedEvent]) -> None:
        self._keys = [event.subject for event in events]
        self._waiting: dict[str, list[int]] = {}
        for index in reversed(range(len(events))):
            self._waiting.setdefault(self._keys[index], []).append(index)  # the next one is the last
        self._deliveries: list[Delivery] = [RetryLater(BEHIND)] * len(events)

    def lanes(self) -> list[list[int]]:
        """Return the events that were not sent yet by key, each key in order."""
        return sorted([waiting[::-1] for waiting in self._waiting.values()])

    def next_round(self) -> list[int]:
        """Return the next event of each key whose events so far were delivered; none at the end."""
        return sorted([waiting[-1] for waiting in self._waiting.values()])

    def note(self, index: int, delivery: Delivery) -> None:
        """Note what became of the next event of a key; behind a failure none is sent."""
        self._deliveries[index] = delivery
        key = self._keys[index]
        waiting = self._waiting[key]
        if waiting.pop() != index:
            raise ValueError("an event was sent before another one of its key")
        if not isinstance(delivery, Delivered):
            after_s = delivery.after_s if isinstance(delivery, RetryLater) else None
            for blocked in waiting:
                self._deliveries[blocked] = RetryLater(BEHIND, after_s)
            waiting.clear()
        if not waiting:
            del self._waiting[key]

    def give_up(self, delivery: Delivery) -> None:
        """Note *delivery* for all events that were not sent."""
        for index in [index for waiting in self._waiting.values() for index in waiting]:
            self._deliveries[index] = delivery
        self._waiting.clear()

    def deliveries(self) -> list[Delivery]:
        """Return what became of each event."""
        return [*self._deliveries]


# The service finds the content of an entry at fault: Kinesis API reference, PutRecords; SQS API reference,
# SendMessageBatch. Anything else, such as a missing permission, is no event's fault.
CONTENT_CODES: Final = frozenset(
    {
        "AWS.SimpleQueueService.BatchRequestTooLong",
        "BatchRequestTooLong",
        "InvalidArgumentException",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "InvalidParameterValueException",
        "SerializationException",
        "ValidationException",
    }
)
TOO_LARGE: Final = Refused("it is too large for the destination, even without its data")


class _SizedEntry(Protocol):
    @property
    def size_bytes(self) -> int: ...


Entry = TypeVar("Entry", bound=_SizedEntry)


class _EntryService(Protocol[Entry]):
    @property
    def bounds(self) -> RequestBounds:
        """What a request may have."""

    def pack(self, event: FeedEvent) -> Entry | None:
        """None if the event is too large."""

    async def send(self, entries: Sequence[Entry]) -> Sequence[Delivery]:
        """Return what became of each entry; raise `RetryableError` or `PermanentError` if the request fails."""


async def publish_in_rounds(
    service: _EntryService[Entry], events: Sequence[FeedEvent], requests_at_once: asyncio.Semaphore
) -> list[Delivery]:
    """Deliver *events* to *service*; return what became of each. A round with a failed request is the last one."""
    order = KeyOrder(events)

    async def send(request: Sequence[tuple[int, Entry]]) -> RetryLater | None:
        async with requests_at_once:
            deliveries = await _send(service, [entry for _, entry in request])
        if isinstance(deliveries, RetryLater):
            return deliveries
        for (index, _), delivery in zip(request, deliveries, strict=True):
            order.note(index, delivery)
        return None

    while indexes := order.next_round():
        packed = [(index, service.pack(events[index])) for index in indexes]
        for index, entry in packed:
            if entry is None:
                order.note(index, TOO_LARGE)
        entries = [(index, entry) for index, entry in packed if entry is not None]  # one of each key
        requests = cut(entries, service.bounds, key_of=lambda _: None, size_of=lambda one: one[1].size_bytes)
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(send(request)) for request in requests]
        failures = [failure for task in sent if (failure := task.result()) is not None]
        if failures:
            order.give_up(failures[0])
    return order.deliveries()


async def _send(service: _EntryService[Entry], entries: Sequence[Entry]) -> Sequence[Delivery] | RetryLater:
    try:
        return await service.send(entries)
    except RetryableError as exc:
        return RetryLater(str(exc))
    except PermanentError as exc:
        if not isinstance(exc.__cause__, Exception) or error_code(exc.__cause__) not in CONTENT_CODES:
            return RetryLater(str(exc))
        if len(entries) == 1:
            return [Refused(str(exc))]
    deliveries: list[Delivery] = []
    for entry in entries:  # one of them is at fault, and must not take the others with it
        one = await _send(service, [entry])
        deliveries += [one] if isinstance(one, RetryLater) else one
    return deliveries


# 4xx that are about the moment and not about the event: RFC 9110 (408), RFC 8470 (425), RFC 6585 (429).
PASSING: Final = frozenset({408, 425, 429})
GONE: Final = 410  # Standard Webhooks: the receiver wants no more
RETRY_AFTER_MAX_S: Final = 3600.0


def delivery_of(place: str, status: int, retry_after: str | None, *, now: datetime) -> Delivery:
    """Return what an answer of *place*, a host and its port, means for its event."""
    if 200 <= status < 300:
        return Delivered()
    if status == GONE:
        return Disabled(f"{place}: got HTTP status {GONE}, by which it asks for no more events")
    if 300 <= status < 400:
        return RetryLater(f"{place}: expected a status 2xx, got a redirect ({status}); name its target in FEED_FILE")
    error = f"{place}: expected a status 2xx, got {status}"
    if 400 <= status < 500 and status not in PASSING:
        return Refused(error)
    return RetryLater(error, retry_after_s(retry_after, now=now))


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After`, an hour at most; None if it cannot be read."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return min(float(header[:10]), RETRY_AFTER_MAX_S)
    until = parse_http_date(header)
    return None if until is None else min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)


class CallHealth:
    """Whether to go on with a call: not where the receiver asks for a pause, or for no more."""

    def __init__(self) -> None:
        self.is_over = False
        self.failure: Delivery | None = None  # what the events that were not sent come to

    def note(self, delivery: Delivery) -> None:
        """Note what became of an event; the first reason for an end counts, but 410 counts most."""
        match delivery:
            case Disabled():
                self.is_over, self.failure = True, delivery
            case RetryLater(after_s=after_s) if not self.is_over:
                self.is_over, self.failure = after_s is not None, delivery


CONNECT_TIMEOUT_S: Final = 5.0
REPLY_MAX_BYTES: Final = 65_536  # its head included; of its body nothing matters

REQUEST_ERRORS: Final = (aiohttp.ClientError, OSError, TimeoutError)


class AddressNotAllowedError(OSError):
    """The host has an address that may not be connected to."""


@contextlib.asynccontextmanager
async def open_guarded_session(
    host: str, allowed: AllowedHosts, *, connections: int, timeout_s: float
) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session for requests to *host* alone, with at most *connections*; each is over after *timeout_s*."""

    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = info
        _judge(host, place[0], allowed)
        return socket.socket(family, kind, protocol)

    async with aiohttp.ClientSession(
        connector=BoundedConnector(REPLY_MAX_BYTES, limit=connections, socket_factory=make_socket),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "simplu-worker"},
        auto_decompress=False,
    ) as session:
        yield session


async def connect(host: str, port: int, allowed: AllowedHosts, *, has_tls: bool) -> None:
    """Connect to *host*, at the first address that answers, and close it. Raises one of REQUEST_ERRORS."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: Exception = OSError(errno.EHOSTUNREACH, "no address")
    for address in dict.fromkeys(str(place[0]) for *_, place in found):
        try:
            _judge(host, address, allowed)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(
                    address, port, ssl=has_tls or None, server_hostname=host if has_tls else None
                )
        except TimeoutError:
            failure = OSError(errno.ETIMEDOUT, "no connection in time")
            continue
        except REQUEST_ERRORS as exc:
            failure = exc
            continue
        writer.transport.abort()
        return
    raise failure


def _judge(host: str, address: str, allowed: AllowedHosts) -> None:
    parsed = parse_address(address)
    problem = "expected an address" if parsed is None else allowed.address_problem(host, parsed)
    if problem is not None:
        raise AddressNotAllowedError(errno.EACCES, problem)


def cause_of(exc: BaseException) -> str:
    """Return why a request got no answer; *exc* is one of REQUEST_ERRORS."""
    inner = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    return str(inner.strerror) if isinstance(inner, AddressNotAllowedError) else network_cause(exc)


EVENT_MAX_BYTES: Final = 262_144
EVENTS_MAX: Final = 200
CONNECTIONS: Final = 32
REQUEST_TIMEOUT_S: Final = 15.0
NOTIFICATIONS_PATH: Final = "/api/notifications"


class _Post(msgspec.Struct, frozen=True):
    body: bytes
    headers: dict[str, str]


class _Form(Protocol):
    def request(self, event: FeedEvent, now: datetime) -> _Post | Delivery:
        """Return the request of *event*, or what becomes of an event without one."""


class WebhookForm:
    """CloudEvents, signed as Standard Webhooks has it; each of *secrets* signs, the first one first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._signers = [Webhook(secret) for secret in secrets]

    def request(self, event: FeedEvent, now: datetime) -> _Post | Delivery:
        """Return the request of *event*; refused if it is too large."""
        body = encode_event(event, EVENT_MAX_BYTES)
        if body is None:
            return TOO_LARGE
        text = body.decode()
        headers = {
            "Content-Type": CONTENT_TYPE,
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join([signer.sign(event.id, now, text) for signer in self._signers]),
        }
        return _Post(body, headers)


class _NotificationForm:
    """An event without a notification counts as delivered."""

    def request(self, event: FeedEvent, now: datetime) -> _Post | Delivery:  # noqa: ARG002 - the protocol's
        body = encode_notification(event, EVENT_MAX_BYTES)
        return Delivered() if body is None else _Post(body, {"Content-Type": "application/json"})


class HttpDestination:
    """The receiver at *url*: an event a request, and one request at a time for each partition key."""

    max_events = EVENTS_MAX

    def __init__(
        self, session: aiohttp.ClientSession, url: str, form: _Form, *, utc: Callable[[], datetime] = utc_now
    ) -> None:
        self._session = session
        self._url = URL(url, encoded=True)
        self._place = urlsplit(url).netloc
        self._form = form
        self._utc = utc
        # Waiting for a connection of the session would count for the time-out of the request.
        self._connections = asyncio.Semaphore(CONNECTIONS)

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each.

        Senders share the lanes, and each ends with its first failure: a receiver that hangs costs one timeout.
        """
        order, health = KeyOrder(events), CallHealth()
        lanes = iter(order.lanes())

        async def send_lanes() -> None:
            for lane in lanes:
                for index in lane:
                    if health.is_over:
                        return
                    delivery = await self._deliver(events[index])
                    order.note(index, delivery)
                    health.note(delivery)
                    if isinstance(delivery, RetryLater):
                        return
                    if not isinstance(delivery, Delivered):
                        break

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(CONNECTIONS, len(events))):
                tasks.create_task(send_lanes())
        if health.failure is not None:
            order.give_up(health.failure)
        return order.deliveries()

    async def _deliver(self, event: FeedEvent) -> Delivery:
        async with self._connections:
            request = self._form.request(event, self._utc())
            return await self._post(request) if isinstance(request, _Post) else request

    async def _post(self, request: _Post) -> Delivery:
        """Send a request. A status that came counts, whatever comes after it."""
        try:
            async with self._session.post(
                self._url, data=request.body, headers=request.headers, allow_redirects=False
            ) as reply:
                status, retry_after = reply.status, reply.headers.get("Retry-After")
                with contextlib.suppress(*REQUEST_ERRORS):
                    await reply.read()  # so that the connection can be used again
        except REQUEST_ERRORS as exc:
            return RetryLater(f"{self._place}: {cause_of(exc)}")
        return delivery_of(self._place, status, retry_after, now=self._utc())


def open_webhook(
    url: str, secrets: Sequence[str], allowed: AllowedHosts, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> AbstractAsyncContextManager[HttpDestination]:
    """Return a webhook as a context."""
    return _open(url, WebhookForm(secrets), allowed, timeout_s)


def open_notification(
    url: str, allowed: AllowedHosts, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> AbstractAsyncContextManager[HttpDestination]:
    """Return the notifications of the service at *url* as a context."""
    return _open(url + NOTIFICATIONS_PATH, _NotificationForm(), allowed, timeout_s)


@contextlib.asynccontextmanager
async def _open(url: str, form: _Form, allowed: AllowedHosts, timeout_s: float) -> AsyncIterator[HttpDestination]:
    host = urlsplit(url).hostname or ""
    async with open_guarded_session(host, allowed, connections=CONNECTIONS, timeout_s=timeout_s) as session:
        yield HttpDestination(session, url, form)


KINESIS_EVENT_MAX_BYTES: Final = 1_000_000  # of 1 MiB, the limit of every stream, with the partition key
REQUEST_EVENTS_MAX: Final = 1000
KEY_MAX_CHARS: Final = 256  # Kinesis API reference, PutRecordsRequestEntry
REQUESTS_AT_ONCE: Final = 4
READ_TIMEOUT_S: Final = 10.0


class KinesisDestination:
    """The stream *name_or_arn*; *client* has the hooks of `speed_up_put_records`."""

    bounds = RequestBounds(REQUEST_MAX_COUNT, REQUEST_MAX_BYTES)
    max_events = REQUEST_EVENTS_MAX

    def __init__(self, client: Client, name_or_arn: str) -> None:
        self._client = client
        self._stream = {"StreamARN" if name_or_arn.startswith("arn:") else "StreamName": name_or_arn}
        self._requests_at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each."""
        return await publish_in_rounds(self, events, self._requests_at_once)

    def pack(self, event: FeedEvent) -> PutRecord | None:
        """Return the record of *event*; None if it is too large."""
        data = encode_event(event, KINESIS_EVENT_MAX_BYTES)
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
    """The FIFO queue *queue*. What another publisher sends again has a new de-duplication id: SQS would swallow it."""

    bounds = RequestBounds(BATCH_MAX_COUNT, SQS_EVENT_MAX_BYTES)
    max_events = REQUEST_EVENTS_MAX

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
        sending = f"{event.id}-{event.incarnation}-{event.sender}"
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
