"""Encode aggregates of the Kinesis Producer Library by hand, valid ones and invalid ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Packed: TypeAlias = tuple[str, str | None, bytes]  # partition key, explicit hash key, data

MAGIC = b"\xf3\x89\x9a\xc2"


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def packed_record(key: int | None, hash_key: int | None, data: bytes | None, more: bytes = b"") -> bytes:
    """Encode field 3 of an aggregate, a Record; members that are `None` are left out, and *more* follows."""
    fields = [
        b"" if key is None else number_field(1, key),
        b"" if hash_key is None else number_field(2, hash_key),
        b"" if data is None else bytes_field(3, data),
        more,
    ]
    return bytes_field(3, b"".join(fields))


def sealed(message: bytes) -> bytes:
    return MAGIC + message + hashlib.md5(message).digest()


def aggregate(records: Sequence[Packed]) -> bytes:
    """Pack *records* as the KPL does: each key once, the tables first."""
    keys = _distinct(key for key, _, _ in records)
    hash_keys = _distinct(hash_key for _, hash_key, _ in records if hash_key is not None)
    fields = [
        *(bytes_field(1, key.encode()) for key in keys),
        *(bytes_field(2, hash_key.encode()) for hash_key in hash_keys),
        *(packed_record(keys[k], None if h is None else hash_keys[h], data) for k, h, data in records),
    ]
    return sealed(b"".join(fields))


def _distinct(keys: Iterable[str]) -> dict[str, int]:
    return {key: index for index, key in enumerate(dict.fromkeys(keys))}
