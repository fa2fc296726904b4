"""Destinations of the feed: streams of Kinesis, queues of SQS, receivers over HTTP.

Over HTTP a name may lead to another address at each look-up, so the address of each socket is judged as it is made. No
redirect is followed, no proxy of the environment is used, and an answer is bounded.
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
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from standardwebhooks import Webhook
from yarl import URL

from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sending import Producer, PutRecord, Unsent, queue_producer, stream_producer
from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage, Queue
from simplu_worker.feed.cloud_events import CONTENT_TYPE, encode_event, encode_notification
from simplu_worker.feed.feed_file import AllowedHosts, parse_address
from simplu_worker.feed.types import Delivered, Delivery, Disabled, FeedEvent, Refused, RetryLater
from simplu_worker.http_connector import BoundedConnector
from simplu_worker.network_errors import network_cause
from simplu_worker.timing.clock import parse_http_date, utc_now

TOO_LARGE: Final = Refused("it is too large for the destination, even without its data")

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
        """Deliver *events*, no two of one subject; return what became of each.

        Each sender ends with its first failure: a receiver that hangs costs one timeout. All end where the receiver
        asks for a pause, or for no more. Events that were not sent come to the last of these failures.
        """
        deliveries: dict[int, Delivery] = {}
        end: Delivery = Delivered()
        is_over = False
        waiting = iter(range(len(events)))

        async def send() -> None:
            nonlocal end, is_over
            for index in waiting:
                deliveries[index] = delivery = await self._deliver(events[index])
                if isinstance(delivery, RetryLater | Disabled):
                    asks = isinstance(delivery, Disabled) or delivery.after_s is not None
                    end, is_over = delivery if asks or not is_over else end, is_over or asks
                    return
                if is_over:
                    return

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(CONNECTIONS, len(events))):
                tasks.create_task(send())
        return [deliveries.get(index, end) for index in range(len(events))]

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
REQUESTS_AT_ONCE: Final = 8
READ_TIMEOUT_S: Final = 10.0
SQS_EVENT_MAX_BYTES: Final = 262_144  # the limit of every queue before August 2025, of a message and of a request
_ID: Final = re.compile("[!-~]{1,128}")  # SQS API reference, SendMessage
_REGION: Final = re.compile(r"https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")
# The characters of JSON that SQS does not take. Within JSON they are in texts alone, where an escape is the same.
_REFUSED: Final = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})
T = TypeVar("T")


class AwsDestination(Generic[T]):
    """The stream or queue of *producer*; *pack* returns what it gets of an event, None if that is too large."""

    max_events = REQUEST_EVENTS_MAX

    def __init__(self, producer: Producer[T], pack: Callable[[FeedEvent], T | None]) -> None:
        self._producer = producer
        self._pack = pack
        self._requests_at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*, no two of one subject; return what became of each."""
        items = [(index, item) for index, event in enumerate(events) if (item := self._pack(event)) is not None]
        deliveries: list[Delivery] = [TOO_LARGE] * len(events)
        waiting = iter(items)

        async def put(request: Sequence[T]) -> None:
            indexes = [index for index, _ in islice(waiting, len(request))]
            async with self._requests_at_once:
                unsent = await self._producer.put(request)
            for place, index in enumerate(indexes):
                deliveries[index] = _delivery_of(unsent.get(place))

        async with asyncio.TaskGroup() as tasks:
            for request in self._producer.cut(item for _, item in items):
                tasks.create_task(put(request))
        return deliveries


def _delivery_of(unsent: Unsent | None) -> Delivery:
    if unsent is None:
        return Delivered()
    return Refused(unsent.error) if unsent.is_at_fault else RetryLater(unsent.error)


def record_of(event: FeedEvent) -> PutRecord | None:
    """Return the record of *event* for a stream."""
    data = encode_event(event, KINESIS_EVENT_MAX_BYTES)
    return None if data is None else PutRecord(data, partition_key_of(event.subject))


def partition_key_of(key: str) -> str:
    """Return *key*, if it is a partition key of Kinesis, or else its hash."""
    return key if len(key) <= KEY_MAX_CHARS else hashlib.sha256(key.encode()).hexdigest()


def message_of(event: FeedEvent) -> OutgoingMessage | None:
    """Return the message of *event* for a FIFO queue.

    What another publisher sends again has a new de-duplication id: SQS would swallow it.
    """
    encoded = encode_event(event, SQS_EVENT_MAX_BYTES)
    if encoded is None:
        return None
    body = encoded.decode()
    if not body.isascii():
        body = body.translate(_REFUSED)
        if len(body.encode()) > SQS_EVENT_MAX_BYTES:
            return None
    sending = f"{event.id}-{event.incarnation}-{event.sender}"
    return OutgoingMessage(body, FifoIds(fifo_id(event.subject), fifo_id(sending)))


def fifo_id(text: str) -> str:
    """Return *text*, if it is an id of a FIFO queue, or else its hash."""
    return text if _ID.fullmatch(text) is not None else hashlib.sha256(text.encode()).hexdigest()


def region_of_stream(name_or_arn: str, region: str | None) -> str | None:
    """Return the region of a stream: that of its ARN, or else *region*."""
    return name_or_arn.split(":")[3] if name_or_arn.startswith("arn:") else region


def region_of_queue(url: str, region: str | None) -> str | None:
    """Return the region of a queue: that of its URL, or else *region*."""
    named = _REGION.match(url)
    return region if named is None else named[1]


@contextlib.asynccontextmanager
async def open_kinesis(name_or_arn: str, *, region: str | None) -> AsyncIterator[AwsDestination[PutRecord]]:
    """Open a stream, which is in the region of its ARN, or else in *region*."""
    async with _open_client("kinesis", region_of_stream(name_or_arn, region)) as client:
        yield AwsDestination(stream_producer(client, name_or_arn), record_of)


@contextlib.asynccontextmanager
async def open_sqs(url: str, *, region: str | None) -> AsyncIterator[AwsDestination[OutgoingMessage]]:
    """Open a queue, which is in the region of its URL, or else in *region*."""
    async with _open_client("sqs", region_of_queue(url, region)) as client:
        yield AwsDestination(queue_producer(Queue(client, url)), message_of)


def _open_client(service: str, region: str | None) -> AbstractAsyncContextManager[Client]:
    return open_client(service, region=region, read_timeout_s=READ_TIMEOUT_S, pool_size=REQUESTS_AT_ONCE)
