"""The HTTP server as a client sees it: paths, protection, errors, metrics in both formats, the page."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import msgspec
import pytest
from aiohttp import ClientSession
from msgspec.structs import replace
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs
from support.network.ipv6 import require_ipv6
from support.reader_world import eventually
from support.requires import ROOT
from yarl import URL

from simplu_local.processes.loopback import poll_until
from simplu_worker import instruments  # noqa: F401  # the metrics that /metrics must show
from simplu_worker.consumers.operation_taps import TAPS_MAX
from simplu_worker.shards.types import Lever
from simplu_worker.status import server
from simplu_worker.status.connections import ConnectionLimits
from simplu_worker.status.event_stream import LISTENERS_MAX, changes, tapped
from simplu_worker.status.guard import Actor
from simplu_worker.status.message_schemas import FEED_SCHEMAS, SCHEMAS
from simplu_worker.status.metrics_text import SharedAnswer
from simplu_worker.status.operation_waits import OperationListQuery
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import PATH_REQUESTS_MAX, VIEWS_AT_ONCE, Views, open_http
from simplu_worker.status.views import Unreadiness
from simplu_worker.vocabulary import DeadLetterReason, Role, UnreadyReason

TOKEN = "tokén-1"
VIEWER_TOKEN = "viewer-1"
TOKENS = Tokens(operator=TOKEN)
BOTH_TOKENS = Tokens(operator=TOKEN, viewer=VIEWER_TOKEN)
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
VIEWING = {"Authorization": f"Bearer {VIEWER_TOKEN}"}
MONITORING = ["/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats", "/cache/keys"]
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
OPEN = ["/", "/openapi.json", "/schemas/", "/schemas/operation.json", "/livez", "/healthz", "/readyz", "/metrics"]


@dataclass
class Daemon:
    """A stand-in for the worker behind the views: the answers to give, and the calls."""

    live: str | None = None
    ready: Unreadiness | None = None
    awaited: str | None = None
    waiting: int = 0
    waiting_max: int = 100
    asked: list[tuple[str | float | None, ...]] = field(default_factory=list)

    def views(self) -> Views:
        """Return views of this."""
        return Views(
            live=lambda: self.live,
            ready=lambda: self.ready,
            detail=lambda: self.awaited,
            refresh_gauges=lambda: self.asked.append(("refresh_gauges",)),
            status=lambda: {"replica": "worker-1", "ready": self.ready is None},
            fleet=lambda: {"stream": "operations", "replicas": []},
            fleet_history=lambda: {"streamShards": [{"streamShard": "s", "lagSeconds": [None, 0.5]}]},
            operation=self.operation,
            wait=self.wait,
            operations=self.operations,
            tenant=self.tenant,
            tenant_by_id=self.tenant_by_id,
            resource=self.resource,
            shards=self.shards,
            sqs_stats=lambda: self.answer("/sqs/stats"),
            handler_status=lambda: {"path": "/handler/status"},
            handler_stats=lambda: self.answer("/handler/stats"),
            cache_stats=lambda: self.answer("/cache/stats"),
            cache_keys=lambda: self.answer("/cache/keys"),
            release_lease=self.release_lease,
            retry_held=self.retry_held,
            steer_tenant=self.steer_tenant,
            letters=None,
            purge=self.purge,
            clear_cache=self.clear_cache,
        )

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Answer with the path that was asked."""
        return 200, {"path": path}

    async def tenant_by_id(self, tenant_id: str) -> tuple[int, dict[str, Any]]:
        """Answer as for a known tenant."""
        self.asked.append(("tenant_by_id", tenant_id))
        return 200, {"tenant": tenant_id, "state": "active", "held": None}

    async def resource(self, *names: str) -> tuple[int, dict[str, Any]]:
        """Answer as for a resource without a row."""
        self.asked.append(("resource", *names))
        return 200, {"exists": False}

    async def purge(self, queue: str | None) -> tuple[int, dict[str, Any]]:
        """Answer as for a queue that was purged just now."""
        self.asked.append(("purge", queue))
        return 429, {"error": "once in 60 s", "retryAfterSeconds": 60}

    async def release_lease(self, stream_shard_id: str) -> tuple[int, dict[str, Any]]:
        """Answer as a replica that has the lease."""
        self.asked.append(("release_lease", stream_shard_id))
        return 202, {"streamShard": stream_shard_id, "how": "handed over"}

    async def retry_held(self, target: str | None) -> tuple[int, dict[str, Any]]:
        """Answer as if there was one target."""
        self.asked.append(("retry_held", target))
        return 200, {"retried": 1, "asked": [], "notAsked": []}

    async def steer_tenant(self, business_id: str, location_id: str, lever: Lever) -> tuple[int, dict[str, Any]]:
        """Answer as for a tenant that is paused."""
        self.asked.append((business_id, location_id, lever.pause_s, lever.weight))
        return 200, {"shardId": "shard-1", "pausedUntil": None, "weight": 0.5}

    async def clear_cache(self) -> tuple[int, dict[str, Any]]:
        """Answer as if there were two keys."""
        self.asked.append(("clear_cache",))
        return 200, {"cleared": 2}

    async def operation(
        self, request_id: str, business_id: str | None, location_id: str | None, _: Role
    ) -> tuple[int, dict[str, Any]]:
        """Answer as for an operation that no shard knows."""
        self.asked.append((request_id, business_id, location_id))
        return 404, {"status": "unknown", "lagSeconds": 0.5}

    async def wait(self, *asked: Any) -> bool:
        """Wait until the end that the server sets; at once False beyond the bound."""
        *key, within_s, end = asked
        self.asked.append(("wait", *key, within_s))
        if self.waiting == self.waiting_max:
            return False
        self.waiting += 1
        try:
            async with asyncio.timeout(within_s):
                await end.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return True

    async def operations(self, query: OperationListQuery) -> tuple[int, dict[str, Any]]:
        """Answer with an empty page."""
        self.asked.append((query.business_id, query.location_id, query.request.resource_id))
        return 200, {"operations": [], "next": None}

    async def tenant(self, business_id: str, location_id: str, _: Role) -> tuple[int, dict[str, Any]]:
        """Answer with JSON text as a shard keeps it."""
        self.asked.append((business_id, location_id))
        return 200, {"big": msgspec.Raw(b"123456789012345678901234567890")}

    async def shards(self) -> tuple[int, dict[str, Any]]:
        """Answer with no shards."""
        return 200, {"shards": []}


