from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Self, cast

import msgspec
import pytest
from aiohttp import ClientSession
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs
from support.reader_world import eventually
from yarl import URL

from simplu_worker import instruments  # noqa: F401  # the metrics that /metrics must show
from simplu_worker.consumers.operation_taps import TAPS_MAX
from simplu_worker.errors import RetryableError
from simplu_worker.shards.types import TenantControls
from simplu_worker.status import server
from simplu_worker.status.guard import Actor, Guard
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import VIEWS_AT_ONCE, open_http
from simplu_worker.status.views import Unreadiness
from simplu_worker.status.words import Role, UnreadyReason
from simplu_worker.timing.sharing import SharedAnswer
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import DeadLetterReason

TOKEN = "tokén-1"
VIEWER_TOKEN = "viewer-1"
TOKENS = Tokens(operator=TOKEN)
BOTH_TOKENS = Tokens(operator=TOKEN, viewer=VIEWER_TOKEN)
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
VIEWING = {"Authorization": f"Bearer {VIEWER_TOKEN}"}
MONITORING = ["/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats", "/cache/keys"]
OWN_OPERATION = "/operations/r1?businessId=b&locationId=l"
UNREADY = Unreadiness(UnreadyReason.CITRUS_REFUSES_KEY, "SECRET is refused")
LISTED = "/operations?businessId=b&locationId=l"
PROTECTED = [
    "/status",
    "/fleet",
    "/fleet/history",
    "/shards",
    LISTED,
    "/operations/r1",
    "/tenants/b/l",
    "/tenants/b-l",
    "/resources/b/l/note/r1",
    *MONITORING,
]
DESTRUCTIVE = ["/sqs/purge?queue=orders.fifo", "/cache/clear"]


class Daemon:
    def __init__(self) -> None:
        self.live: str | None = None
        self.ready: Unreadiness | None = None
        self.waiting = 0
        self.asked: list[tuple[Any, ...]] = []
        self.shown: Callable[[], Any] | None = None
        self.found: Callable[[], Awaitable[HttpAnswer]] | None = None

    @property
    def started(self) -> Self:
        return self

    monitoring = started

    def liveness_problem(self) -> str | None:
        return self.live

    def readiness_problem(self) -> Unreadiness | None:
        return self.ready

    def refresh_gauges(self) -> None:
        self.asked.append(("refresh_gauges",))

    def status(self) -> dict[str, Any]:
        return self.shown() if self.shown else {"replica": "worker-1", "ready": self.ready is None}

    def fleet_status(self) -> dict[str, Any]:
        return {"stream": "operations", "replicas": []}

    def history_of_fleet(self) -> dict[str, Any]:
        return {"streamShards": [{"streamShard": "s", "lagSeconds": [None, 0.5]}]}

    def handler_status(self) -> dict[str, Any]:
        return {"view": "handler_status"}

    async def wait_for_operation(self, *asked: Any) -> None:
        *key, within_s, closing = asked
        self.asked.append(("wait", *key, within_s))
        self.waiting += 1
        await sleep_or_event(within_s, until=closing)
        self.waiting -= 1

    def __getattr__(self, name: str) -> Callable[..., Awaitable[HttpAnswer]]:
        async def answer(*asked: Any) -> HttpAnswer:
            if self.found is not None:
                return await self.found()
            self.asked.append((name, *asked))
            return ANSWERS.get(name, (200, {"view": name}))

        return answer


# Of other views: the status and the name.
ANSWERS: dict[str, HttpAnswer] = {
    "find_operation": (404, {"status": "unknown", "lagSeconds": 0.5}),
    "find_tenant": (200, {"big": msgspec.Raw(b"123456789012345678901234567890")}),
    "purge": (429, {"error": "once in 60 s", "retryAfterSeconds": 60}),
    "retry_held": (200, {"retried": 1, "asked": [], "notAsked": []}),
    "set_business_controls": (200, {"shards": [], "shardsWithoutAnswer": []}),
    "set_controls": (200, {"shardId": "shard-1", "pausedUntil": None, "weight": 0.5}),
    "clear_cache": (200, {"cleared": 2}),
}


@asynccontextmanager
async def serving(
    daemon: Daemon, tokens: Tokens = TOKENS, connections_max: int = 100, letters: Any = None, **allowed: bool
) -> AsyncIterator[Site]:
    guard = Guard(tokens, "127.0.0.1", **allowed)
    http = open_http(guard, 0, cast(Any, daemon), letters, connections_max=connections_max)
    async with http as port, ClientSession() as session:
        yield Site(session, port)


