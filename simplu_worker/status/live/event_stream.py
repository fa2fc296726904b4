"""Answers that last: server-sent events, for a bounded number of listeners (docs/outcomes.md).

A listener reads them with `fetch` and the header `Authorization`, so no token is in an address or a cookie.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Final

from aiohttp import web

from simplu_worker.status.connections import connection_of
from simplu_worker.status.responses import COMMON_HEADERS
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event

LISTENERS_MAX: Final = 20
EVENT_EVERY_S: Final = 2.0
ALIVE_EVERY_S: Final = 15.0
LISTEN_MAX_S: Final = 3600.0
ALIVE: Final = b": alive\n\n"

Read = Callable[[], Awaitable[tuple[int, bytes]]]  # an HTTP status, and JSON


def encode_event(name: str, body: bytes) -> bytes:
    """Return an event with JSON as its data, which has no line break."""
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


async def changes(
    answers: Mapping[str, Read],
    closing: asyncio.Event,
    *,
    every_s: float = EVENT_EVERY_S,
    alive_s: float = ALIVE_EVERY_S,
    listen_s: float = LISTEN_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield each of *answers* as an event whenever it has changed, until *closing*, and at most for *listen_s*.

    Without a change for *alive_s* a comment shows that the connection is open.
    """
    shown: dict[str, bytes] = {}
    ends_at, sent_at = loop_time() + listen_s, loop_time()
    while not closing.is_set() and loop_time() < ends_at:
        for name, read in answers.items():
            status, body = await read()
            if status == HTTPStatus.OK and shown.get(name) != body:
                shown[name], sent_at = body, loop_time()
                yield encode_event(name, body)
        if loop_time() - sent_at >= alive_s:
            sent_at = loop_time()
            yield ALIVE
        await sleep_or_event(every_s, until=closing)


async def send_events(
    request: web.Request, events: AsyncGenerator[bytes, None], *, taken_within_s: float
) -> web.StreamResponse:
    """Send *events* until their end; a listener that does not take one within *taken_within_s* is cut off."""
    headers = {**COMMON_HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(request)
        async with aclosing(events):
            async for event in events:
                async with asyncio.timeout(taken_within_s):
                    await response.write(event)
    except TimeoutError:
        connection_of(request).abort()
    except ConnectionError:  # the listener has gone
        pass
    return response
