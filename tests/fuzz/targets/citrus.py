"""Answers of Citrus, from the first byte of their head on: shards at allowed addresses, or an error of the door."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from fuzz.inputs import messages, spliced
from fuzz.memory_network import MemoryTransport, event_loop, run
from fuzz.quiet import PASSWORD, TOKEN, begin, check_faults, check_secrets
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import is_storable
from simplu_worker.shards.postgres.address import ShardAddress, hosts_of
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Capacity, Registration

ALLOWED_HOSTS: Final = ("*.internal",)
TIMEOUT_S: Final = 0.1  # aiohttp waits that long after a chunk that is none
WHOLE: Final = b"W"  # the input is the whole answer; otherwise its body
CALLS: Final = b"lrsc"  # the second byte: locate, register, list_shards, fetch_capacity
SHARD: Final = {
    "shardId": "shard-1",
    "connectionString": f"postgresql://user:{PASSWORD}@a.internal:5432/one?sslmode=require",
    "isActive": True,
    "businessCount": 3,
    "maxBusinesses": 100,
    "canAcceptNewBusiness": True,
    "lastHealthCheck": "2026-01-31T09:00:00Z",
}


class MemoryConnector(aiohttp.BaseConnector):
    """Answers every request with the same bytes, and ends the connection."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(force_close=True, loop=event_loop())
        self._answer = answer

    async def _create_connection(self, *_: Any) -> ResponseHandler:
        protocol: ResponseHandler = self._factory()

        def answer() -> None:
            self._loop.call_soon(self._feed, transport)

        transport = MemoryTransport(protocol, answer)
        protocol.connection_made(transport)
        return protocol

    def _feed(self, transport: MemoryTransport) -> None:
        middle = len(self._answer) // 2
        transport.receive(self._answer[:middle])
        self._loop.call_soon(self._end, transport, self._answer[middle:])

    def _end(self, transport: MemoryTransport, rest: bytes) -> None:
        transport.receive(rest)
        transport.receive_end()


def answer_of(data: bytes) -> bytes:
    if data[:1] == WHOLE:
        return data[2:]
    body = data[2:]
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def check(data: bytes) -> None:
    begin(data)
    run(call(data))
    check_faults()


