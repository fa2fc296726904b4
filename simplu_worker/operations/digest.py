"""The digest of an operation: a redelivery has the same, another operation with its request id has not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final

DIGEST_VERSION: Final = b"\x01"  # first byte of every digest: a later rule must not turn redeliveries into reuses
HASH_BYTES: Final = 7  # a producer that finds two operations with the same can only lose one of its own


def digest_of(
    kind: str, resource_type: str, resource_id: str | None, data: bytes, filters: bytes, pagination: bytes
) -> bytes:
    """Return the versioned digest of an operation as sent; each part with its length, so that parts cannot merge.

    Without the timestamp: a producer's retry with a new timestamp is the same operation (protocol §6.4).
    """
    return digests_of([kind], [resource_type], [resource_id], [data], [filters], [pagination])[0]


def digests_of(
    kinds: Sequence[str],
    resource_types: Sequence[str],
    resource_ids: Sequence[str | None],
    data: Sequence[bytes],
    filters: Sequence[bytes],
    paginations: Sequence[bytes],
) -> list[bytes]:
    """Return what `digest_of` returns for each operation of a batch, given by its columns."""
    parts = zip(
        map(_head, kinds, resource_types),
        [resource_id.encode() if resource_id else b"" for resource_id in resource_ids],
        data,
        filters,
        paginations,
        strict=True,
    )
    return [
        DIGEST_VERSION
        + sha256(
            b"".join((head, _sizes(len(i), len(d), len(f), len(p)), words, i, b"\0", d, b"\0", f, b"\0", p))
        ).digest()[:HASH_BYTES]
        for (head, words), i, d, f, p in parts
    ]


@lru_cache(4096)
def _head(kind: str, resource_type: str) -> tuple[bytes, bytes]:
    """Return the sizes of the first two parts of a digest, and the parts."""
    parts = kind.encode(), resource_type.encode()
    return b"%d,%d," % (len(parts[0]), len(parts[1])), b"\0%b\0%b\0" % parts


@lru_cache(4096)
def _sizes(*sizes: int) -> bytes:
    return ",".join(map(str, sizes)).encode()
