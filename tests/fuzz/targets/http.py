"""Requests to the HTTP server, byte by byte: an answer of its own or a closed connection, and nothing of the token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Self, cast

from aiohttp import web
from fuzz.inputs import spliced
from fuzz.memory_network import MemoryTransport, call_at_close, run, turn_until
from fuzz.quiet import TOKEN, check_faults, check_secrets, note_fault
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.operations.operation import is_storable
from simplu_worker.shards.listing import LIMIT_MAX, ListRequest, SearchPosition, decode_cursor
from simplu_worker.status.guard import Guard
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import CONNECTIONS_MAX, accept_connection, make_application, make_runner
from simplu_worker.status.views import Unreadiness
from simplu_worker.status.words import UnreadyReason

STATUSES: Final = frozenset({100, 200, 400, 401, 403, 404, 405, 413, 414, 417, 429, 431, 503})
STATUS_LINE: Final = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
IDLE_TURNS: Final = 30  # of the event loop without an answer: no view waits for anything


class Replica:
    """A replica whose views answer at once, and note what Postgres, SQS or a shard would refuse."""

    @property
    def started(self) -> Self:
        return self

    monitoring = started

    def liveness_problem(self) -> None:
        return None

    def readiness_problem(self) -> Unreadiness:
        return Unreadiness(UnreadyReason.STARTING)

    def refresh_gauges(self) -> None:
        return None

    def status(self) -> dict[str, Any]:
        return {"v": 1}

    fleet_status = history_of_fleet = handler_status = status

    async def wait_for_operation(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[HttpAnswer]]:
        async def answer(*asked: object) -> HttpAnswer:
            ids = list(asked)
            if name == "list_operations":
                ids = [*asked[:2], *check_list(cast("ListRequest", asked[2]))]
            if name in {"purge", "retry_held"}:  # a name, which is only compared with known ones
                return 429, {"error": "once in 60 s", "retryAfterSeconds": 60}
            for one in ids:
                if isinstance(one, str) and not is_storable(one):
                    note_fault(f"a view gets what cannot be stored: {one!r}")
            return 200, {"ids": len(ids)}

        return answer


def check_list(request: ListRequest) -> list[object]:
    if not 1 <= request.limit <= LIMIT_MAX or decode_cursor(request.start.encode()) != request.start:
        note_fault(f"a view gets a request that no shard takes: {request}")
    return [request.resource_type, request.resource_id, request.after.request_id]


_servers: list[web.Server] = []


async def open_server() -> web.Server:
    if not _servers:
        guard = Guard(Tokens(operator=TOKEN), "worker", allow_destructive=True, opens_reads=True)
        runner = make_runner(make_application(guard, cast("ReplicaStatus", Replica())))
        await runner.setup()
        _servers.append(cast("web.Server", runner.server))
        call_at_close(partial(close_server, runner))
    return _servers[0]


async def close_server(runner: web.AppRunner) -> None:
    _servers.clear()
    await runner.cleanup()


def check(data: bytes) -> None:
    """Send *data* on a connection of its own, in pieces of a size that its first byte decides."""
    run(send(data))
    check_faults()


async def send(data: bytes) -> None:
    server = await open_server()
    connection = accept_connection(server, CONNECTIONS_MAX)
    transport = MemoryTransport(connection)
    connection.connection_made(transport)
    piece = 1 + data[0] * len(data) // 64 if data else 1
    for start in range(1, len(data), piece):
        transport.receive(data[start : start + piece])
        await asyncio.sleep(0)
    await settle(transport)
    transport.receive_end()
    await settle(transport)
    transport.abort()
    assert await turn_until(lambda: connection.transport is None), "the connection is not forgotten"
    sent = bytes(transport.sent)
    assert not sent or STATUS_LINE.match(sent), sent[:100]
    assert {int(status) for status in STATUS_LINE.findall(sent)} <= STATUSES, sent[:1000]
    if b"Server: Python" not in sent:  # aiohttp's own answer tells a peer which of its bytes are malformed
        check_secrets(sent.decode(errors="replace"))


async def settle(transport: MemoryTransport) -> None:
    """Let the server answer until it has nothing more to send."""
    length = -1
    while length != len(transport.sent) and not transport.is_closing():
        length = len(transport.sent)
        await turn_until(transport.is_closing, IDLE_TURNS)


def request(path: str, headers: str = "", method: str = "GET") -> bytes:
    return f"@{method} {path} HTTP/1.1\r\nHost: worker\r\n{headers}\r\n".encode("utf-8", "surrogateescape")


LIST: Final = "/operations?businessId=b&locationId=l"
LIST_MEMBERS: Final = (
    *(
        "resourceType=t",
        "resourceId=%2F",
        "since=2026-01-31T09:00:00Z",
        "until=2026-02-01",
        "status=failed",
        "limit=50",
    ),
    *("status=succeeded", "error=not_found", f"after={SearchPosition(request_id='r').encode()}", "after=W10"),
)
AUTHORIZED: Final = f"Authorization: Bearer {TOKEN}\r\n"
PATHS: Final = (
    *("/", "/livez", "/readyz", "/metrics", "/status", "/shards", "/cache/keys", "/events", "/tap?content=true&x=1"),
    *("/schemas/x.json", "/operations/r%2F1?businessId=b&locationId=l", "/tenants/b/l", "/operations/%00", "/x"),
    *(LIST, "&".join([LIST, *LIST_MEMBERS[:3]]), f"{LIST}&{LIST_MEMBERS[8]}", f"{LIST}&since=0001-01-01&until=9999"),
    *("/operations/%ED%A0%80", "/tenants/%ff/%c3", "/operations/\udcff", "/tenants/b/\udcc3?x=\udcff"),
)
BODIES: Final = (
    *(("/held/retry", b'{"target": "shard s1"}'), ("/held/retry", b'{"x": 1}')),
    *(("/dead-letters/list", b'{"since": "2026-01-31T09:00:00"}'), ("/tenants/b/l/pause", b'{"seconds": 1e999}')),
)
SEEDS: Final = (
    *(request(path, AUTHORIZED) for path in PATHS),
    *(request(path, AUTHORIZED, "DELETE") for path in ("/sqs/purge?queue=%00", "/cache/clear")),
    *(request(path, f"{AUTHORIZED}Content-Length: {len(body)}\r\n", "POST") + body for path, body in BODIES),
    request("/held/retry", f"{AUTHORIZED}Content-Length: 22\r\n", "POST") + b"1",
    request("/held/retry", f"{AUTHORIZED}Content-Encoding: gzip\r\nContent-Length: 2\r\n", "POST") + b"{}",
    request("/livez") + request("/status", "Authorization: Basic x\r\n")[1:],
    request("/metrics", "Accept: a/b;version=x;escaping=y\r\n") + request("/shards", "Host: [::1]:80\r\n")[1:],
)
WORDS: Final = (
    *(
        b"\r\n",
        b"GET ",
        b"DELETE ",
        b" HTTP/1.1\r\n",
        b"Host: ",
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
    ),
    *(AUTHORIZED.encode(), b"%00", b"%2f", b"%ff", b"%", b"?", b"#", b"&", b"=", b"/../", b"\xc3\xa9", b"\xff", b"\t"),
)
LISTS: Final = st.lists(
    st.sampled_from(LIST_MEMBERS)
    | st.builds("{}={}".format, st.sampled_from([one.partition("=")[0] for one in LIST_MEMBERS]), st.text(max_size=10)),
    max_size=4,
).map(lambda members: "&".join([LIST, *members]))
TARGETS: Final = st.sampled_from(PATHS) | st.text(max_size=10).map(lambda text: f"/operations/{text}") | LISTS
HEADERS: Final = st.just(AUTHORIZED) | st.text(max_size=6).map(lambda text: f"X-{text}: {text}\r\n")
REQUESTS: Final = st.builds(
    lambda *drawn: request(*drawn)[1:], TARGETS, HEADERS, st.sampled_from(["GET", "HEAD", "POST", "DELETE", "PUT", "X"])
)


def in_pieces(drawn: tuple[int, list[bytes]]) -> bytes:
    return bytes([drawn[0]]) + b"".join(drawn[1])


TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=st.tuples(st.integers(0, 255), st.lists(REQUESTS, max_size=3)).map(in_pieces)
    | spliced(st.sampled_from(SEEDS), WORDS),
    steps_per_byte=30_000,  # of an answer to a request of twenty bytes
    bytes_per_byte=4_000,
)
