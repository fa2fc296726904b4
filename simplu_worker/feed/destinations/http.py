"""Receivers over HTTP as destinations of the feed: webhooks, and the notifications of the TypeScript worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
from standardwebhooks import Webhook
from yarl import URL

from simplu_worker.feed.allowed_hosts import AllowedHosts
from simplu_worker.feed.cloud_events import CONTENT_TYPE, encode_event, encode_notification
from simplu_worker.feed.destinations.answers import CallHealth, delivery_of
from simplu_worker.feed.destinations.guarded_session import (
    REQUEST_ERRORS,
    cause_of,
    open_guarded_session,
)
from simplu_worker.feed.destinations.key_order import KeyOrder
from simplu_worker.feed.destinations.rounds import TOO_LARGE
from simplu_worker.feed.types import Delivered, Delivery, FeedEvent, RetryLater
from simplu_worker.timing.clock import utc_now

EVENT_MAX_BYTES: Final = 262_144
EVENTS_MAX: Final = 200
CONNECTIONS: Final = 32
REQUEST_TIMEOUT_S: Final = 15.0
NOTIFICATIONS_PATH: Final = "/api/notifications"


class Post(msgspec.Struct, frozen=True):
    """A request, but for its URL."""

    body: bytes
    headers: dict[str, str]


class Form(Protocol):
    """How events become requests."""

    def request(self, event: FeedEvent, now: datetime) -> Post | Delivery:
        """Return the request of *event*, or what becomes of an event without one."""


class WebhookForm:
    """CloudEvents, signed as Standard Webhooks has it; with several *secrets* each signs, the first one first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._signers = [Webhook(secret) for secret in secrets]

    def request(self, event: FeedEvent, now: datetime) -> Post | Delivery:
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
        return Post(body, headers)


class NotificationForm:
    """The notifications of the TypeScript worker. An event that has none counts as delivered."""

    def request(self, event: FeedEvent, now: datetime) -> Post | Delivery:  # noqa: ARG002 - the protocol's
        """Return the request of *event*."""
        body = encode_notification(event, EVENT_MAX_BYTES)
        return Delivered() if body is None else Post(body, {"Content-Type": "application/json"})


class HttpDestination:
    """The receiver at *url*: an event a request, and one request at a time for each partition key."""

    max_events = EVENTS_MAX

    def __init__(
        self, session: aiohttp.ClientSession, url: str, form: Form, *, utc: Callable[[], datetime] = utc_now
    ) -> None:
        self._session = session
        self._url = URL(url, encoded=True)
        self._place = urlsplit(url).netloc
        self._form = form
        self._utc = utc
        # Waiting for a connection of the session would count for the time-out of the request.
        self._connections = asyncio.Semaphore(CONNECTIONS)

    def __repr__(self) -> str:
        return f"HttpDestination({self._place!r})"

    async def publish(self, events: Sequence[FeedEvent]) -> list[Delivery]:
        """Deliver *events*; return what became of each.

        The lanes are shared by senders, each of which ends with its first failure: a receiver that hangs costs the time
        of one request, and some events that it cannot take do not hold the others.
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
            return await self._post(request) if isinstance(request, Post) else request

    async def _post(self, request: Post) -> Delivery:
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
    """Return a webhook as a context, in which it is open."""
    return _open(url, WebhookForm(secrets), allowed, timeout_s)


def open_notification(
    url: str, allowed: AllowedHosts, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> AbstractAsyncContextManager[HttpDestination]:
    """Return the notifications of the service at *url* as a context, in which they are open."""
    return _open(url + NOTIFICATIONS_PATH, NotificationForm(), allowed, timeout_s)


@contextlib.asynccontextmanager
async def _open(url: str, form: Form, allowed: AllowedHosts, timeout_s: float) -> AsyncIterator[HttpDestination]:
    host = urlsplit(url).hostname or ""
    async with open_guarded_session(host, allowed, connections=CONNECTIONS, timeout_s=timeout_s) as session:
        yield HttpDestination(session, url, form)