class Site:
    """A client of one running server."""

    def __init__(self, session: ClientSession, port: int, host: str = "127.0.0.1") -> None:
        self.session = session
        self.port = port
        self.host = host

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body; *path* goes out as it is."""
        url = URL(f"http://{self.host}:{self.port}{path}", encoded=True)
        async with self.session.request(method, url, headers=headers) as response:
            return response.status, dict(response.headers), await response.read()


@pytest.fixture
def daemon() -> Daemon:
    """Return what the server shows."""
    return Daemon()


@pytest.fixture
def patient_stop(monkeypatch: pytest.MonkeyPatch) -> float:
    """Have a server that stops wait long for answers; return the seconds after which it did not stop at once."""
    monkeypatch.setattr(server, "SHUTDOWN_TIMEOUT_S", 60.0)
    return 30.0


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between the calls of a peer, whose rate is limited."""
    monkeypatch.setattr(server, "loop_time", lambda: 1000.0)


@pytest.fixture
async def site(daemon: Daemon) -> AsyncIterator[Site]:
    """Yield a client of a server with a token."""
    async with (
        open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port,
        ClientSession() as session,
    ):
        yield Site(session, port)


@pytest.fixture
async def loose_site(daemon: Daemon) -> AsyncIterator[Site]:
    """Yield a client of a server with a token that lets itself be emptied."""
    http = open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views(), allow_destructive=True)
    async with http as port, ClientSession() as session:
        yield Site(session, port)


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
async def test_health_is_200_when_nothing_is_wrong(site: Site, path: str) -> None:
    status, _, body = await site.ask(path)
    assert (status, msgspec.json.decode(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/livez", "no batch for 60 s"), ("/healthz", "no batch for 60 s"), ("/readyz", "draining")],
)
async def test_health_is_503_with_the_reason_when_something_is_wrong(
    site: Site, daemon: Daemon, path: str, reason: str
) -> None:
    daemon.live, daemon.ready = "no batch for 60 s", Unreadiness(UnreadyReason.DRAINING)
    status, _, body = await site.ask(path)
    assert (status, msgspec.json.decode(body)) == (503, {"status": "unavailable", "reason": reason})


@pytest.mark.parametrize(
    ("headers", "detail"),
    [({}, {}), (VIEWING, {}), ({"Authorization": "Bearer wrong"}, {}), (AUTHORIZED, {"detail": "SECRET is refused"})],
)
async def test_unready_worker_names_a_word_and_its_error_to_operators_alone(
    daemon: Daemon, headers: dict[str, str], detail: dict[str, str]
) -> None:
    daemon.ready = Unreadiness(UnreadyReason.CITRUS_REFUSES_KEY, "SECRET is refused")
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views()) as port, ClientSession() as session:
        status, _, body = await Site(session, port).ask("/readyz", **headers)
    expected = {"status": "unavailable", "reason": "citrus_refuses_key"} | detail
    assert (status, msgspec.json.decode(body)) == (503, expected)


async def test_readiness_names_the_decision_that_is_waited_for(site: Site, daemon: Daemon) -> None:
    daemon.awaited = "1 shard held for a gap"
    status, _, body = await site.ask("/readyz")
    assert (status, msgspec.json.decode(body)) == (200, {"status": "ok", "detail": "1 shard held for a gap"})


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", "text/plain;version=0.0.4"])
async def test_metrics_are_prometheus_text_when_openmetrics_is_not_accepted(site: Site, accept: str) -> None:
    status, headers, body = await site.ask("/metrics", Accept=accept)
    names = {family.name for family in parse_text(body.decode())}
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert {"simplu_operations", "simplu_operation_latency_seconds", "python_gc_objects_collected"} <= names


