"""Destinations of the feed: streams of Kinesis, queues of SQS, receivers over HTTP.

Over HTTP a name may lead to another address at each look-up, so the address of each socket is judged as it is made. No
redirect is followed, no proxy of the environment is used, and the body of an answer is bounded.
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
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, assert_never
from urllib.parse import urlsplit

import aiohttp
import msgspec
from standardwebhooks import Webhook
from yarl import URL

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sending import Producer, PutRecord, Unsent, queue_producer, stream_producer
from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage, Queue
from simplu_worker.feed.cloud_events import CONTENT_TYPE, encode_event, encode_notification
from simplu_worker.feed.feed_file import AllowedHosts, FeedDestination, parse_address
from simplu_worker.feed.types import Delivered, Delivery, Destination, Disabled, FeedEvent, Refused, RetryLater
from simplu_worker.network_errors import network_cause
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import DestinationKind

TOO_LARGE: Final = Refused("it is too large for the destination, even without its data")

# 4xx that are about the moment and not about the event: RFC 9110 (408), RFC 8470 (425), RFC 6585 (429).
PASSING: Final = frozenset({408, 425, 429})
GONE: Final = 410  # Standard Webhooks: the receiver wants no more
RETRY_AFTER_MAX_S: Final = 3600.0


def delivery_of(place: str, status: int, retry_after: str | None) -> Delivery:
    """Return what an answer of *place*, a host and its port, means for its event; *retry_after* may have seconds."""
    if 200 <= status < 300:
        return Delivered()
    if status == GONE:
        return Disabled(f"{place}: got HTTP status {GONE}, by which it asks for no more events")
    if 300 <= status < 400:
        return RetryLater(f"{place}: expected a status 2xx, got a redirect ({status}); name its target in FEED_FILE")
    error = f"{place}: expected a status 2xx, got {status}"
    if 400 <= status < 500 and status not in PASSING:
        return Refused(error)
    is_number = retry_after is not None and retry_after.isascii() and retry_after.isdecimal()
    return RetryLater(error, min(float(retry_after or 0), RETRY_AFTER_MAX_S) if is_number else None)


CONNECT_TIMEOUT_S: Final = 5.0
REPLY_MAX_BYTES: Final = 65_536  # of its body nothing matters

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
        connector=aiohttp.TCPConnector(limit=connections, socket_factory=make_socket),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "simplu-worker"},
        auto_decompress=False,
    ) as session:
        yield session


async def connect(host: str, port: int, allowed: AllowedHosts, *, has_tls: bool) -> None:
    """Connect to *host*, whose addresses are all allowed, and close it. Raises one of REQUEST_ERRORS."""
    for *_, place in await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM):
        _judge(host, str(place[0]), allowed)
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port, ssl=has_tls or None)
    writer.transport.abort()


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


_Pack: TypeAlias = Callable[[FeedEvent, datetime], _Post | Delivery]
"""Returns the request of an event, or what becomes of an event without one."""


def pack_webhook(secrets: Sequence[str]) -> _Pack:
    """Return what packs CloudEvents, signed as Standard Webhooks has it, the first of *secrets* first."""
    signers = [Webhook(secret) for secret in secrets]

    def pack(event: FeedEvent, now: datetime) -> _Post | Delivery:
        body = encode_event(event, EVENT_MAX_BYTES)
        if body is None:
            return TOO_LARGE
        text = body.decode()
        headers = {
            "Content-Type": CONTENT_TYPE,
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join([signer.sign(event.id, now, text) for signer in signers]),
        }
        return _Post(body, headers)

    return pack


def pack_notification(event: FeedEvent, _: datetime) -> _Post | Delivery:
    """Return the request; an event without a notification counts as delivered."""
    body = encode_notification(event, EVENT_MAX_BYTES)
    return Delivered() if body is None else _Post(body, {"Content-Type": "application/json"})


class HttpDestination:
    """The receiver at *url*: an event a request, and one request at a time for each partition key."""

    max_events = EVENTS_MAX

    def __init__(
        self, session: aiohttp.ClientSession, url: str, pack: _Pack, *, utc: Callable[[], datetime] = utc_now
    ) -> None:
        self._session = session
        self._url = URL(url, encoded=True)
        self._place = urlsplit(url).netloc
        self._pack = pack
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
            request = self._pack(event, self._utc())
            return await self._post(request) if isinstance(request, _Post) else request

    async def _post(self, request: _Post) -> Delivery:
        """Send a request. A status that came counts, whatever comes after it."""
        try:
            async with self._session.post(
                self._url, data=request.body, headers=request.headers, allow_redirects=False
            ) as reply:
                status, retry_after = reply.status, reply.headers.get("Retry-After")
                with contextlib.suppress(*REQUEST_ERRORS):
                    left_bytes = REPLY_MAX_BYTES
                    async for part in reply.content.iter_any():  # so that the connection can be used again
                        if (left_bytes := left_bytes - len(part)) < 0:
                            break
        except REQUEST_ERRORS as exc:
            return RetryLater(f"{self._place}: {cause_of(exc)}")
        return delivery_of(self._place, status, retry_after)


@contextlib.asynccontextmanager
async def open_http(
    url: str, pack: _Pack, allowed: AllowedHosts, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> AsyncIterator[HttpDestination]:
    """Open the receiver at *url*, to which *pack* makes the requests."""
    host = urlsplit(url).hostname or ""
    async with open_guarded_session(host, allowed, connections=CONNECTIONS, timeout_s=timeout_s) as session:
        yield HttpDestination(session, url, pack)


KINESIS_EVENT_MAX_BYTES: Final = 1_000_000  # of 1 MiB, the limit of every stream, with the partition key
REQUEST_EVENTS_MAX: Final = 1000
KEY_MAX_CHARS: Final = 256  # Kinesis API reference, PutRecordsRequestEntry
REQUESTS_AT_ONCE: Final = 8
READ_TIMEOUT_S: Final = 10.0
SQS_EVENT_MAX_BYTES: Final = 262_144  # the limit of every queue before August 2025, of a message and of a request
_ID: Final = re.compile("[!-~]{1,128}")  # SQS API reference, SendMessage
_REGION: Final = re.compile(
    r"arn:[^:]+:kinesis:([^:]+):|https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com"
)
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


def region_of(target: str, region: str | None) -> str | None:
    """Return the region of a stream or queue: that of its ARN or URL, or else *region*."""
    named = _REGION.match(target)
    return region if named is None else named[1] or named[2]


def open_destination(
    destination: FeedDestination, *, region: str | None, allowed: AllowedHosts
) -> AbstractAsyncContextManager[Destination]:
    """Return the destination as a context, in which it is open. It may be unreachable: then its events wait."""
    target = destination.terms.target
    match destination.terms.kind:
        case DestinationKind.KINESIS:
            return open_aws("kinesis", target, region=region)
        case DestinationKind.SQS:
            return open_aws("sqs", target, region=region)
        case DestinationKind.WEBHOOK:
            return open_http(target, pack_webhook(destination.secrets), allowed)
        case DestinationKind.NOTIFICATION:
            return open_http(target.rstrip("/") + NOTIFICATIONS_PATH, pack_notification, allowed)
        case _:
            assert_never(destination.terms.kind)


@contextlib.asynccontextmanager
async def open_aws(
    service: Literal["kinesis", "sqs"], target: str, *, region: str | None
) -> AsyncIterator[Destination]:
    """Open a stream or queue, which is in the region of its ARN or URL, or else in *region*."""
    async with open_client(
        service, region=region_of(target, region), read_timeout_s=READ_TIMEOUT_S, pool_size=REQUESTS_AT_ONCE
    ) as client:
        if service == "kinesis":
            yield AwsDestination(stream_producer(client, target), record_of)
        else:
            yield AwsDestination(queue_producer(Queue(client, target)), message_of)