async def call(data: bytes) -> None:
    """Make a call; nothing but the errors of the door may be raised."""
    headers = {"Accept": "application/json", "Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(
        base_url="http://citrus.internal/",
        connector=MemoryConnector(answer_of(data)),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        client = CitrusClient(session, place="citrus.internal:80", attempts=1, allowed_hosts=ALLOWED_HOSTS)
        try:
            check_addresses(
                await CALLED.get(data[1:2], CitrusClient.list_shards)(client, *ARGUMENTS.get(data[1:2], ()))
            )
        except (RetryableError, PermanentError) as exc:
            check_secrets(str(exc))


CALLED: Final[dict[bytes, Any]] = {
    b"l": CitrusClient.locate,
    b"r": CitrusClient.register,
    b"c": CitrusClient.fetch_capacity,
}
ARGUMENTS: Final[dict[bytes, tuple[str, ...]]] = {
    b"l": ("clinic-main",),
    b"r": ("clinic", "main", "dental"),
    b"c": ("shard-1",),
}


def check_addresses(found: object) -> None:
    addresses: Iterable[object] = found if isinstance(found, list) else [found]
    for one in addresses:
        address = one.address if isinstance(one, Registration) else one
        assert address is None or isinstance(address, ShardAddress | Capacity)
        if isinstance(address, ShardAddress):
            check_secrets(f"{address} {address.place} {address.refusal}")
            assert 1 <= len(address.shard_id) <= 128
            assert "\0" not in address.shard_id
            if address.refusal is None:
                assert is_storable(address.connection_string)
                assert all(host.endswith(".internal") for host in hosts_of(address.connection_string))


def whole(status: bytes, headers: bytes, body: bytes, which: bytes = b"l") -> bytes:
    return WHOLE + which + b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n" + body


ONE: Final = json.dumps(SHARD).encode()
MANY: Final = b"[" + ONE + b"," + ONE.replace(b"shard-1", b"shard-2") + b"]"
JSON_HEADER: Final = b"Content-Type: application/json\r\n"
SEEDS: Final = (
    *(b"B" + bytes([letter]) + (MANY if letter in b"so" else ONE) for letter in CALLS),
    whole(b"200 OK", JSON_HEADER + b"Content-Length: %d\r\n" % len(ONE), ONE),
    whole(b"404 Not Found", JSON_HEADER, b"{}"),
    whole(b"409 Conflict", b"Content-Length: 0\r\n", b"", b"r"),
    whole(b"503 Busy", b"Retry-After: 7\r\n", b""),
    whole(b"200 OK", b"Transfer-Encoding: chunked\r\n", b"5\r\n[1,2]\r\n0\r\n\r\n", b"s"),
    whole(b"200 OK", b"Content-Encoding: gzip\r\nContent-Length: 3\r\n", b"\x1f\x8b\x08", b"s"),
    whole(b"302 Found", b"Location: http://elsewhere/\r\n", b""),
)
WORDS: Final = (
    *(json.dumps(name).encode() for name in SHARD),
    *(b"\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 100 Continue\r\n\r\n", b"Content-Length: "),
    b"Transfer-Encoding: chunked",
    *(b"Content-Encoding: deflate\r\n", b"Content-Encoding: br\r\n", b"Content-Encoding: zstd\r\n", b"Retry-After: 9"),
    *(b"Content-Type: x;charset=y\r\n", b"Set-Cookie: a=b\r\n", b"Location: //[\r\n", b"0\r\n\r\n"),
    b"ffffffffffffffff\r\n",
    *(b"postgresql://", b".internal", b"@", b"%40", b"%00", b",", b"[::1]", b"?options=", b"#", b"/"),
)


def as_list(texts: list[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"


PLACES: Final = st.sampled_from(
    (
        *("a.internal", "a.internal,b.internal:1", "elsewhere", "a.internal@elsewhere", "a.internal%2celsewhere"),
        *("[::1]", "", "a.internal:0x10", "a.internal:٣", "%61.internal", "a.internal\\@b", "A.INTERNAL"),
        *("a.internal/..", "\u212a.internal", "[a.internal]", "[elsewhere]:5,a.internal", "elsewhere%00.internal"),
    )
)
TAILS: Final = st.sampled_from(
    ["/one", "", "/", "/one?host=elsewhere", "/one?sslmode=none", "/one?user=x&user=y", "/%00", "/a?b", "/one#?host=x"]
)
STRINGS: Final = st.tuples(st.sampled_from(["postgresql://", "postgres://", "POSTGRES://", "x://"]), PLACES, TAILS)
SHARDS: Final = STRINGS.flatmap(
    lambda parts: messages(SHARD | {"connectionString": f"{parts[0]}user:{PASSWORD}@{parts[1]}{parts[2]}"})
)
BODIES: Final = SHARDS | st.lists(SHARDS, max_size=3).map(as_list)
HEADERS: Final = st.lists(st.sampled_from([word for word in WORDS if b": " in word]), max_size=3).map(b"\r\n".join)
STATUSES: Final = st.sampled_from(
    [b"200 OK", b"201", b"204 No", b"304 x", b"404 x", b"409 x", b"429 x", b"500 x", b"999 x", b""]
)
LETTERS: Final = st.sampled_from(CALLS).map(lambda letter: bytes([letter]))
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=st.tuples(LETTERS, BODIES).map(lambda drawn: b"B" + drawn[0] + drawn[1])
    | st.tuples(STATUSES, HEADERS, BODIES, LETTERS).map(lambda drawn: whole(*drawn))
    | spliced(st.sampled_from(SEEDS), WORDS),
    steps_per_byte=8_000,
    bytes_per_byte=2_000,
)