async def test_metrics_are_as_they_are_when_asked_for(site: Site, daemon: Daemon) -> None:
    await site.ask("/livez")
    assert daemon.asked == []
    await site.ask("/metrics")
    assert daemon.asked == [("refresh_gauges",)]


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
    ],
)
async def test_metrics_are_openmetrics_when_accepted(site: Site, accept: str) -> None:
    status, headers, body = await site.ask("/metrics", Accept=accept)
    families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]  # untyped vendor code
        body.decode()
    )
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert {"simplu_operations", "simplu_operation_latency_seconds"} <= {family.name for family in families}


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer tok\u00e8n-1"],
)
async def test_protected_path_is_401_without_the_right_token(
    site: Site, daemon: Daemon, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in PROTECTED:
        status, answered, body = await site.ask(path, **headers)
        assert (path, status, daemon.asked) == (path, 401, [])
        assert answered["WWW-Authenticate"].startswith('Bearer realm="simplu-worker"')
        assert list(msgspec.json.decode(body)) == ["error"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_status_is_shown_when_the_token_is_right(site: Site, scheme: str) -> None:
    status, _, body = await site.ask("/status", Authorization=f"{scheme} {TOKEN}")
    assert (status, msgspec.json.decode(body)) == (200, {"role": "operator", "replica": "worker-1", "ready": True})


@pytest.mark.parametrize("token", [None, ""])
async def test_protected_path_is_403_when_no_token_is_configured(daemon: Daemon, token: str | None) -> None:
    async with (
        open_http("127.0.0.1", 0, tokens=Tokens(operator=token), views=daemon.views()) as port,
        ClientSession() as session,
    ):
        for path in PROTECTED:
            status, _, body = await Site(session, port).ask(path, Authorization="Bearer ")
            assert (path, status) == (path, 403)
            assert "API_TOKEN" in msgspec.json.decode(body)["error"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/operations/r1", ("r1", None, None)),
        ("/operations/r1?businessId=&locationId=", ("r1", None, None)),
        ("/operations/a%2Fb%2fc%252Fd%20e?businessId=b%2F1&locationId=l+%C3%A9", ("a/b/c%2Fd e", "b/1", "l é")),
        ("/operations/%7Bx%7D%3F%23%25+?locationId=%26&businessId=%3D", ("{x}?#%+", "=", "&")),
        ("/operations/simplu:0123?businessId=1&locationId=2", ("simplu:0123", "1", "2")),
    ],
)
async def test_operation_is_asked_with_the_decoded_ids(
    site: Site, daemon: Daemon, path: str, expected: tuple[str | None, ...]
) -> None:
    status, _, body = await site.ask(path, **AUTHORIZED)
    assert daemon.asked == [expected]
    assert (status, msgspec.json.decode(body)) == (404, {"status": "unknown", "lagSeconds": 0.5})


@pytest.mark.parametrize(
    "path",
    [
        "/operations/r?businessId=b",
        "/operations/r?locationId=l",
        "/operations/r?businessId=b&locationId=",
        "/operations/r%00",
        "/operations/r?businessId=b%00&locationId=l",
        "/tenants/b/%00",
        "/tenants/b%00",
    ],
)
async def test_ids_are_refused_when_they_cannot_be_meant(site: Site, daemon: Daemon, path: str) -> None:
    status, _, body = await site.ask(path, **AUTHORIZED)
    assert (status, daemon.asked) == (400, [])
    assert msgspec.json.decode(body)["error"].startswith("expected")


async def test_list_is_asked_with_the_decoded_query(site: Site, daemon: Daemon) -> None:
    status, _, body = await site.ask("/operations?businessId=b%2F1&locationId=l+%C3%A9&resourceId=%2525", **AUTHORIZED)
    assert (status, daemon.asked) == (200, [("b/1", "l é", "%25")])
    assert msgspec.json.decode(body) == {"operations": [], "next": None}


@pytest.mark.parametrize("query", ["", "?businessId=b", f"?{'&'.join(['businessId=b'] * 2)}", "?x%ED%A0%80=1"])
async def test_list_is_refused_when_its_query_cannot_be_meant(site: Site, daemon: Daemon, query: str) -> None:
    status, _, body = await site.ask(f"/operations{query}", **AUTHORIZED)
    assert (status, daemon.asked) == (400, [])
    assert "expected" in msgspec.json.decode(body)["error"]


async def test_lists_leave_places_to_lookups_of_one_operation(daemon: Daemon) -> None:
    held = asyncio.Event()

    async def hold(_: OperationListQuery) -> tuple[int, dict[str, Any]]:
        await held.wait()
        return 200, {}

    views = replace(daemon.views(), operations=hold)
    async with (
        open_http("127.0.0.1", 0, tokens=TOKENS, views=views) as port,
        ClientSession() as session,
    ):
        site = Site(session, port)
        asking = [asyncio.create_task(site.ask(LISTED, **AUTHORIZED)) for _ in range(2 * PATH_REQUESTS_MAX)]
        refused, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        looked_up = await site.ask("/operations/r", **AUTHORIZED)
        held.set()
        answers = await asyncio.gather(*asking)
    assert {task.result()[0] for task in refused} == {503}
    assert looked_up[0] == 404
    assert Counter(status for status, _, _ in answers) == {200: PATH_REQUESTS_MAX, 503: PATH_REQUESTS_MAX}


async def test_tenant_is_asked_with_the_decoded_ids(site: Site, daemon: Daemon) -> None:
    status, headers, body = await site.ask("/tenants/b%2F1/l%2f2", **AUTHORIZED)
    assert (status, daemon.asked) == (200, [("b/1", "l/2")])
    assert headers["Content-Type"].startswith("application/json")
    assert body == b'{"big":123456789012345678901234567890}'


@pytest.mark.parametrize(
    "path", ["/nowhere", "/operations/", "/operations/a/b", "/tenants/", "/tenants/b/l/", "/status/"]
)
async def test_unknown_path_is_404_in_json(site: Site, path: str) -> None:
    status, _, body = await site.ask(path)
    assert (status, msgspec.json.decode(body)) == (404, {"error": "there is nothing at this path"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_405(site: Site, method: str) -> None:
    for path in ("/", "/metrics", "/status", "/operations", "/operations/a%2Fb"):
        status, headers, body = await site.ask(path, method, **AUTHORIZED)
        assert (path, status, headers["Allow"]) == (path, 405, "GET,HEAD")
        assert msgspec.json.decode(body) == {"error": f"expected GET or HEAD, got {method}"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", DESTRUCTIVE)
async def test_nothing_is_emptied_when_the_method_is_not_delete(
    loose_site: Site, daemon: Daemon, path: str, method: str
) -> None:
    status, headers, body = await loose_site.ask(path, method, **AUTHORIZED)
    assert (status, headers["Allow"], daemon.asked) == (405, "DELETE", [])
    if method != "HEAD":
        assert msgspec.json.decode(body) == {"error": f"expected DELETE, got {method}"}


@pytest.mark.parametrize("path", MONITORING)
async def test_monitoring_point_answers_with_its_view(site: Site, path: str) -> None:
    status, _, body = await site.ask(path, **AUTHORIZED)
    assert (status, msgspec.json.decode(body)) == (200, {"path": path})


@pytest.mark.parametrize("path", DESTRUCTIVE)
async def test_nothing_is_emptied_when_that_is_not_allowed(site: Site, daemon: Daemon, path: str) -> None:
    status, _, body = await site.ask(path, "DELETE", **AUTHORIZED)
    assert (status, daemon.asked) == (403, [])
    assert "ALLOW_DESTRUCTIVE_HTTP" in msgspec.json.decode(body)["error"]


@pytest.mark.parametrize("path", DESTRUCTIVE)
async def test_nothing_is_emptied_without_the_right_token(loose_site: Site, daemon: Daemon, path: str) -> None:
    statuses = [
        (await loose_site.ask(path, "DELETE"))[0],
        (await loose_site.ask(path, "DELETE", Authorization="Bearer wrong"))[0],
    ]
    assert (statuses, daemon.asked) == ([401, 401], [])


@pytest.mark.parametrize("path", DESTRUCTIVE)
async def test_nothing_is_emptied_when_no_token_is_configured(daemon: Daemon, path: str) -> None:
    http = open_http("127.0.0.1", 0, tokens=Tokens(), views=daemon.views(), allow_destructive=True)
    async with http as port, ClientSession() as session:
        status, _, _ = await Site(session, port).ask(path, "DELETE", Authorization="Bearer ")
    assert (status, daemon.asked) == (403, [])


COUNTS_AND_STATES = ["/status", "/shards", "/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats"]


async def test_reads_are_open_only_where_that_is_allowed(daemon: Daemon) -> None:
    http = open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views(), opens_reads=True)
    async with http as port, ClientSession() as session:
        site = Site(session, port)
        for path in PROTECTED:
            status, _, body = await site.ask(path)
            assert status == (200 if path in COUNTS_AND_STATES else 401), path
            assert b"worker-1" not in body
        assert b"worker-1" in (await site.ask("/status", **AUTHORIZED))[2]
        assert (await site.ask("/status", Host="evil.example"))[0] == 403
        assert (await site.ask("/status", Authorization="Bearer wrong"))[0] == 401


async def test_viewers_see_counts_and_names_and_change_nothing(daemon: Daemon) -> None:
    http = open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views(), allow_destructive=True)
    async with http as port, ClientSession() as session:
        site = Site(session, port)
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
    async def fail(*_: object) -> tuple[int, dict[str, Any]]:
        return 503, {"error": "shard-1: SECRET"}

    async def find(*_: object) -> tuple[int, dict[str, Any]]:
        return 200, {"requestId": "r1", "status": "succeeded", "result": msgspec.Raw(b'{"SECRET": 1}'), "error": None}

    views = replace(daemon.views(), operation=find, tenant=fail)
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=views) as port, ClientSession() as session:
        site = Site(session, port)
        assert msgspec.json.decode((await site.ask("/operations/r1", **VIEWING))[2]) == {
            "requestId": "r1",
            "status": "succeeded",
            "error": None,
        }
        failed = await site.ask("/tenants/b/l", **VIEWING)
        assert (failed[0], b"SECRET" in failed[2], b"operators" in failed[2]) == (503, False, True)
        assert b"SECRET" in (await site.ask("/tenants/b/l", **AUTHORIZED))[2]
        assert b"businessId" in (await site.ask("/operations/r1?businessId=b", **VIEWING))[2]


OWN_OPERATION = "/operations/r1?businessId=b&locationId=l"


async def test_operation_waits_before_it_is_looked_up(site: Site, daemon: Daemon) -> None:
    assert (await site.ask(f"{OWN_OPERATION}&wait=0.01", **AUTHORIZED))[0] == 404
    assert daemon.asked == [("wait", "operator", "r1", "b", "l", 0.01), ("r1", "b", "l")]
    waiting = [asyncio.create_task(site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED)) for _ in range(VIEWS_AT_ONCE)]
    await eventually(lambda: daemon.waiting == VIEWS_AT_ONCE)
    async with asyncio.timeout(10):
        assert (await site.ask(OWN_OPERATION, **AUTHORIZED))[0] == 404
    for one in waiting:
        one.cancel()
    await eventually(lambda: not daemon.waiting)  # a caller that has gone waits no longer


