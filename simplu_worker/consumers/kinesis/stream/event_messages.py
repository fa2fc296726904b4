"""Cut the bytes of an event stream (`application/vnd.amazon.eventstream`) into messages. Pure.

A message is its length and that of its headers, a checksum of both, the headers, the payload, and a checksum of all.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from typing import Final

import msgspec

MESSAGE_MAX_BYTES: Final = 32 * 1024 * 1024  # as of any other answer; 10 MiB of records are 14 in base64
PRELUDE_BYTES: Final = 12
CHECKSUM_BYTES: Final = 4
_STRING_TYPE: Final = 7
# Of the types of header values without a length: true, false, byte, short, integer, long; timestamp, UUID.
_FIXED_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class MessageError(ValueError):
    """Bytes that are no message, or one that is too long."""


class EventMessage(msgspec.Struct, frozen=True):
    """A message: its headers with text values, and its payload."""

    headers: dict[str, str]
    payload: memoryview


class MessageBuffer:
    """The received bytes of an event stream that no message was made of yet."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"MessageBuffer({self._held_bytes} bytes)"

    def add(self, part: bytes) -> None:
        """Add received bytes."""
        if part:
            self._parts.append(part)
            self._held_bytes += len(part)

    def next_size(self) -> int | None:
        """Return the size of the next message; None before its prelude is there. Raises MessageError."""
        if self._held_bytes < PRELUDE_BYTES:
            return None
        while len(self._parts[0]) < PRELUDE_BYTES:
            first = self._parts.popleft()
            self._parts[0] = first + self._parts[0]
        size_bytes, head_bytes, checksum = struct.unpack_from(">III", self._parts[0])
        if zlib.crc32(self._parts[0][: PRELUDE_BYTES - CHECKSUM_BYTES]) != checksum:
            raise MessageError("an event stream: expected a message, got a prelude with another checksum")
        if not head_bytes + PRELUDE_BYTES + CHECKSUM_BYTES <= size_bytes <= MESSAGE_MAX_BYTES:
            raise MessageError(
                f"an event stream: expected a message of at most {MESSAGE_MAX_BYTES} bytes, got {size_bytes}"
            )
        return int(size_bytes)

    def take(self) -> EventMessage | None:
        """Return the next message; None before all of it is there. Raises MessageError."""
        size_bytes = self.next_size()
        if size_bytes is None or self._held_bytes < size_bytes:
            return None
        parts: list[bytes] = []
        missing_bytes = size_bytes
        while missing_bytes:
            part = self._parts.popleft()
            if len(part) > missing_bytes:
                self._parts.appendleft(part[missing_bytes:])
                part = part[:missing_bytes]
            parts.append(part)
            missing_bytes -= len(part)
        self._held_bytes -= size_bytes
        return _parse(b"".join(parts))


def _parse(message: bytes) -> EventMessage:
    view = memoryview(message)
    if zlib.crc32(view[:-CHECKSUM_BYTES]) != int.from_bytes(view[-CHECKSUM_BYTES:], "big"):
        raise MessageError("an event stream: expected a message, got one with another checksum")
    head_end = PRELUDE_BYTES + int.from_bytes(view[4:8], "big")
    try:
        headers = _parse_headers(message, head_end)
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as exc:
        raise MessageError(f"an event stream: expected headers, got something else ({type(exc).__name__})") from None
    return EventMessage(headers, view[head_end:-CHECKSUM_BYTES])


def _parse_headers(message: bytes, end: int) -> dict[str, str]:
    headers: dict[str, str] = {}
    at = PRELUDE_BYTES
    while at < end:
        name_end = at + 1 + message[at]
        name, kind = message[at + 1 : name_end].decode(), message[name_end]
        if kind in _FIXED_SIZES:
            at = name_end + 1 + _FIXED_SIZES[kind]
            continue
        (size_bytes,) = struct.unpack_from(">H", message, name_end + 1)
        at = name_end + 3 + size_bytes
        if kind == _STRING_TYPE:
            headers[name] = message[name_end + 3 : at].decode()
    if at != end:
        raise IndexError
    return headers
