"""Replies of a server that is not Redis: errors name its address and the cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from simplu_worker.cache.redis_commands import CacheUnavailableError, RedisCommands
from simplu_worker.network_errors import NO_SERVER


@asynccontextmanager
async def lying_redis(reply: bytes) -> AsyncIterator[int]:
    """Answer OK to the set-up of a connection and *reply* to everything else; yield the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if b"CLIENT" in data:
                    writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
                    continue
                writer.write(reply)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "reply",
    [
        b"$%d\r\n" % (2**62),
        b"*%d\r\n$1\r\nx\r\n" % (2**31),
        b"x" * 1024 * 1024,
        b"$many\r\n",
        b"$-7\r\n",
        b"*1\r\n" * 100_000,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["long", "many", "line without end", "no length", "negative length", "nested", "not Redis"],
)
async def test_unreadable_reply_is_an_error_in_time(reply: bytes) -> None:
    async with lying_redis(reply) as port:
        commands = RedisCommands(f"redis://127.0.0.1:{port}/0", on_connect=None, call_timeout_s=0.2)
        with pytest.raises(CacheUnavailableError, match=f"^Redis at 127.0.0.1:{port}/0: "):
            await commands.scan(0, "simplu:")
        await commands.close()


@pytest.mark.parametrize(
    "reply", [b"+QUEUED\r\n", b"$-1\r\n", b"*1\r\n:1\r\n", b"$5\r\nseven\r\n"], ids=["text", "nil", "list", "bytes"]
)
async def test_epoch_is_a_number(reply: bytes) -> None:
    async with lying_redis(reply) as port:
        commands = RedisCommands(f"redis://127.0.0.1:{port}/0", on_connect=None, call_timeout_s=5)
        with pytest.raises(CacheUnavailableError, match=f"^Redis at 127.0.0.1:{port}/0: expected a reply of Redis"):
            await commands.move_epoch()
        await commands.close()


@pytest.mark.parametrize(
    "keys", [b":2\r\n", b"-ERR no\r\n", b"$1\r\nk\r\n", b"$-1\r\n"], ids=["number", "error", "text", "nil"]
)
async def test_keys_are_a_list(keys: bytes) -> None:
    async with lying_redis(b"*2\r\n$1\r\n0\r\n" + keys) as port:
        commands = RedisCommands(f"redis://127.0.0.1:{port}/0", on_connect=None, call_timeout_s=5)
        with pytest.raises(CacheUnavailableError, match=f"^Redis at 127.0.0.1:{port}/0: expected a reply of Redis"):
            await commands.scan(0, "simplu:")
        await commands.close()


@pytest.mark.parametrize("reply", [b"-ERR " + b"x" * 60_000 + b"\r\n", b"]" * 60_000 + b"\r\n"], ids=["error", "none"])
async def test_error_shows_the_beginning_of_a_reply(reply: bytes) -> None:
    async with lying_redis(reply) as port:
        commands = RedisCommands(f"redis://127.0.0.1:{port}/0", on_connect=None, call_timeout_s=5)
        with pytest.raises(CacheUnavailableError, match=f"^Redis at 127.0.0.1:{port}/0: ") as caught:
            await commands.ping()
        answer = (
            await commands.send_invalidations(move_epoch=False, entries=["a"], versions=[]) if b"ERR" in reply else None
        )
        await commands.close()
    assert len(str(caught.value)) < 500
    assert answer is None or len(answer.error or "") < 500


async def test_error_names_address_and_cause() -> None:
    commands = RedisCommands("redis://:pass-word@127.0.0.1:1/3", on_connect=None, call_timeout_s=1)
    with pytest.raises(CacheUnavailableError, match=f"^Redis at 127.0.0.1:1/3: {NO_SERVER}$") as caught:
        await commands.ping()
    assert "pass-word" not in str(caught.value)
    await commands.close()