async def test_operation_that_is_waited_for_is_answered_at_a_stop(daemon: Daemon, patient_stop: float) -> None:
    async with ClientSession() as session:
        async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port:
            waiting = asyncio.create_task(Site(session, port).ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED))
            await eventually(lambda: daemon.waiting == 1)
        assert (await waiting)[0] == 404


async def test_wait_beyond_the_bound_is_answered_at_once(site: Site, daemon: Daemon) -> None:
    daemon.waiting_max = 2
    waiting = [asyncio.create_task(site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED)) for _ in range(2)]
    await eventually(lambda: daemon.waiting == 2)
    beyond = await site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED)
    for one in waiting:
        one.cancel()
    await eventually(lambda: not daemon.waiting)
    answered = await site.ask(f"{OWN_OPERATION}&wait=0.01", **AUTHORIZED)
    assert [(status, "Retry-After" in headers) for status, headers, _ in (beyond, answered)] == [
        (404, True),
        (404, False),
    ]


async def test_probe_is_answered_while_answers_that_last_have_all_connections(daemon: Daemon) -> None:
    limits = ConnectionLimits(count=4)
    http = open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views(), limits=limits)
    async with http as port, ClientSession() as session:
        site = Site(session, port)
        waiting = [asyncio.create_task(site.ask(f"{OWN_OPERATION}&wait=20", **AUTHORIZED)) for _ in range(3)]
        waiting.append(asyncio.create_task(site.ask("/events", **AUTHORIZED)))
        await eventually(lambda: daemon.waiting == 3)
        for _ in range(3):
            assert (await site.ask("/livez"))[0] == 200
        assert await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED) != (set(), set(waiting))
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)


@pytest.mark.parametrize(
    "query",
    ["wait=x", "wait=-1", "wait=20.1", "wait=nan", "wait=inf", "wait=1&wait=2", "wait=1", "wait=1&businessId=b"],
)
async def test_wait_is_a_number_of_seconds_for_a_named_tenant(site: Site, daemon: Daemon, query: str) -> None:
    tenant = "" if query in {"wait=1", "wait=1&businessId=b"} else "&businessId=b&locationId=l"
    status, _, body = await site.ask(f"/operations/r1?{query}{tenant}", **AUTHORIZED)
    assert (status, daemon.asked) == (400, [])
    assert b"wait: expected" in body


@pytest.mark.parametrize(
    ("tokens", "path", "expected"),
    [
        (Tokens(viewer=VIEWER_TOKEN), "/status", "API_VIEWER_TOKEN"),
        (BOTH_TOKENS, "/status", "API_TOKEN or API_VIEWER_TOKEN"),
        (BOTH_TOKENS, "/cache/keys", "API_TOKEN"),
    ],
)
async def test_refusal_names_the_tokens_that_help(daemon: Daemon, tokens: Tokens, path: str, expected: str) -> None:
    async with open_http("127.0.0.1", 0, tokens=tokens, views=daemon.views()) as port, ClientSession() as session:
        status, _, body = await Site(session, port).ask(path)
    assert (status, msgspec.json.decode(body)["error"].rpartition("value of ")[2]) == (401, expected)


async def test_each_call_of_an_operator_is_logged(daemon: Daemon) -> None:
    http = open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views(), allow_destructive=True)
    with capture_logs() as logs:
        async with http as port, ClientSession() as session:
            site = Site(session, port)
            for headers in (AUTHORIZED, VIEWING, {}):
                await site.ask("/operations/r%2F1?businessId=b&locationId=l", **headers)
            await site.ask("/sqs/purge?queue=orders", "DELETE", **AUTHORIZED)
    assert [{**entry, "log_level": ""} for entry in logs if entry["event"] == "http.called"] == [
        {
            "event": "http.called",
            "log_level": "",
            "role": "operator",
            "peer": "127.0.0.1",
            "method": method,
            "path": path,
            "about": about,
            "refused": None,
        }
        for method, path, about in [
            ("GET", "/operations/{requestId}", {"requestId": "r/1", "businessId": "b", "locationId": "l"}),
            ("DELETE", "/sqs/purge", {"queue": "orders"}),
        ]
    ]
    assert TOKEN not in str(logs)


