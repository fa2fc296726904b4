"""Opaque texts that a client hands back: tokens, iterators and receipt handles, with a checksum. Pure."""

from __future__ import annotations

import base64
import binascii
import zlib

CHECKSUM_BYTES = 4


def seal(payload: bytes) -> str:
    """Return *payload* as an opaque text."""
    return base64.b64encode(zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "big") + payload).decode()


def unseal(text: str) -> bytes | None:
    """Return the payload of *text*; none when `seal` did not make it."""
    try:
        sealed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    checksum, payload = sealed[:CHECKSUM_BYTES], sealed[CHECKSUM_BYTES:]
    return payload if zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "big") == checksum else None