class Site:
    def __init__(self, session: ClientSession, port: int, host: str = "127.0.0.1") -> None:
        self.session = session
        self.port = port
        self.host = host

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        url = URL(f"http://{self.host}:{self.port}{path}", encoded=True)
        async with self.session.request(method, url, headers=headers) as response:
            return response.status, dict(response.headers), await response.read()

    async def post(self, path: str, body: bytes | None, **headers: str) -> tuple[int, dict[str, Any]]:
        url = URL(f"http://{self.host}:{self.port}{path}", encoded=True)
        async with self.session.post(url, data=body, headers=headers) as response:
            return response.status, await response.json()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def patient_stop(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(server, "SHUTDOWN_TIMEOUT_S", 60.0)
    return 30.0


@pytest.fixture
async def site(daemon: Daemon) -> AsyncIterator[Site]:
    async with serving(daemon) as site:
        yield site


@pytest.fixture
async def loose_site(daemon: Daemon) -> AsyncIterator[Site]:
    async with serving(daemon, allow_destructive=True) as site:
        yield site


@pytest.mark.parametrize(
    ("unready", "headers", "expected"),
    [
        (None, {}, {"status": "ok"}),
        (Unreadiness(UnreadyReason.DRAINING), {}, {"status": "unavailable", "reason": "draining"}),
        *(
            (UNREADY, headers, {"status": "unavailable", "reason": "citrus_refuses_key"})
            for headers in ({}, VIEWING, {"Authorization": "Bearer wrong"}, AUTHORIZED)
        ),
    ],
)
async def test_readiness_tells_a_word_and_no_error(
    daemon: Daemon, unready: Unreadiness | None, headers: dict[str, str], expected: dict[str, str]
) -> None:
    daemon.ready = unready
    async with serving(daemon, BOTH_TOKENS) as site:
        status, _, body = await site.ask("/readyz", **headers)
    assert (status, msgspec.json.decode(body)) == (200 if unready is None else 503, expected)


async def test_liveness_tells_what_is_stuck(site: Site, daemon: Daemon) -> None:
    told: dict[str | None, dict[str, str]]
    told = {None: {"status": "ok"}, "stuck": {"status": "unavailable", "reason": "stuck"}}
    for problem, expected in told.items():
        daemon.live = problem
        for path in ("/livez", "/healthz"):
            status, _, body = await site.ask(path)
            assert (status, msgspec.json.decode(body)) == (503 if problem else 200, expected)


async def test_metrics_are_in_the_format_that_is_accepted(site: Site, daemon: Daemon) -> None:
    await site.ask("/livez")
    assert daemon.asked == []
    status, headers, body = await site.ask("/metrics", Accept="text/plain")
    assert daemon.asked == [("refresh_gauges",)]
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = {family.name for family in parse_text(body.decode())}
    assert {"simplu_operations", "simplu_operation_latency_seconds", "python_gc_objects_collected"} <= names
    status, headers, body = await site.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]  # untyped vendor code
        body.decode()
    )
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert {"simplu_operations", "simplu_operation_latency_seconds"} <= {family.name for family in families}