@pytest.mark.parametrize("path", DESTRUCTIVE)
async def test_call_of_an_operator_that_is_not_allowed_is_logged(site: Site, path: str) -> None:
    with capture_logs() as logs:
        await site.ask(path, "DELETE", **AUTHORIZED)
    calls = [(entry["path"], entry["refused"]) for entry in logs if entry["event"] == "http.called"]
    assert calls == [(path.partition("?")[0], 403)]
    assert not [entry for entry in logs if entry["event"] == "operator.acted"]


async def test_operators_calls_beyond_the_rate_are_logged_once_a_second(daemon: Daemon, stopped_clock: None) -> None:
    limits = ConnectionLimits(calls_per_s=0.01, calls_burst=1)
    http = open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views(), limits=limits)
    with capture_logs() as logs:
        async with http as port, ClientSession() as session:
            site = Site(session, port)
            for headers in (AUTHORIZED, VIEWING, {}, AUTHORIZED, AUTHORIZED, AUTHORIZED):
                await site.ask("/operations/r1?businessId=b&locationId=l", **headers)
    refused = [entry for entry in logs if entry["event"] == "http.called" and entry["refused"]]
    assert [(one["path"], one["refused"], one["about"]["businessId"]) for one in refused] == [
        ("/operations/{requestId}", 429, "b")
    ]


async def test_each_action_is_logged_with_its_facts_and_its_result(daemon: Daemon) -> None:
    http = open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views(), allow_destructive=True)
    with capture_logs() as logs:
        async with http as port, ClientSession() as session:
            site = Site(session, port)
            await site.ask("/leases/s%201/release", "POST", **AUTHORIZED)
            async with session.post(
                f"http://127.0.0.1:{port}/held/retry", data=b'{"target": "shard a"}', headers=AUTHORIZED
            ) as response:
                assert response.status == 200
            await site.ask("/held/retry", "POST", **AUTHORIZED)
            await site.ask("/tenants/b/l/pause", "POST", **AUTHORIZED)
            await site.ask("/sqs/purge?queue=orders", "DELETE", **AUTHORIZED)
            await site.ask("/cache/clear", "DELETE", **AUTHORIZED)
    acted = [entry for entry in logs if entry["event"] == "operator.acted"]
    retried = {"retried": 1, "asked": 0, "notAsked": 0}
    assert [(one["action"], one["asked"], one["outcome"], one["error"]) for one in acted] == [
        ("release_lease", {"streamShard": "s 1"}, {"how": "handed over"}, None),
        ("retry_held", {"target": "shard a"}, retried, None),
        ("retry_held", None, retried, None),
        ("pause_tenant", {"businessId": "b", "locationId": "l", "seconds": 14_400.0}, {"weight": 0.5}, None),
        ("purge", {"queue": "orders"}, {"retryAfterSeconds": 60}, "once in 60 s"),
        ("clear_cache", None, {"cleared": 2}, None),
    ]
    assert {(one["role"], one["peer"], one["apply"]) for one in acted} == {("operator", "127.0.0.1", True)}


@pytest.mark.parametrize(
    ("word", "body"),
    [
        ("pause", b'{"seconds": 0}'),
        ("pause", b'{"seconds": 1209601}'),
        ("pause", b'{"seconds": "4h"}'),
        ("resume", b'{"seconds": 1}'),
        ("weight", b"{}"),
        ("weight", b'{"weight": 0.09}'),
        ("weight", b'{"weight": 11}'),
    ],
)
async def test_lever_beyond_its_bounds_is_refused(site: Site, daemon: Daemon, word: str, body: bytes) -> None:
    url = f"http://127.0.0.1:{site.port}/tenants/b/l/{word}"
    async with site.session.post(url, data=body, headers=AUTHORIZED) as response:
        answer = await response.json()
    assert (response.status, list(answer), daemon.asked) == (400, ["error"], [])


async def test_peer_that_calls_too_often_is_refused_but_for_probes(daemon: Daemon, stopped_clock: None) -> None:
    limits = ConnectionLimits(calls_per_s=0.1, calls_burst=3)
    http = open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views(), limits=limits)
    async with http as port, ClientSession() as session:
        site = Site(session, port)
        statuses = [(await site.ask(path))[0] for path in ("/", "/nowhere", "/status")]
        refused = [await site.ask(path, **AUTHORIZED) for path in ("/", "/nowhere", "/status", "/metrics")]
        probes = [(await site.ask(path))[0] for path in ("/livez", "/healthz", "/readyz")]
    assert (statuses, probes) == ([200, 404, 401], [200, 200, 200])
    assert [(status, headers["Retry-After"]) for status, headers, _ in refused] == [(429, "10")] * 4


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/leases/shardId%2F1/release", None, ("release_lease", "shardId/1")),
        ("/held/retry", None, ("retry_held", None)),
        ("/held/retry", b"{}", ("retry_held", None)),
        ("/held/retry", b'{"target": "shard s 1"}', ("retry_held", "shard s 1")),
        ("/tenants/b%2F1/l/pause", None, ("b/1", "l", 4 * 3600.0, None)),
        ("/tenants/b/l/pause", b'{"seconds": 90}', ("b", "l", 90.0, None)),
        ("/tenants/b/l/resume", None, ("b", "l", 0.0, None)),
        ("/tenants/b/l/weight", b'{"weight": 0.5}', ("b", "l", None, 0.5)),
    ],
)
async def test_action_is_an_operators(daemon: Daemon, path: str, body: bytes | None, expected: tuple[str, ...]) -> None:
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views()) as port, ClientSession() as session:
        url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        refused = []
        for headers in ({}, VIEWING, {"Authorization": "Bearer wrong"}):
            async with session.post(url, data=body, headers=headers) as response:
                refused.append(response.status)
        async with session.get(url, headers=AUTHORIZED) as response:
            refused.append(response.status)
        assert (refused, daemon.asked) == ([401, 403, 401, 405], [])
        async with session.post(url, data=body, headers=AUTHORIZED) as response:
            assert response.status in {200, 202}
    assert daemon.asked == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"target": 1}', 400),
        (b'{"SECRET": 1}', 400),
        (b" " * 65_537, 413),
    ],
)
async def test_body_that_cannot_be_meant_is_refused(site: Site, daemon: Daemon, body: bytes, expected: int) -> None:
    url = f"http://127.0.0.1:{site.port}/held/retry"
    async with site.session.post(url, data=body, headers=AUTHORIZED) as response:
        answer = await response.json()
    assert (response.status, list(answer), daemon.asked) == (expected, ["error"], [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"reasons": ["invalid_json"], "businessId": "b", "locationId": "l", "limit": 5}', 200),
        (b"", 200),
        (b'{"reasons": ["other"]}', 400),
        (b'{"businessId": "b"}', 400),
        (b'{"limit": 0}', 400),
        (b'{"until": "yesterday"}', 400),
        (b'{"messageIds": ["0d8e"], "apply": true}', 200),
        (b'{"messageIds": [""]}', 400),
        (b'{"messageIds": [' + b", ".join([b'"0d8e"'] * 1001) + b"]}", 400),
        (b'{"aply": true}', 400),
    ],
)
@pytest.mark.parametrize("action", ["list", "replay", "discard"])
async def test_requests_about_dead_letters_are_read_strictly(
    daemon: Daemon, action: str, body: bytes, expected: int
) -> None:
    calls = await send_to_desk(daemon, action, body, expected)
    assert calls == ([(action, Actor("operator", "127.0.0.1"))] if expected == 200 else [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messageId": "0d8e", "record": "{}"}', 200),
        (b'{"messageId": "0d8e", "record": "{}", "requestId": "new", "apply": true}', 200),
        (b'{"messageId": "0d8e"}', 400),
        (b'{"messageId": "0d8e", "record": {}}', 400),
        (b'{"messageId": "", "record": "{}"}', 400),
        (b'{"messageId": "0d8e", "record": "{}", "requestId": ""}', 400),
        (b'{"messageId": "0d8e", "record": "{}", "force": true}', 400),
    ],
)
async def test_request_to_correct_a_dead_letter_is_read_strictly(daemon: Daemon, body: bytes, expected: int) -> None:
    calls = await send_to_desk(daemon, "edit", body, expected)
    assert calls == ([("edit", Actor("operator", "127.0.0.1"))] if expected == 200 else [])


