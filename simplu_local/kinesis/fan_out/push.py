"""Send the events of a subscription over HTTP for as long as it lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
from aiohttp import web

from simplu_local.aws_server.errors import AwsError
from simplu_local.aws_server.server import Encoding
from simplu_local.kinesis.fan_out.event_stream import CONTENT_TYPE, encode_event, encode_exception
from simplu_local.kinesis.fan_out.subscription import LocalSubscription
from simplu_local.kinesis.faults import KinesisFault

CHECK_INTERVAL_S = 0.05  # the end, and events that the rate has put off, come with the time alone


class Wakers:
    """Wakes the subscriptions after a change of the streams."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def __repr__(self) -> str:
        return f"Wakers({len(self._waiting)})"

    def wake(self) -> None:
        """Wake all."""
        for event in self._waiting:
            event.set()

    async def wait(self) -> None:
        """Wait for a change, at most CHECK_INTERVAL_S."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), CHECK_INTERVAL_S)
        finally:
            self._waiting.discard(changed)


class Pusher:
    """Sends the events of one subscription. While a client does not read, no event is made."""

    def __init__(self, subscription: LocalSubscription, wakers: Wakers, now_ms: Callable[[], int]) -> None:
        self._subscription = subscription
        self._wakers = wakers
        self._now_ms = now_ms

    def __repr__(self) -> str:
        return f"Pusher({self._subscription!r})"

    async def push(
        self, http_request: web.Request, encoding: Encoding | None, content_type: str, fault: KinesisFault | None
    ) -> web.StreamResponse:
        """Send events until the subscription is over; *content_type* is that of their payloads."""
        to_payload = (lambda body: body) if encoding is None else encoding.from_json
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        await response.prepare(http_request)
        await response.write(encode_event("initial-response", to_payload(b"{}"), content_type))
        kind = None if fault is None else fault.kind
        with contextlib.suppress(ConnectionError):
            while kind != "silent" or http_request.transport is not None:
                try:
                    event = None if kind == "silent" else self._subscription.next_event(self._now_ms())
                except AwsError as exc:
                    payload = to_payload(msgspec.json.encode({"message": exc.message}))
                    await response.write(encode_exception(exc.code, payload, content_type))
                    break
                if event is not None:
                    frame = encode_event("SubscribeToShardEvent", to_payload(event), content_type)
                    await response.write(frame if kind != "repeat" else frame + frame)
                if self._subscription.is_over or (event is not None and kind == "end"):
                    break
                if event is None:
                    await self._wakers.wait()
            await response.write_eof()
        return response