async def test_protected_path_is_401_without_the_right_token(site: Site, daemon: Daemon) -> None:
    sent = [None, "", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer tok\u00e8n-1"]
    for authorization, path in itertools.product(sent, PROTECTED):
        headers = {} if authorization is None else {"Authorization": authorization}
        status, answered, body = await site.ask(path, **headers)
        assert (path, status, daemon.asked) == (path, 401, [])
        assert answered["WWW-Authenticate"].startswith('Bearer realm="simplu-worker"')
        assert list(msgspec.json.decode(body)) == ["error"]
    status, _, body = await site.ask("/status", Authorization=f"BEARER  {TOKEN}")
    assert (status, msgspec.json.decode(body)) == (200, {"role": "operator", "replica": "worker-1", "ready": True})


async def test_protected_path_is_403_when_no_token_is_configured(daemon: Daemon) -> None:
    async with serving(daemon, Tokens(operator=""), allow_destructive=True) as site:
        for path, method in [*((path, "GET") for path in PROTECTED), *((path, "DELETE") for path in DESTRUCTIVE)]:
            status, _, body = await site.ask(path, method, Authorization="Bearer ")
            assert (path, status, daemon.asked) == (path, 403, [])
            assert "API_TOKEN" in msgspec.json.decode(body)["error"]


ROLE = Role.OPERATOR


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/operations/r1", ("find_operation", "r1", None, None, ROLE)),
        ("/operations/r1?businessId=&locationId=", ("find_operation", "r1", None, None, ROLE)),
        (
            "/operations/a%2Fb%2fc%252Fd%20e?businessId=b%2F1&locationId=l+%C3%A9",
            ("find_operation", "a/b/c%2Fd e", "b/1", "l é", ROLE),
        ),
        ("/operations/%7Bx%7D%3F%23%25+?locationId=%26&businessId=%3D", ("find_operation", "{x}?#%+", "=", "&", ROLE)),
        ("/tenants/b%2F1/l%2f2", ("find_tenant", "b/1", "l/2", ROLE)),
        ("/tenants/b-l", ("find_tenant_by_id", "b-l")),
        ("/resources/b/l/note/r%2F1", ("find_resource", "b", "l", "note", "r/1")),
        ("/shards", ("inspect_shards",)),
    ],
)
async def test_view_is_asked_with_the_decoded_ids(site: Site, daemon: Daemon, path: str, expected: tuple[Any]) -> None:
    status, _, body = await site.ask(path, **AUTHORIZED)
    known_status, known = ANSWERS.get(expected[0], (200, {"view": expected[0]}))
    assert (status, body, daemon.asked) == (known_status, msgspec.json.encode(known), [expected])


@pytest.mark.parametrize(
    "path",
    [
        "/operations/r?businessId=b&locationId=",
        "/operations/r%00",
        "/tenants/b/%00",
        "/operations?businessId=b&locationId=l&x%ED%A0%80=1",
    ],
)
async def test_request_is_refused_when_it_cannot_be_meant(site: Site, daemon: Daemon, path: str) -> None:
    status, _, body = await site.ask(path, **AUTHORIZED)
    assert (status, daemon.asked) == (400, [])
    assert list(msgspec.json.decode(body)) == ["error"]


async def test_unknown_paths_and_methods_are_told_in_json(loose_site: Site, daemon: Daemon) -> None:
    for path in ("/nowhere", "/operations/", "/operations/a/b", "/tenants/", "/tenants/b/l/", "/status/"):
        status, _, body = await loose_site.ask(path)
        assert (status, msgspec.json.decode(body)) == (404, {"error": "there is nothing at this path"})
    for method, path in itertools.product(("POST", "PUT", "DELETE", "OPTIONS"), ("/", "/metrics", "/operations/a%2Fb")):
        status, headers, body = await loose_site.ask(path, method, **AUTHORIZED)
        assert (path, status, headers["Allow"]) == (path, 405, "GET,HEAD")
        assert msgspec.json.decode(body) == {"error": f"expected GET or HEAD, got {method}"}
    for method, path in itertools.product(("GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS"), DESTRUCTIVE):
        status, headers, _ = await loose_site.ask(path, method, **AUTHORIZED)
        assert (status, headers["Allow"], daemon.asked) == (405, "DELETE", [])


async def test_nothing_is_emptied_unless_that_is_allowed(daemon: Daemon) -> None:
    async with serving(daemon) as site, serving(daemon, allow_destructive=True) as loose_site:
        for path in DESTRUCTIVE:
            with capture_logs() as logs:
                status, _, body = await site.ask(path, "DELETE", **AUTHORIZED)
            assert (status, "ALLOW_DESTRUCTIVE_HTTP" in msgspec.json.decode(body)["error"]) == (403, True)
            assert [one["refused"] for one in logs] == [403]
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert (await loose_site.ask(path, "DELETE", **headers))[0] == 401
        assert daemon.asked == []
        assert (await loose_site.ask("/cache/clear", "DELETE", **AUTHORIZED))[2] == b'{"cleared":2}'
        for query, name in (("?queue=a%2Fb%20c.fifo", "a/b c.fifo"), ("?queue=", None)):
            status, answered, _ = await loose_site.ask(f"/sqs/purge{query}", "DELETE", **AUTHORIZED)
            assert (status, answered["Retry-After"], daemon.asked[-1]) == (429, "60", ("purge", name))
        for query in ("?queue=a&queue=b", "?name=a"):
            assert (await loose_site.ask(f"/sqs/purge{query}", "DELETE", **AUTHORIZED))[0] == 400


