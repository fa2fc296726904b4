"""Requests and answers in CBOR (RFC 8949), in which the AWS SDK for Java speaks to Kinesis, from and to JSON. Pure.

The SDK writes blobs as byte strings, where JSON has base64, and times as milliseconds with tag 1, where it has seconds.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from simplu_local.kinesis.errors import KinesisError

CONTENT_TYPE: Final = "application/x-amz-cbor-1.1"
MAX_DEPTH: Final = 32  # no request of the API has a fifth of that
BLOBS: Final = frozenset({"Data"})
TIMES_END_WITH: Final = "Timestamp"

# The head of an item is three bits of type and five of its argument, or of the size of the argument.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_TIME_TAG: Final = 1
_CONSTANTS: Final = {20: False, 21: True, 22: None, 23: None}
_FLOATS: Final = {25: ">e", 26: ">f", 27: ">d"}
_ARGUMENT_SIZES: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def json_of(body: bytes) -> bytes:
    """Return a request as JSON. Raises KinesisError when *body* is not one CBOR item, or too deep."""
    reader = _Reader(body)
    try:
        value = reader.read(MAX_DEPTH)
    except (IndexError, ValueError, struct.error) as exc:
        raise KinesisError("SerializationException", f"expected CBOR: {exc}") from exc
    if not reader.is_at_end:
        raise KinesisError("SerializationException", "expected one CBOR item, got more bytes behind it")
    return msgspec.json.encode(value)


def cbor_of(body: bytes) -> bytes:
    """Return an answer in JSON, or none, as CBOR."""
    return b"".join(_items(msgspec.json.decode(body), "")) if body else b""


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._body)

    def read(self, depth: int) -> Any:
        """Return the next item as JSON has it."""
        if depth == 0:
            raise ValueError(f"an item is deeper than {MAX_DEPTH}")
        kind, short = divmod(self._take(1)[0], 32)
        match kind:
            case 0:
                return self._argument(short)
            case 1:
                return -1 - self._argument(short)
            case 2:
                return base64.b64encode(self._content(kind, short)).decode("ascii")
            case 3:
                return self._content(kind, short).decode()
            case 4:
                return [self.read(depth - 1) for _ in self._members(short)]
            case 5:
                return {str(self.read(depth - 1)): self.read(depth - 1) for _ in self._members(short)}
            case 6:
                is_time = self._argument(short) == _TIME_TAG
                value = self.read(depth - 1)
                return value / 1000 if is_time else value
        return self._other(short)

    def _other(self, short: int) -> Any:
        if short in _FLOATS:
            return struct.unpack(_FLOATS[short], self._take(_ARGUMENT_SIZES[short]))[0]
        if short in _CONSTANTS:
            return _CONSTANTS[short]
        raise ValueError(f"an item of the simple type {short}")

    def _argument(self, short: int) -> int:
        if short < min(_ARGUMENT_SIZES):
            return short
        if short not in _ARGUMENT_SIZES:
            raise ValueError(f"an item of the size {short}")
        return int.from_bytes(self._take(_ARGUMENT_SIZES[short]), "big")

    def _content(self, kind: int, short: int) -> bytes:
        if short != _INDEFINITE:
            return self._take(self._argument(short))
        parts = []
        for _ in self._members(short):
            part_kind, part_short = divmod(self._take(1)[0], 32)
            if part_kind != kind or part_short == _INDEFINITE:
                raise ValueError("a string with parts of another type")
            parts.append(self._take(self._argument(part_short)))
        return b"".join(parts)

    def _members(self, short: int) -> Iterator[None]:
        """Yield once for each member of an array or a map, or part of a string, of which the count may be open."""
        if short != _INDEFINITE:
            for _ in range(self._argument(short)):
                yield
            return
        while self._body[self._at] != _BREAK:
            yield
        self._at += 1

    def _take(self, count: int) -> bytes:
        taken = self._body[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError(f"{count} bytes at {self._at}, there are {len(taken)}")
        self._at += count
        return taken


def _items(value: Any, name: str) -> Iterator[bytes]:
    """Yield the parts of *value*, which is the member *name* of an answer."""
    match value:
        case list():
            yield _head(_ARRAY, len(value))
            for member in value:
                yield from _items(member, name)
        case dict():
            yield _head(_MAP, len(value))
            for key, member in value.items():
                yield _string(_TEXT, key.encode())
                yield from _items(member, key)
        case str():
            yield _string(_BYTES, base64.b64decode(value)) if name in BLOBS else _string(_TEXT, value.encode())
        case int() | float() if name.endswith(TIMES_END_WITH):
            yield _head(_TAG, _TIME_TAG) + _integer(round(value * 1000))
        case _:
            yield _scalar(value)


def _scalar(value: float | None) -> bytes:
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return _integer(value)
    return b"\xfb" + struct.pack(">d", value)


def _string(kind: int, content: bytes) -> bytes:
    return _head(kind, len(content)) + content


def _integer(value: int) -> bytes:
    return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)


def _head(kind: int, argument: int) -> bytes:
    if argument < min(_ARGUMENT_SIZES):
        return bytes([kind << 5 | argument])
    short, size = next((short, size) for short, size in _ARGUMENT_SIZES.items() if argument < 256**size)
    return bytes([kind << 5 | short]) + argument.to_bytes(size, "big")