async def send_to_desk(daemon: Daemon, action: str, body: bytes, expected: int) -> list[tuple[str, Actor]]:
    """Send a request as a viewer, who is refused, and as an operator; return the calls of the desk."""
    asked: list[tuple[str, Actor]] = []

    class Desk:
        """Notes the requests."""

        def __getattr__(self, name: str) -> Any:
            async def note(_: object, actor: Actor) -> tuple[int, dict[str, Any]]:
                asked.append((name, actor))
                return 200, {}

            return note

    views = replace(daemon.views(), letters=cast("Any", Desk()))
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=views) as port, ClientSession() as session:
        url = f"http://127.0.0.1:{port}/dead-letters/{action}"
        async with session.post(url, data=body, headers=VIEWING) as response:
            assert response.status == 403
        async with session.post(url, data=body, headers=AUTHORIZED) as response:
            assert response.status == expected
    return asked


async def read_events(site: Site, count: int, **headers: str) -> list[tuple[str, Any]]:
    """Return the first *count* events of the stream: their names and their data."""
    async with site.session.get(f"http://127.0.0.1:{site.port}/events", headers=headers) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        texts = [await response.content.readuntil(b"\n\n") for _ in range(count)]
    parts = [re.fullmatch(rb"event: (\w+)\ndata: (.*)\n\n", text) for text in texts]
    return [(found[1].decode(), msgspec.json.decode(found[2])) for found in parts if found is not None]


async def test_listener_that_goes_away_at_once_is_no_error(daemon: Daemon) -> None:
    request = b"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % TOKEN.encode()
    with capture_logs() as logs:
        async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port:
            for turns in range(8):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                for _ in range(turns):
                    await asyncio.sleep(0)
                writer.transport.abort()
            await asyncio.sleep(0.05)
    assert [entry for entry in logs if entry["event"] == "http.failed"] == []


@pytest.mark.parametrize(("headers", "role"), [(AUTHORIZED, "operator"), (VIEWING, "viewer")])
async def test_events_are_the_answers_of_the_role(daemon: Daemon, headers: dict[str, str], role: str) -> None:
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views()) as port, ClientSession() as session:
        site = Site(session, port)
        events = await read_events(site, 2, **headers)
        assert events == [
            ("status", {"role": role, "replica": "worker-1", "ready": True}),
            ("fleet", {"role": role, "stream": "operations", "replicas": []}),
        ]
        assert (await site.ask("/events"))[0] == 401
        assert (await site.ask("/events", "HEAD", **headers))[0] == 405


async def test_listeners_are_bounded_and_end_with_the_server(daemon: Daemon, patient_stop: float) -> None:
    async with ClientSession() as session, AsyncExitStack() as listening:
        async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port:
            url = f"http://127.0.0.1:{port}/events"
            responses = [
                await listening.enter_async_context(session.get(url, headers=AUTHORIZED)) for _ in range(LISTENERS_MAX)
            ]
            assert {response.status for response in responses} == {200}
            assert (await Site(session, port).ask("/events", **AUTHORIZED))[0] == 503
            assert (await Site(session, port).ask("/status", **AUTHORIZED))[0] == 200
            started = time.monotonic()
        assert time.monotonic() - started < patient_stop
        bodies = [await response.read() for response in responses]
    assert all(body.startswith(b"event: status") for body in bodies)


@pytest.mark.parametrize(("path", "listeners_max"), [("/events", LISTENERS_MAX), ("/tap", TAPS_MAX)])
async def test_place_of_a_listener_that_has_gone_is_free_at_once(
    daemon: Daemon, path: str, listeners_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "changes", partial(changes, every_s=60.0, alive_s=60.0))
    monkeypatch.setattr(server, "tapped", partial(tapped, alive_s=60.0))
    async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port, ClientSession() as session:
        url = f"http://127.0.0.1:{port}{path}"
        responses = [await session.get(url, headers=AUTHORIZED) for _ in range(listeners_max)]
        for response in responses:
            assert (response.status, bool(await response.content.readuntil(b"\n\n"))) == (200, True)
            response.close()

        async def has_place() -> bool:
            async with session.get(url, headers=AUTHORIZED) as response:
                return response.status == 200

        assert await poll_until(has_place, within_s=30.0)


