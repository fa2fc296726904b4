"""A line to a Postgres server on which an error that a function raises looks as if the server itself had it.

So a server refuses whatever a test wants with any SQLSTATE, also with those that it cannot be made to have: no
transaction ids are left, a disk is broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct

from support.postgres.shard_line import ShardLine

REMOVED = frozenset(b"WFLR")  # fields of an error: its context, and the place in the server's source that reported it


class PlainErrorsLine(ShardLine):
    """Removes from each error what shows that a function has raised it."""

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_asking: bool = False
    ) -> None:
        if is_asking:
            await super()._pass(source, target, is_asking=True)
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if (first := await source.readexactly(1)) == b"N":  # no TLS
                target.write(first)
                first = await source.readexactly(1)
            while True:
                (length,) = struct.unpack("!i", await source.readexactly(4))
                body = await source.readexactly(length - 4)
                target.write(_message(first, _plain(body) if first == b"E" else body))
                first = await source.readexactly(1)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _plain(body: bytes) -> bytes:
    fields = [field for field in body.split(b"\0") if field and field[0] not in REMOVED]
    return b"".join(field + b"\0" for field in fields) + b"\0"
