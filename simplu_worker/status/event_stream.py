"""Server-sent events: changes of answers, and the tap (docs/outcomes.md).

A listener uses `fetch` with the header `Authorization`, so no token is in an address or a cookie.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from simplu_worker.consumers.operation_taps import TAPS, OperationTaps, TapFilter
from simplu_worker.status.request_bodies import COMMON_HEADERS
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import sleep_or_event, wait_any

EVENT_EVERY_S: Final = 2.0
ALIVE_EVERY_S: Final = 15.0
LISTEN_MAX_S: Final = 3600.0
ALIVE: Final = b": alive\n\n"

Read = Callable[[], Awaitable[tuple[int, bytes]]]  # an HTTP status, and JSON


def encode_event(name: str, body: bytes) -> bytes:
    """Return an event with JSON, which has no line break, as its data."""
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


async def changes(
    answers: Mapping[str, Read],
    closing: asyncio.Event,
    *,
    every_s: float = EVENT_EVERY_S,
    alive_s: float = ALIVE_EVERY_S,
    listen_s: float = LISTEN_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield each of *answers* when it has changed, until *closing*, at most for *listen_s*.

    After *alive_s* without a change a comment shows that the connection is open.
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


async def send_events(request: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Send *events* until their end, or the listener has gone."""
    headers = {**COMMON_HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    with suppress(ConnectionError):
        await response.prepare(request)
        async with aclosing(events):
            async for event in events:
                await response.write(event)
    return response


TAP_MAX_S: Final = 900.0


async def tapped(
    chosen: TapFilter,
    closing: asyncio.Event,
    *,
    taps: OperationTaps = TAPS,
    alive_s: float = ALIVE_EVERY_S,
    tap_s: float = TAP_MAX_S,
) -> AsyncGenerator[bytes, None]:
    """Yield the decided operations that *chosen* matches, until *closing*, at most for *tap_s*.

    An event `dropped` has how many came faster than they were taken. The tap is open from the first step on.
    """
    tap = taps.add(chosen)
    ends_at, dropped_count = loop_time() + tap_s, 0
    try:
        yield ALIVE
        while not closing.is_set() and (left_s := ends_at - loop_time()) > 0:
            await wait_any(tap.has_events, closing, within_s=min(alive_s, left_s))
            events = b"".join(encode_event("operation", event) for event in tap.take())
            if tap.dropped_count > dropped_count:
                dropped_count = tap.dropped_count
                events += encode_event("dropped", msgspec.json.encode({"dropped": dropped_count}))
            yield events or ALIVE
    finally:
        taps.remove(tap)