async def test_tap_shows_content_to_operators_alone(daemon: Daemon) -> None:
    assert TAPS_MAX == 5
    async with open_http("127.0.0.1", 0, tokens=BOTH_TOKENS, views=daemon.views()) as port, ClientSession() as session:
        site = Site(session, port)
        refused = await site.ask("/tap?content=true", **VIEWING)
        wrong = await site.ask("/tap?outcome=fine", **AUTHORIZED)
        async with AsyncExitStack() as listening:
            with capture_logs() as logs:
                for _ in range(TAPS_MAX):
                    asking = session.get(f"http://127.0.0.1:{port}/tap?content=true", headers=AUTHORIZED)
                    response = await listening.enter_async_context(asking)
                    assert response.status == 200
            assert (await site.ask("/tap", **VIEWING))[0] == 503
    assert (refused[0], b"API_TOKEN" in refused[2], wrong[0]) == (403, True, 400)
    assert [entry["about"] for entry in logs if entry["event"] == "http.called"] == [{"content": "true"}] * TAPS_MAX


async def test_purge_is_asked_with_the_decoded_name(loose_site: Site, daemon: Daemon) -> None:
    status, headers, _ = await loose_site.ask("/sqs/purge?queue=a%2Fb%20c.fifo", "DELETE", **AUTHORIZED)
    assert (status, headers["Retry-After"]) == (429, "60")
    assert daemon.asked == [("purge", "a/b c.fifo")]


async def test_purge_is_refused_when_it_names_two_queues(loose_site: Site, daemon: Daemon) -> None:
    status, _, _ = await loose_site.ask("/sqs/purge?queue=a&queue=b", "DELETE", **AUTHORIZED)
    assert (status, daemon.asked) == (400, [])


@pytest.mark.parametrize("query", ["", "?queue=", "?name=a"])
async def test_purge_is_asked_without_a_name(loose_site: Site, daemon: Daemon, query: str) -> None:
    await loose_site.ask(f"/sqs/purge{query}", "DELETE", **AUTHORIZED)
    assert daemon.asked == [("purge", None)]


async def test_cache_is_cleared_when_that_is_allowed(loose_site: Site, daemon: Daemon) -> None:
    status, _, body = await loose_site.ask("/cache/clear", "DELETE", **AUTHORIZED)
    assert (status, msgspec.json.decode(body), daemon.asked) == (200, {"cleared": 2}, [("clear_cache",)])


async def test_head_has_the_status_of_get_and_no_body(site: Site) -> None:
    for path in (*OPEN, *PROTECTED, "/nowhere"):
        got = await site.ask(path, **AUTHORIZED)
        status, headers, body = await site.ask(path, "HEAD", **AUTHORIZED)
        assert (path, status, headers["Content-Type"], body) == (path, got[0], got[1]["Content-Type"], b"")


async def test_every_answer_is_neither_stored_nor_sniffed(site: Site) -> None:
    for path in (*OPEN, *PROTECTED, "/nowhere"):
        _, headers, _ = await site.ask(path)
        assert (path, headers["Cache-Control"], headers["X-Content-Type-Options"]) == (path, "no-store", "nosniff")
        assert headers["Server"] == "simplu-worker"


async def test_failing_view_is_500_without_detail(daemon: Daemon) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("postgres://user:secret@host")

    views = replace(daemon.views(), status=fail)
    with capture_logs() as logs:
        async with (
            open_http("127.0.0.1", 0, tokens=TOKENS, views=views) as port,
            ClientSession() as session,
        ):
            status, _, body = await Site(session, port).ask("/status", **AUTHORIZED)
            next_status, _, _ = await Site(session, port).ask("/livez")
    assert (status, next_status) == (500, 200)
    assert b"secret" not in body
    assert [(entry["path"], entry["exc_info"]) for entry in logs if entry["event"] == "http.failed"] == [
        ("/status", True)
    ]


async def test_schemas_of_messages_are_served_by_the_listed_names(site: Site) -> None:
    _, _, body = await site.ask("/schemas/")
    names = msgspec.json.decode(body)["schemas"]
    answers = [msgspec.json.decode((await site.ask(f"/schemas/{name}"))[2]) for name in names]
    assert answers == list((SCHEMAS | FEED_SCHEMAS).values())
    assert (await site.ask("/schemas/operation"))[0] == (await site.ask("/schemas/x.json"))[0] == 404


async def test_page_runs_only_files_of_this_server(site: Site) -> None:
    status, headers, body = await site.ask("/")
    page = body.decode()
    policy = headers["Content-Security-Policy"]
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ")
    assert "unsafe" not in policy
    assert re.findall(r"<style| on[a-z]+=| style=|<script[^>]*>[^<]", page) == []