async def test_reads_are_open_only_where_that_is_allowed(daemon: Daemon) -> None:
    are_open = {"/status", "/shards", "/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats"}
    async with serving(daemon, opens_reads=True) as site:
        for path in PROTECTED:
            status, _, body = await site.ask(path)
            assert status == (200 if path in are_open else 401), path
            assert b"worker-1" not in body
        assert b"worker-1" in (await site.ask("/status", **AUTHORIZED))[2]
        assert (await site.ask("/status", Host="evil.example"))[0] == 403
        assert (await site.ask("/status", Authorization="Bearer wrong"))[0] == 401


async def test_viewers_see_counts_and_names_and_change_nothing(daemon: Daemon) -> None:
    async with serving(daemon, BOTH_TOKENS, allow_destructive=True) as site:
        seen = {path: (await site.ask(path, **VIEWING))[0] for path in PROTECTED}
        asked = list(daemon.asked)
        refused = [await site.ask(path, "DELETE", **VIEWING) for path in DESTRUCTIVE]
        status = msgspec.json.decode((await site.ask("/status", **VIEWING))[2])
    assert seen == dict.fromkeys(PROTECTED, 200) | {
        "/operations/r1": 404,
        "/cache/keys": 403,
        "/resources/b/l/note/r1": 403,
    }
    assert status == {"role": "viewer", "replica": "worker-1", "ready": True}
    assert [code for code, _, _ in refused] == [403, 403]
    assert all("API_TOKEN" in msgspec.json.decode(body)["error"] for _, _, body in refused)
    assert daemon.asked == asked


async def test_viewers_see_no_results_and_no_error_texts(daemon: Daemon) -> None:
    async def fail() -> HttpAnswer:
        raise RetryableError("shard-1: SECRET")

    async def find() -> HttpAnswer:
        return 200, {"requestId": "r1", "status": "succeeded", "result": msgspec.Raw(b'{"SECRET": 1}'), "error": None}

    async with serving(daemon, BOTH_TOKENS) as site:
        daemon.found = find
        shown = msgspec.json.decode((await site.ask("/operations/r1", **VIEWING))[2])
        daemon.found = fail
        failed = await site.ask("/tenants/b/l", **VIEWING)
        told = await site.ask("/tenants/b/l", **AUTHORIZED)
    assert shown == {"requestId": "r1", "status": "succeeded", "error": None}
    assert (failed[0], b"SECRET" in failed[2], b"operators" in failed[2]) == (503, False, True)
    assert (told[0], b"SECRET" in told[2]) == (503, True)


async def test_operation_waits_before_it_takes_a_turn(site: Site, daemon: Daemon) -> None:
    assert (await site.ask(f"{OWN_OPERATION}&wait=0.01", **AUTHORIZED))[0] == 404
    assert daemon.asked == [("wait", "r1", "b", "l", 0.01), ("find_operation", "r1", "b", "l", ROLE)]
    waiting = [asyncio.create_task(site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED)) for _ in range(VIEWS_AT_ONCE)]
    await eventually(lambda: daemon.waiting == VIEWS_AT_ONCE)
    async with asyncio.timeout(10):
        assert (await site.ask(OWN_OPERATION, **AUTHORIZED))[0] == 404
    for one in waiting:
        one.cancel()


async def test_probe_takes_the_place_of_the_oldest_connection(daemon: Daemon) -> None:
    async with serving(daemon, connections_max=4) as site:
        silent = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(3)]
        waiting = asyncio.create_task(site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED))
        await eventually(lambda: daemon.waiting == 1)
        for _ in range(4):
            async with ClientSession() as session:
                assert (await Site(session, site.port).ask("/livez"))[0] == 200
        newer = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(4)]
        for reader, _ in silent:
            with suppress(ConnectionError):
                assert await reader.read() == b""
        waiting.cancel()
        for _, writer in (*silent, *newer):
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_each_call_of_an_operator_is_logged(daemon: Daemon) -> None:
    with capture_logs() as logs:
        async with serving(daemon, BOTH_TOKENS, allow_destructive=True) as site:
            for headers in (AUTHORIZED, VIEWING, {}):
                await site.ask("/operations/r%2F1?businessId=b&locationId=l", **headers)
            await site.ask("/sqs/purge?queue=orders", "DELETE", **AUTHORIZED)
    told = ("role", "peer", "method", "path", "about", "refused")
    assert [[entry[name] for name in told] for entry in logs if entry["event"] == "http.called"] == [
        ["operator", "127.0.0.1", method, path, about, None]
        for method, path, about in [
            ("GET", "/operations/{requestId}", {"requestId": "r/1", "businessId": "b", "locationId": "l"}),
            ("DELETE", "/sqs/purge", {"queue": "orders"}),
        ]
    ]
    assert TOKEN not in str(logs)


