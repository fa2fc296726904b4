"""Publish events until a destination has them all, as the feed of a shard does; and what a receiver sees of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

from simplu_worker.feed.destinations import REQUEST_TIMEOUT_S, HttpDestination, open_http, pack_webhook
from simplu_worker.feed.feed_file import AllowedHosts
from simplu_worker.feed.types import Delivered, Delivery, Destination, FeedEvent

CALLS_MAX = 200


def open_webhook(
    url: str, secrets: Sequence[str], allowed: AllowedHosts, *, timeout_s: float = REQUEST_TIMEOUT_S
) -> AbstractAsyncContextManager[HttpDestination]:
    """Return a webhook as a context."""
    return open_http(url, pack_webhook(secrets), allowed, timeout_s=timeout_s)


async def nothing() -> None: ...


async def publish_all(
    destination: Destination, events: Sequence[FeedEvent], *, between: Callable[[], Awaitable[None]] = nothing
) -> list[Sequence[Delivery]]:
    """Publish *events* until each was delivered, in as many calls as that takes; return what each call came to."""
    calls: list[Sequence[Delivery]] = []
    left = list(events)
    while left:
        assert len(calls) < CALLS_MAX
        first: dict[str, FeedEvent] = {}
        for event in left:
            first.setdefault(event.subject, event)
        window = [*first.values()][: destination.max_events]
        deliveries = await destination.publish(window)
        assert len(deliveries) == len(window)
        calls.append(deliveries)
        for event, one in zip(window, deliveries, strict=True):
            if isinstance(one, Delivered):
                left.remove(event)
        if left:
            await between()
    return calls


def first_by_key(received: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return by key the ids that came, in the order in which each came first: what is left without repetitions."""
    found: dict[str, list[str]] = {}
    for key, event_id in received:
        ids = found.setdefault(key, [])
        if event_id not in ids:
            ids.append(event_id)
    return found


def expected_by_key(events: Iterable[FeedEvent]) -> dict[str, list[str]]:
    return first_by_key((event.subject, event.id) for event in events)


async def command_server(url: str, **command: Any) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/_control", json=command) as answer:
        assert answer.status < 300, await answer.text()
