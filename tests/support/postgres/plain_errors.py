"""A line to a Postgres server on which an error that a function raises looks as if the server itself had it.

So a server refuses whatever a test wants with any SQLSTATE, also with those that it cannot be made to have: no
transaction ids are left, a disk is broken.
"""

from __future__ import annotations

import asyncio
import struct

from support.postgres.trouble import Line

from simplu_worker.shards.postgres.address import ShardAddress

REMOVED = frozenset(b"WFLR")  # fields of an error: its context, and the place in the server's source that reported it


class PlainErrorsLine(Line):
    """Removes from each error what shows that a function has raised it.

    `refused` are codes with which simple queries are answered, by the beginnings of their texts.
    """

    def __init__(self, address: ShardAddress) -> None:
        super().__init__(address)
        self.direct_address = address
        self.refused: dict[bytes, str] = {}

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            if (first := await source.readexactly(1)) == b"N":  # no TLS
                target.write(first)
                first = await source.readexactly(1)
            while True:
                (length,) = struct.unpack("!i", await source.readexactly(4))
                body = await source.readexactly(length - 4)
                target.write(_message(first, _plain(body) if first == b"E" else body))
                first = await source.readexactly(1)
        except (OSError, asyncio.IncompleteReadError):
            return

    async def _pass_queries(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while part := await _read(source):
            codes = [code for text, code in self.refused.items() if part[:1] == b"Q" and part[5:].startswith(text)]
            if codes:
                text = f"DO $$ BEGIN RAISE 'refused' USING ERRCODE = '{codes[0]}'; END $$"
                part = _message(b"Q", text.encode() + b"\0")
            target.write(part)


async def _read(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(65536)
    except OSError:  # cut
        return b""


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _plain(body: bytes) -> bytes:
    fields = [field for field in body.split(b"\0") if field and field[0] not in REMOVED]
    return b"".join(field + b"\0" for field in fields) + b"\0"
