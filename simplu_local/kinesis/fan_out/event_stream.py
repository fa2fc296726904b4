"""Messages of an event stream (`application/vnd.amazon.eventstream`), as SubscribeToShard answers with. Pure.

A message is its length and that of its headers, a checksum of both, the headers, the payload, and a checksum of all.
"""

from __future__ import annotations

import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
_STRING = 7  # the type of a header's value


def encode_message(headers: dict[str, str], payload: bytes) -> bytes:
    """Return a message with these headers."""
    head = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", _STRING, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", len(head) + len(payload) + 16, len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def encode_event(name: str, payload: bytes, content_type: str) -> bytes:
    """Return an event."""
    return encode_message({":message-type": "event", ":event-type": name, ":content-type": content_type}, payload)


def encode_exception(name: str, payload: bytes, content_type: str) -> bytes:
    """Return an exception, which ends a stream."""
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": content_type}
    return encode_message(headers, payload)
