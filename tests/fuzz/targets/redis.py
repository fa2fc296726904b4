"""Replies of Redis: the results of its door, or the door's own error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

from fuzz.inputs import spliced
from fuzz.memory_network import run
from fuzz.quiet import check_faults, check_secrets, note_fault
from fuzz.target import Target
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from simplu_worker.cache.cache import Cache, CacheAdmin
from simplu_worker.cache.redis_commands import RedisCommands
from simplu_worker.errors import RetryableError

URL: Final = "redis://cache:6379/0"
NEXT: Final = b"\xff\xfe"  # between the replies to two commands
KEYS_MAX: Final = 100
CALL_TIMEOUT_S: Final = 0.05  # for replies that are not complete


class _Writer:
    """Answers commands: those that set up a connection with OK, every other one with the next part of the input."""

    def __init__(self, reader: asyncio.StreamReader, replies: Iterator[bytes]) -> None:
        self._reader = reader
        self._replies = replies

    def write(self, data: bytes) -> None:
        if set_up := data.count(b"CLIENT"):
            self._reader.feed_data(b"+OK\r\n" * set_up)
        elif (reply := next(self._replies, None)) is not None:
            self._reader.feed_data(reply)
        else:
            self._reader.feed_eof()

    def writelines(self, lines: Iterable[bytes]) -> None:
        self.write(b"".join(lines))

    async def drain(self) -> None: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


class MemoryConnection(Connection):
    """A connection whose replies are those of an input, one part for each command."""

    replies: Iterator[bytes] = iter(())

    async def _connect(self) -> None:
        self._reader = asyncio.StreamReader(limit=2**16)
        self._writer = _Writer(self._reader, self.replies)  # type: ignore[assignment]  # has all that is used


def check(data: bytes) -> None:
    MemoryConnection.replies = iter(data[1:].split(NEXT))
    run(call(data[:1]))
    check_faults()


async def call(which: bytes) -> None:
    """Make one call; nothing but the error of the door may be raised."""
    commands = _commands()
    try:
        await CALLED.get(which, CALLED[b"i"])(commands)
    except RetryableError as exc:
        check_secrets(str(exc))
        is_named = str(exc).startswith("Redis at cache:6379/0: ")
        if not is_named or len(str(exc)) > 1_000:
            note_fault(f"expected the address and a short cause, got {str(exc)[:500]}")
    finally:
        await commands._client.connection_pool.disconnect()


@cache
def _commands() -> RedisCommands:
    commands = RedisCommands(URL, on_connect=None, call_timeout_s=CALL_TIMEOUT_S)
    commands._client.connection_pool.connection_class = MemoryConnection
    return commands


async def _send(commands: RedisCommands) -> None:
    reply = await commands.send_invalidations(move_epoch=True, entries=["e1", "e2"], versions=["v1", "v2"])
    assert isinstance(reply.epoch, int)
    assert set(reply.refused) <= {"e1", "e2", "v1", "v2"}


async def _scan(commands: RedisCommands) -> None:
    cursor, keys = await commands.scan(0, "simplu:")
    assert isinstance(cursor, int)
    assert all(isinstance(key, str) for key in keys)


async def _read_stats(commands: RedisCommands) -> None:
    stats = await CacheAdmin(_cache(), commands).read_stats()
    assert {"server", "keys", "error"} <= stats.keys()


async def _count_reads(commands: RedisCommands) -> None:
    await CacheAdmin(_cache(), commands).count_reads()


async def _list_keys(commands: RedisCommands) -> None:
    keys, _ = await CacheAdmin(_cache(), commands).list_keys(KEYS_MAX)
    assert len(keys) <= KEYS_MAX


async def _clear(commands: RedisCommands) -> None:
    cleared = await CacheAdmin(_cache(), commands).clear()
    assert isinstance(cleared["deleted"], int)


@cache
def _cache() -> Cache:
    return Cache(URL)


CALLED: Final[dict[bytes, Any]] = {
    b"p": RedisCommands.ping,
    b"i": _send,
    b"e": RedisCommands.move_epoch,
    b"s": _scan,
    b"n": RedisCommands.read_info,
    b"t": _read_stats,
    b"r": _count_reads,
    b"k": _list_keys,
    b"c": _clear,
}
INFO: Final = b"# Server\r\nredis_version:7.2.4\r\nkeyspace_hits:5\r\nkeyspace_misses:1\r\ndb0:keys=1,expires=0\r\n"
SCANNED: Final = b"*2\r\n$1\r\n0\r\n*2\r\n$17\r\nsimplu:resource:a\r\n$16\r\nsimplu:version:a\r\n"
SEEDS: Final = (
    b"p+PONG\r\n",
    b"i:1\r\n:2\r\n:3\r\n:4\r\n",
    b"i:1\r\n-WRONGTYPE no\r\n-ERR value is not an integer\r\n:4\r\n",
    b"e:7\r\n",
    b"s" + SCANNED,
    b"n$%d\r\n%b\r\n\xff\xfe$1\r\n7\r\n" % (len(INFO), INFO),
    b"t$%d\r\n%b\r\n\xff\xfe$1\r\n7\r\n\xff\xfe%b" % (len(INFO), INFO, SCANNED),
    b"k" + SCANNED.replace(b"$1\r\n0", b"$1\r\n5") + NEXT + SCANNED,
    b"c:8\r\n" + NEXT + SCANNED + NEXT + b":1\r\n",
    b"e-READONLY You can't write\r\n",
    b"e-MOVED 1 10.0.0.1:6379\r\n",
)
WORDS: Final = (
    *(
        b"\r\n",
        b"+",
        b"-",
        b":",
        b"$",
        b"*",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*1\r\n",
        b":9999999999999999999999\r\n",
        b"+OK\r\n",
    ),
    *(
        b"-ERR ",
        b"-WRONGTYPE ",
        b"-LOADING ",
        b"-NOAUTH ",
        b"-ASK 1 [\r\n",
        b"-MOVED x\r\n",
        b"-CLUSTERDOWN \r\n",
        b"%1\r\n",
    ),
    *(
        b"keyspace_hits:",
        b"keyspace_misses:",
        b"=",
        b",",
        b"\r\n# ",
        b"simplu:",
        b"$99999999999\r\n",
        b"*2147483647\r\n",
    ),
)
SCALARS: Final = st.sampled_from([*WORDS, b":1\r\n", b"$1\r\n0\r\n", b"+QUEUED\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n"])
REPLIES: Final = st.recursive(
    SCALARS | st.binary(max_size=12).map(lambda text: b"$%d\r\n%b\r\n" % (len(text), text)),
    lambda inner: st.lists(inner, max_size=4).map(lambda items: b"*%d\r\n%b" % (len(items), b"".join(items))),
    max_leaves=8,
)
LINES: Final = st.tuples(
    st.sampled_from([b"keyspace_hits", b"keyspace_misses", b"maxmemory", b"db0", b"x", b""]),
    st.sampled_from([b":", b"=", b""]),
    st.sampled_from([b"5", b"-1", b"1.5", b"inf", b"text", b"a=1,b=x", b"a=", b"\xff", b"1,2", b"nan"]),
).map(b"".join)
INFOS: Final = (
    st.lists(LINES, max_size=5)
    .map(b"\r\n".join)
    .map(lambda text: b"$%d\r\n%b\r\n\xff\xfe$1\r\n7\r\n\xff\xfe" % (len(text), text))
)
LETTERS: Final = st.sampled_from(list(CALLED))
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=st.tuples(LETTERS, st.lists(REPLIES | st.just(NEXT), max_size=6).map(b"".join)).map(b"".join)
    | INFOS.map(lambda text: b"n" + text)
    | INFOS.map(lambda text: b"t" + text + SCANNED)
    | INFOS.map(lambda text: b"r" + text)
    | spliced(st.sampled_from(SEEDS), WORDS),
    steps_per_byte=8_000,
    bytes_per_byte=2_000,
)
