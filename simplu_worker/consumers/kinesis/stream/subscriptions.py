"""The door to SubscribeToShard: a stream shard's records by push, over one connection for each stream shard.

A message of an event stream is its length and that of its headers, a checksum of both, the headers, the payload, and a
checksum of all.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final, Protocol

import msgspec

from simplu_worker.aws.clients import AWS_ERRORS, Client, error_code, translate
from simplu_worker.consumers.kinesis.stream.client import (
    Reply,
    Stream,
    starting_position,
)
from simplu_worker.consumers.kinesis.stream.positions import Start
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.waits import wait_any

PRELUDE_BYTES: Final = 12
CHECKSUM_BYTES: Final = 4


class EventMessage(msgspec.Struct, frozen=True):
    """A message: its headers with text values, and its payload."""

    headers: dict[str, str]
    payload: memoryview


class MessageBuffer:
    """The received bytes of which no message was made yet."""

    def __init__(self) -> None:
        self._received = bytearray()

    def add(self, part: bytes) -> None:
        """Add received bytes."""
        self._received += part

    def next_size(self) -> int | None:
        """Return the size of the next message; None before its prelude."""
        return int.from_bytes(self._received[:4]) if len(self._received) >= PRELUDE_BYTES else None

    def take(self) -> EventMessage | None:
        """Return the next message; None before all of it is there."""
        size_bytes = self.next_size()
        if size_bytes is None or len(self._received) < size_bytes:
            return None
        message, self._received = self._received[:size_bytes], self._received[size_bytes:]
        return _parse(message)


def _parse(message: bytearray) -> EventMessage:
    head_end = PRELUDE_BYTES + int.from_bytes(message[4:8])
    headers: dict[str, str] = {}
    at = PRELUDE_BYTES
    while at < head_end:  # each a length, a name, the type (AWS sends strings), a length, a text
        name_end = at + 1 + message[at]
        (size_bytes,) = struct.unpack_from(">H", message, name_end + 1)
        headers[message[at + 1 : name_end].decode()] = message[name_end + 3 : name_end + 3 + size_bytes].decode()
        at = name_end + 3 + size_bytes
    return EventMessage(headers, memoryview(message)[head_end:-CHECKSUM_BYTES])


OPEN_TIMEOUT_S = 5.0  # until the answer begins; AWS answers within a few tenths
IN_USE: Final = "ResourceInUseException"
NOT_FOUND: Final = "ResourceNotFoundException"
SHOWN_BYTES: Final = 300  # of the payload of an exception: a message


class Body(Protocol):
    """The unread body of an answer."""

    async def read_any(self) -> bytes:
        """Return the bytes that are there; none at the end. Raises AWS_ERRORS."""

    def close(self) -> None:
        """Close the connection."""


class Subscriptions:
    """Subscribes to stream shards as the consumer *name*, registered when it is first needed."""

    def __init__(self, client: Client, stream: Stream, name: str) -> None:
        """*stream* has a client of its own, whose answers end."""
        self._client = client
        self._stream = stream
        self._name = name
        self._arn: str | None = None
        self._finding = asyncio.Lock()

    async def open(self, stream_shard_id: str, start: Start) -> Subscription:
        """Subscribe to a stream shard."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await self._open(await self._find_arn(), stream_shard_id, starting_position(start))
        except TimeoutError:
            raise RetryableError(f"SubscribeToShard: no answer in {OPEN_TIMEOUT_S:.0f} s") from None

    async def _open(self, arn: str, stream_shard_id: str, position: dict[str, Any]) -> Subscription:
        try:
            reply = await self._client.subscribe_to_shard(
                ConsumerARN=arn, ShardId=stream_shard_id, StartingPosition=position
            )
        except AWS_ERRORS as exc:
            if error_code(exc) == NOT_FOUND:
                self._arn = None  # the consumer may have been removed: it is registered again
            if error_code(exc) == IN_USE:
                raise RetryableError(str(exc)) from exc  # another call has the subscription
            raise translate(exc) from exc
        return Subscription(reply["EventStream"])

    async def _find_arn(self) -> str:
        async with self._finding:
            if self._arn is None:
                self._arn = await self._stream.ensure_consumer(self._name)
            return self._arn


class Subscription:
    """One subscription. Nothing is received but while a caller waits in `receive`."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._buffer = MessageBuffer()
        self._receiving: asyncio.Task[bytes] | None = None
        self._has_received = asyncio.Event()

    def next_size(self) -> int | None:
        """Return the size of the next message, if known."""
        return self._buffer.next_size()

    async def receive(self, stopping: asyncio.Event, *, within_s: float) -> bool:
        """Wait for bytes, *stopping*, or *within_s*; return whether bytes came."""
        if self._receiving is None:
            self._has_received.clear()
            self._receiving = asyncio.create_task(self._body.read_any())
            self._receiving.add_done_callback(self._note_received)
        await wait_any(self._has_received, stopping, within_s=within_s)
        if not self._receiving.done():
            return False
        received, self._receiving = self._receiving, None
        try:
            part = received.result()
        except AWS_ERRORS as exc:
            raise translate(exc) from exc
        if not part:
            raise RetryableError("the subscription has ended")  # after its five minutes, or before
        self._buffer.add(part)
        return True

    def _note_received(self, received: asyncio.Task[bytes]) -> None:
        if not received.cancelled():
            received.exception()  # is retrieved here, where the subscription is closed before its next read
        self._has_received.set()

    def take(self) -> Reply | None:
        """Return the next event as a reply of GetRecords; None before all of it is there. Raises RetryableError."""
        try:
            while (message := self._buffer.take()) is not None:
                if (reply := decode_event(message)) is not None:
                    return reply
        except (msgspec.DecodeError, struct.error, LookupError, RecursionError, TypeError, ValueError) as exc:
            raise RetryableError("SubscribeToShard: expected a message of an event stream, got other bytes") from exc
        return None

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        self._body.close()


class _Event(Reply, frozen=True):
    next_iterator: str | None = msgspec.field(default=None, name="ContinuationSequenceNumber")


_event_decoder = msgspec.json.Decoder(_Event, strict=False)


def decode_event(message: EventMessage) -> Reply | None:
    """Return the reply of an event with records; None of any other. Raises its exception."""
    headers = message.headers
    if headers.get(":message-type") != "event":
        raise _error_of(message)
    if headers.get(":event-type") != "SubscribeToShardEvent":
        return None  # such as initial-response
    return _event_decoder.decode(message.payload)


def _error_of(message: EventMessage) -> Exception:
    code = message.headers.get(":exception-type") or message.headers.get(":error-code") or "an error without a code"
    text = message.headers.get(":error-message") or bytes(message.payload[:SHOWN_BYTES]).decode(errors="replace")
    kind = PermanentError if code == NOT_FOUND else RetryableError
    return kind(f"SubscribeToShard: {code}: {text}")