ACTIONS = [
    ("/held/retry", None, ("retry_held", None)),
    ("/held/retry", b'{"target": "shard s 1"}', ("retry_held", "shard s 1")),
    ("/tenants/b%2F1/l/pause", None, ("set_controls", "b/1", "l", TenantControls(pause_s=4 * 3600.0))),
    ("/tenants/b/l/pause", b'{"seconds": 90}', ("set_controls", "b", "l", TenantControls(pause_s=90.0))),
    ("/tenants/b/l/resume", None, ("set_controls", "b", "l", TenantControls(pause_s=0.0))),
    ("/tenants/b/l/limit", b'{"bytesPerSecond": 9}', ("set_controls", "b", "l", TenantControls(bytes_per_s=9.0))),
    ("/businesses/b%2F1/resume", None, ("set_business_controls", "b/1", TenantControls(pause_s=0.0))),
    ("/tenants/b/l/weight", b'{"weight": 0.5}', ("set_controls", "b", "l", TenantControls(weight=0.5))),
]


async def test_actions_are_operators_and_are_logged(daemon: Daemon) -> None:
    async with serving(daemon, BOTH_TOKENS) as site:
        for path, body, expected in ACTIONS:
            refused = [(await site.post(path, body, **headers))[0] for headers in ({}, VIEWING)]
            assert (refused, (await site.ask(path, **AUTHORIZED))[0], daemon.asked) == ([401, 403], 405, [])
            with capture_logs() as logs:
                assert (await site.post(path, body, **AUTHORIZED))[0] in {200, 202}
            assert (daemon.asked.pop(), daemon.asked) == (expected, [])
            (acted,) = [one for one in logs if one["event"] == "operator.acted"]
            about = [acted[name] for name in ("role", "peer", "apply", "error")]
            assert about == ["operator", "127.0.0.1", True, None]
    assert (acted["action"], acted["asked"], acted["outcome"]) == (
        "weigh_tenant",
        {"businessId": "b", "locationId": "l", "weight": 0.5},
        {"weight": 0.5},
    )


LETTERS = "/dead-letters/"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/held/retry", b'{"SECRET": 1}', 400),
        ("/held/retry", b" " * 65_537, 413),
        ("/tenants/b/l/pause", b'{"seconds": 1209601}', 400),
        ("/tenants/b/l/resume", b'{"seconds": 1}', 400),
        ("/tenants/b/l/weight", b'{"weight": 11}', 400),
        ("/businesses/b/limit", b'{"operationsPerSecond": -1}', 400),
        ("/businesses/b/limit", b'{"bytesPerSecond": 9e-4}', 400),
        (LETTERS + "list", b'{"reasons": ["invalid_json"], "businessId": "b", "locationId": "l", "limit": 5}', 200),
        (LETTERS + "replay", b"", 200),
        (LETTERS + "replay", b'{"businessId": "b"}', 400),
        (LETTERS + "discard", b'{"messageIds": [' + b", ".join([b'"%d"' % one for one in range(1001)]) + b"]}", 400),
        (LETTERS + "edit", b'{"messageId": "0d8e", "record": "{}", "requestId": "new", "apply": true}', 200),
    ],
)
async def test_bodies_are_read_strictly(daemon: Daemon, path: str, body: bytes, expected: int) -> None:
    asked: list[tuple[str, Actor]] = []

    class Desk:
        async def act(self, action: str, _: object, actor: Actor) -> HttpAnswer:
            asked.append((action, actor))
            return 200, {}

    async with serving(daemon, BOTH_TOKENS, letters=Desk()) as site:
        assert (await site.post(path, body, **VIEWING))[0] == 403
        status, answer = await site.post(path, body, **AUTHORIZED)
    actors = [Actor("operator", "127.0.0.1")] if expected == 200 else []
    assert (status, list(answer), daemon.asked) == (expected, [] if actors else ["error"], [])
    assert ([actor for _, actor in asked], all(path[14:] in action for action, _ in asked)) == (actors, True)


async def read_events(site: Site, count: int, **headers: str) -> list[tuple[str, Any]]:
    async with site.session.get(f"http://127.0.0.1:{site.port}/events", headers=headers) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        texts = [await response.content.readuntil(b"\n\n") for _ in range(count)]
    parts = [re.fullmatch(rb"event: (\w+)\ndata: (.*)\n\n", text) for text in texts]
    return [(found[1].decode(), msgspec.json.decode(found[2])) for found in parts if found is not None]


