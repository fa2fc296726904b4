"""Hooks of a client that look at its replies before botocore parses them.

A reply that is no JSON of AWS, as a proxy may send, is an error: botocore takes it for a reply without members. The
records of a stream are decoded here, in place of botocore, to which a reply without members is left: its parser takes
longer for them than all the rest of the worker. So are the rows of the tables that an idle worker reads all the time.
An event stream is left unread: its reader decides when to receive how much.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias

import msgspec
from botocore.parsers import ResponseParserError

Decode: TypeAlias = Callable[[bytes], dict[str, Any]]

# The operations whose replies are decoded here, each with its decoder, which raises msgspec.DecodeError; the doors to
# Kinesis and to the lease table have them.
DECODERS: dict[str, Decode] = {}
NO_MEMBERS: Final = b"{}"
# What botocore raises where JSON is not that of the service's model.
MISFITS: Final = (ValueError, TypeError, AttributeError, KeyError, RecursionError)

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def watch_replies(client: Any) -> None:
    """Register the hooks of *client*, of a service with JSON."""
    client.meta.events.register("before-parse", _before_parse)
    client.meta.events.register("after-call-error", _after_call_error)


def _before_parse(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Check a reply; move what botocore must not parse from the first dict into the other."""
    name, shape, body = operation_model.name, operation_model.output_shape, response_dict["body"]
    if response_dict["status_code"] >= 300 or shape is None:
        return
    if operation_model.has_event_stream_output:
        customized_response_dict[shape.event_stream_name] = body
        response_dict["body"] = _BeginningOfEvents()
        return
    try:
        if (decode := DECODERS.get(name)) is None:
            _members_decoder.decode(body)
        else:
            customized_response_dict |= decode(body)
            response_dict["body"] = NO_MEMBERS
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ResponseParserError(f"{name}: expected JSON of AWS, got something else ({exc})") from None


def _after_call_error(exception: Exception, event_name: str, **_: object) -> None:
    if isinstance(exception, MISFITS):
        name = event_name.rpartition(".")[2]
        raise ResponseParserError(
            f"{name}: expected JSON of AWS, got something else ({type(exception).__name__})"
        ) from None


class _BeginningOfEvents:
    """The first message of an event stream and nothing else, as the body that botocore reads."""

    @property
    def content(self) -> _BeginningOfEvents:
        return self

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        yield _INITIAL_RESPONSE, True


def _event_message(headers: dict[str, str]) -> bytes:
    """Return a message of an event stream without payload: Amazon's format vnd.amazon.eventstream."""
    encoded = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(text)) + text.encode()  # 7: a text
        for name, text in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(encoded), len(encoded))
    start = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded
    return start + struct.pack("!I", zlib.crc32(start))


_INITIAL_RESPONSE: Final = _event_message({":message-type": "event", ":event-type": "initial-response"})