async def test_files_of_the_page_are_served_small_and_need_no_other_host(site: Site) -> None:
    wanted, found = ["/"], dict[str, bytes]()
    while wanted:
        path = wanted.pop()
        status, headers, found[path] = await site.ask(path)
        assert (path, status, headers["X-Content-Type-Options"]) == (path, 200, "nosniff")
        text = found[path].decode()
        named = re.findall(r'(?:href|src)="(page/[^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        paths = [f"/page/{name.removeprefix('page/')}" for name in named]
        wanted += [one for one in paths if one not in found and one not in wanted]
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    types = {path: (await site.ask(path))[1]["Content-Type"].partition(";")[0] for path in found}
    assert {path.rpartition(".")[2]: kind for path, kind in types.items()} == {
        "/": "text/html",
        "css": "text/css",
        "js": "text/javascript",
    }
    folder = ROOT / "simplu_worker" / "status" / "page"
    assert len(found) == sum(1 for path in folder.iterdir() if path.suffix in {".html", ".css", ".js"})
    assert sum(map(len, found.values())) < 120_000


async def test_page_offers_every_reason_of_dead_letters(site: Site) -> None:
    _, _, body = await site.ask("/")
    assert set(re.findall(r"<option[^>]*>(\w+)", body.decode())) == {"any", *map(str, DeadLetterReason)}


@pytest.mark.parametrize("path", ["/page/files.py", "/page/index.html", "/page/", "/page/%2e%2e%2fserver.py"])
async def test_nothing_but_the_files_of_the_page_is_served(site: Site, path: str) -> None:
    status, _, _ = await site.ask(path)
    assert status == 404


async def test_page_holds_no_secret(site: Site) -> None:
    _, _, body = await site.ask("/")
    assert TOKEN.encode() not in body


async def test_server_stops_at_once_when_a_connection_is_kept_alive(daemon: Daemon, patient_stop: float) -> None:
    async with ClientSession() as session:
        async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port:
            await Site(session, port).ask("/livez")
            silent, writer = await asyncio.open_connection("127.0.0.1", port)
            started = time.monotonic()
        stopped_after_s = time.monotonic() - started
        assert await silent.read() == b""
        writer.close()
        async with open_http("127.0.0.1", port, tokens=TOKENS, views=daemon.views()) as again:
            assert (port, 200) == (again, (await Site(session, again).ask("/livez"))[0])
    assert stopped_after_s < patient_stop


async def test_server_says_so_when_the_port_is_taken(daemon: Daemon) -> None:
    async with open_http("127.0.0.1", 0, tokens=TOKENS, views=daemon.views()) as port:
        with pytest.raises(OSError, match=str(port)):
            async with open_http("127.0.0.1", port, tokens=TOKENS, views=daemon.views()):
                pass


MALFORMED = [
    b"GET /status HTTP/1.1\r\nAuthorization: Bearer secret-token\x00\r\n\r\n",
    b"GET /status HTTP/1.1\r\nAuthorization Bearer secret-token\r\n\r\n",
    b"GET /secret-token HTTP/9.9.9\r\n\r\n",
    b"secret-token\r\n\r\n",
    b"\x16\x03\x01\x02secret-token\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nContent-Length: secret-token\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nX: " + b"secret-token" * 5000 + b"\r\n\r\n",
    b"GET http://[secret-token/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: \xffsecret-token\r\n\r\n",
]


async def answer_to(port: int, sent: bytes) -> bytes:
    """Return everything that the server answers to *sent* on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("sent", MALFORMED)
async def test_malformed_request_is_neither_repeated_nor_logged(
    site: Site, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with capture_logs() as logs:
        answer = await answer_to(site.port, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert list(msgspec.json.decode(body)) == ["error"]
    assert b"X-Content-Type-Options: nosniff" in head
    assert [entry["event"] for entry in logs] == ["http.malformed"]
    assert b"secret-token" not in answer
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []
    assert "secret-token" not in f"{logs}{caplog.text}"


@pytest.mark.parametrize("path", ["/livez", "/nowhere"])
async def test_unknown_expectation_is_not_repeated(site: Site, path: str) -> None:
    answer = await answer_to(site.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nExpect: secret-token\r\n\r\n".encode())
    assert (answer.partition(b" ")[2][:3], b"secret-token" in answer) == (b"400", False)


async def test_malformed_body_is_neither_repeated_nor_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    sent = b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nsecret-token\r\nzz\r\n\r\n"
    with capture_logs() as logs:
        answer = await answer_to(site.port, sent)
    assert b"secret-token" not in answer
    assert {entry["event"] for entry in logs} <= {"http.malformed"}
    assert "secret-token" not in f"{logs}{caplog.text}"
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("path", ["/status", "/shards", "/sqs/stats", "/handler/stats", "/cache/stats", "/cache/keys"])
async def test_answer_is_shared_among_callers(daemon: Daemon, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SharedAnswer", partial(SharedAnswer, fresh_s=60.0))  # a busy machine connects slowly
    calls = 0

    async def slow(*_: object) -> tuple[int, dict[str, Any]]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        return 200, {"call": calls}

    def quick() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {"call": calls}

    views = replace(
        daemon.views(),
        status=quick,
        shards=slow,
        sqs_stats=slow,
        handler_stats=slow,
        cache_stats=slow,
        cache_keys=slow,
    )
    async with (
        open_http("127.0.0.1", 0, tokens=TOKENS, views=views) as port,
        ClientSession() as session,
    ):
        answers = await asyncio.gather(*(Site(session, port).ask(path, **AUTHORIZED) for _ in range(60)))
    assert calls == 1
    assert {msgspec.json.decode(body)["call"] for status, _, body in answers if status == 200} == {1}
    refused = [headers for status, headers, _ in answers if status != 200]
    assert {headers["Retry-After"] for headers in refused} <= {"1"}


async def test_operations_are_looked_up_a_few_at_a_time(daemon: Daemon) -> None:
    running = longest = 0
    are_refused = asyncio.Event()

    async def look_up(*_: object) -> tuple[int, dict[str, Any]]:
        nonlocal running, longest
        running += 1
        longest = max(longest, running)
        await are_refused.wait()  # or a place would be free for a request that comes late
        await asyncio.sleep(0.01)
        running -= 1
        return 200, {}

    views = replace(daemon.views(), operation=look_up)
    async with (
        open_http("127.0.0.1", 0, tokens=TOKENS, views=views) as port,
        ClientSession() as session,
    ):
        asks = (Site(session, port).ask(f"/operations/{number}", **AUTHORIZED) for number in range(60))
        asking = [asyncio.create_task(ask) for ask in asks]
        await eventually(lambda: sum(one.done() for one in asking) == 60 - PATH_REQUESTS_MAX)
        are_refused.set()
        answers = await asyncio.gather(*asking)
        probe = await Site(session, port).ask("/livez")
    assert longest == VIEWS_AT_ONCE
    assert Counter(status for status, _, _ in answers) == {200: PATH_REQUESTS_MAX, 503: 60 - PATH_REQUESTS_MAX}
    assert probe[0] == 200


async def test_refused_requests_take_no_place(daemon: Daemon) -> None:
    held = asyncio.Event()

    async def hold(*_: object) -> tuple[int, dict[str, Any]]:
        await held.wait()
        return 200, {}

    views = replace(daemon.views(), operation=hold)
    async with (
        open_http("127.0.0.1", 0, tokens=TOKENS, views=views) as port,
        ClientSession() as session,
    ):
        site = Site(session, port)
        asking = asyncio.create_task(site.ask("/operations/r", **AUTHORIZED))
        refused = await asyncio.gather(*(site.ask("/operations/r") for _ in range(60)))
        held.set()
        assert {status for status, _, _ in refused} == {401}
        assert (await asking)[0] == 200


async def test_server_answers_over_both_families_when_it_has_no_host(daemon: Daemon) -> None:
    require_ipv6()
    async with open_http(None, 0, tokens=TOKENS, views=daemon.views()) as port, ClientSession() as session:
        for host in ("127.0.0.1", "[::1]"):
            assert (await Site(session, port, host).ask("/livez"))[0] == 200


async def test_server_answers_over_ipv4_when_the_kernel_has_no_ipv6(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IPV6", "2001:db8::1")
    async with open_http(None, 0, tokens=TOKENS, views=daemon.views()) as port, ClientSession() as session:
        assert (await Site(session, port).ask("/livez"))[0] == 200


async def test_server_does_not_start_when_another_program_has_the_port_of_one_family(daemon: Daemon) -> None:
    require_ipv6()
    with socket.create_server(("::", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            async with open_http(None, port, tokens=TOKENS, views=daemon.views()):
                pass
        socket.create_server(("127.0.0.1", port)).close()