async def test_events_are_the_answers_of_the_role(daemon: Daemon) -> None:
    async with serving(daemon, BOTH_TOKENS) as site:
        for headers, role in ((AUTHORIZED, "operator"), (VIEWING, "viewer")):
            assert await read_events(site, 2, **headers) == [
                ("status", {"role": role, "replica": "worker-1", "ready": True}),
                ("fleet", {"role": role, "stream": "operations", "replicas": []}),
            ]
        assert (await site.ask("/events"))[0] == 401
        assert (await site.ask("/events", "HEAD", **headers))[0] == 405


async def test_tap_shows_content_to_operators_alone(daemon: Daemon) -> None:
    async with serving(daemon, BOTH_TOKENS) as site:
        refused = await site.ask("/tap?content=true", **VIEWING)
        wrong = await site.ask("/tap?outcome=fine", **AUTHORIZED)
        async with AsyncExitStack() as listening:
            with capture_logs() as logs:
                for _ in range(TAPS_MAX):
                    asking = site.session.get(f"http://127.0.0.1:{site.port}/tap?content=true", headers=AUTHORIZED)
                    response = await listening.enter_async_context(asking)
                    assert (response.status, await response.content.readline()) == (200, b": alive\n")
            assert (await site.ask("/tap", **VIEWING))[0] == 503
    assert (refused[0], b"API_TOKEN" in refused[2], wrong[0]) == (403, True, 400)
    assert [entry["about"] for entry in logs if entry["event"] == "http.called"] == [{"content": "true"}] * TAPS_MAX


async def test_failing_view_is_500_without_detail(site: Site, daemon: Daemon) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("postgres://user:secret@host")

    daemon.shown = fail
    with capture_logs() as logs:
        status, _, body = await site.ask("/status", **AUTHORIZED)
    assert (status, b"secret" in body, (await site.ask("/livez"))[0]) == (500, False, 200)
    assert [entry["path"] for entry in logs if entry["event"] == "http.failed"] == ["/status"]


async def test_page_runs_only_files_of_this_server(site: Site) -> None:
    status, headers, body = await site.ask("/")
    page = body.decode()
    policy = headers["Content-Security-Policy"]
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ")
    assert "unsafe" not in policy
    assert re.findall(r"<style| on[a-z]+=| style=|<script[^>]*>[^<]", page) == []
    assert set(re.findall(r"<option[^>]*>(\w+)", page)) == {"any", *map(str, DeadLetterReason)}


async def test_server_stops_at_once_and_ends_all_that_lasts(daemon: Daemon, patient_stop: float) -> None:
    guard = Guard(TOKENS, "127.0.0.1")
    async with ClientSession() as session:
        async with open_http(guard, 0, cast(Any, daemon)) as port:
            waiting = asyncio.create_task(Site(session, port).ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED))
            await eventually(lambda: daemon.waiting == 1)
            listener = await session.get(f"http://127.0.0.1:{port}/events", headers=AUTHORIZED)
            silent, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(OSError, match=str(port)):
                await open_http(guard, port, cast(Any, daemon)).__aenter__()
            started = time.monotonic()
        assert time.monotonic() - started < patient_stop
        assert (await waiting)[0] == 404
        assert (await listener.read()).startswith(b"event: status")
        assert await silent.read() == b""
        writer.close()
        async with open_http(guard, port, cast(Any, daemon)) as again:
            assert (port, 200) == (again, (await Site(session, again).ask("/livez"))[0])


@pytest.mark.parametrize("path", ["/status", "/shards", "/sqs/stats", "/handler/stats", "/cache/stats", "/cache/keys"])
async def test_answer_is_shared_among_callers(daemon: Daemon, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SharedAnswer", partial(SharedAnswer, fresh_s=60.0))  # a busy machine connects slowly
    calls = itertools.count(1)

    async def find() -> HttpAnswer:
        return 200, {"call": next(calls)}

    daemon.found, daemon.shown = find, lambda: {"call": next(calls)}
    async with serving(daemon) as site:
        answers = await asyncio.gather(*(site.ask(path, **AUTHORIZED) for _ in range(60)))
    assert {(status, msgspec.json.decode(body)["call"]) for status, _, body in answers} == {(200, 1)}
