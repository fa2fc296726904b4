from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from support.network.tls_front import make_certificate
from support.reader_world import eventually

from simplu_worker.bulkheads import Trouble
from simplu_worker.consumers.operation_taps import TapFilter
from simplu_worker.feed.types import DestinationView
from simplu_worker.shards.health.assessment import Health, ShardObservation, health_view
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.listing import ListRequest, SearchPosition
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_query import ShardRows
from simplu_worker.status import lookups, tls, views
from simplu_worker.status.lookups import Lookups
from simplu_worker.status.request_bodies import ListQuery, OperationQuery, PurgeQuery, TapQuery, read_query
from simplu_worker.status.tls import ServerTls
from simplu_worker.status.words import BadRequestError
from simplu_worker.vocabulary import Absence, Failure, OperationStatus, TargetKind, TenantState

NOON = datetime(2026, 11, 27, 12, 0, 0, 250_000, tzinfo=UTC)
AT = "2026-11-27T12:00:00.250000Z"
ROW = {
    "business_id": "b",
    "location_id": "l",
    "business_type": "dental",
    "state": TenantState.ACTIVE,
    "moved_to": "shard-2",
    "created_at": NOON,
    "paused_until": NOON,
    "weight": 2.0,
    "operations_per_s": 50.0,
    "bytes_per_s": None,
    "business_weight": 1.0,
    "business_operations_per_s": None,
    "business_bytes_per_s": 1000.0,
}
LIMITS = {"operationsPerSecond": 50.0, "bytesPerSecond": None}
OF_BUSINESS = {"weight": 1.0, "operationsPerSecond": None, "bytesPerSecond": 1000.0}


def test_tenant_with_and_without_the_numbers_of_its_rows() -> None:
    members = {
        "businessId": "b",
        "locationId": "l",
        "businessType": "dental",
        "state": "active",
        "shardId": "shard-1",
        "movedTo": "shard-2",
        "createdAt": NOON,
        "pausedUntil": NOON,
        "weight": 2.0,
        "operationsPerSecond": 50.0,
        "business": OF_BUSINESS,
    }
    counted = ROW | {"resource_count": 3, "operation_count": 4}
    assert views.tenant_view("shard-1", counted) == members | {"bytesPerSecond": None, "resources": 3, "operations": 4}
    assert {name for name, value in views.tenant_view("shard-1", ROW).items() if value is not None} == set(members)
    alone = ROW | {"business_bytes_per_s": None}
    shares = [views.tenant_view("shard-1", alone | {"business_weight": weight})["business"] for weight in (1.0, 2.0)]
    assert shares == [None, {"weight": 2.0, "operationsPerSecond": None, "bytesPerSecond": None}]


def test_refused_control_message_is_told_without_its_request_id() -> None:
    refused = RejectedRequest("r", "invalid", "no name", "letters", "control", NOON, "shard-1", message_id="m-1")
    assert views.refused_view(refused) == {
        "reason": "invalid",
        "error": "no name",
        "at": NOON,
        "queue": "control",
        "messageId": "m-1",
        "deadLetterQueue": "letters",
    }
    assert views.refused_view(None) is views.refused_view(Absence.MOVING) is None


def test_controls() -> None:
    view = {"shardId": "shard-1", "pausedUntil": NOON, "weight": 2.0} | LIMITS
    assert views.controls_view("shard-1", ROW) == view
    of_business = views.business_controls_view(ShardRows([("shard-1", ROW)], ["shard-2"]))
    assert of_business == {"shards": [view], "shardsWithoutAnswer": ["shard-2"]}
    assert views.limit_text(LIMITS | {"business": OF_BUSINESS}) == "50 operations/s and 1000 bytes/s of its business"
    assert views.limit_text({}) == "none"
    is_moving = "expected an active tenant, got one that is moving; try again once its move has ended"
    assert views.controls_error(Absence.MOVING) == is_moving
    assert views.controls_error(TenantState.DESTROYED) == "expected an active tenant, got one that is destroyed"


def test_unforeseen_error() -> None:
    trouble = Trouble(TargetKind.QUEUE, "orders", "poll", "KeyError", 3, NOON, NOON, 0.0)
    assert views.trouble_view(trouble) == {
        "target": "queue",
        "about": "orders",
        "loop": "poll",
        "error": "KeyError",
        "count": 3,
        "since": "2026-11-27T12:00:00+00:00",
        "at": "2026-11-27T12:00:00+00:00",
    }


def test_feed_without_the_secrets_of_its_errors() -> None:
    error = "postgres://user:secret@host/db refused"
    found = views.feed_state(2, [DestinationView("a", 1.26, 3, 4, ("s-1",), error), DestinationView("b")])
    one, other = found.destinations
    assert (found.published_shards, one.name, one.lag_seconds, one.shards, one.waiting_shards) == (2, "a", 1.3, 3, 4)
    assert (one.stopped_shards, other.stopped_shards, other.error) == (["s-1"], [], None)
    assert ("refused" in str(one.error), "secret" in str(one.error)) == (True, False)


def test_shard_is_its_address_and_its_health() -> None:
    place = "postgres://db.internal/one"
    address = ShardAddress("shard-1", place, is_active=False, business_count=3, business_max=9, last_health_check="now")
    health = Health(ShardObservation(error="no answer"))
    shown: dict[str, Any] = views.shard_view(InspectedShard(address, health))
    own = {"shardId": "shard-1", "place": address.place, "isActive": False, "businesses": 3, "maxBusinesses": 9}
    assert shown == own | {"lastHealthCheck": address.last_health_check} | health_view(health)


Pairs = list[tuple[str, str]]
TENANT = [("businessId", "b"), ("locationId", "l")]
AFTER = SearchPosition(datetime(2026, 3, 1, tzinfo=UTC), "r")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], ListRequest()),
        ([("resourceType", ""), ("limit", ""), ("businessId", ""), ("businessId", "b")], ListRequest()),
        ([("resourceType", "t"), ("resourceId", "i")], ListRequest(resource_type="t", resource_id="i")),
        (
            [("since", "2026-01-31T10:00:00+01:00"), ("until", "2026-02-01T00:00:00Z")],
            ListRequest(since=datetime(2026, 1, 31, 9, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC)),
        ),
        ([("status", "failed")], ListRequest(status=OperationStatus.FAILED)),
        ([("error", "not_found")], ListRequest(error=Failure.NOT_FOUND)),
        ([("limit", "7")], ListRequest(limit=7)),
        ([("after", AFTER.encode())], ListRequest(after=AFTER)),
    ],
)
def test_list_asks_for_its_members(pairs: Pairs, expected: ListRequest) -> None:
    assert read_query([*TENANT, *pairs], ListQuery).request() == expected


@pytest.mark.parametrize(
    "pairs",
    [
        [("businessId", "b")],
        [("businessId", "b"), ("locationId", "\0")],
        [*TENANT, ("resource_type", "t")],
        [*TENANT, ("x\ud800", "t")],
        [*TENANT, ("locationId", "m")],
        *(
            [*TENANT, pair]
            for pair in [
                *[("resourceType", "\0"), ("resourceId", "\ud800"), ("since", "2026-01-02"), ("status", "pending")],
                *[("until", "2026-01-02T00:00:00"), ("limit", "501"), ("after", "r")],
            ]
        ),
        [*TENANT, ("since", "2026-01-02T00:00:00Z"), ("until", "2026-01-01T00:00:00Z")],
        [*TENANT, ("error", "not_found"), ("status", "succeeded")],
    ],
)
def test_list_is_refused_when_it_cannot_be_meant(pairs: Pairs) -> None:
    with pytest.raises(BadRequestError):
        read_query(pairs, ListQuery).request()


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], TapFilter()),
        ([*TENANT, ("outcome", "")], TapFilter(business_id="b", location_id="l")),
        ([("operation", "create"), ("outcome", "dead_letter")], TapFilter(kind="create", outcome="dead_letter")),
        ([("resourceType", "t"), ("content", "true")], TapFilter(resource_type="t", shows_content=True)),
        ([("content", "false")], TapFilter()),
    ],
)
def test_tap_is_a_filter(pairs: Pairs, expected: TapFilter) -> None:
    assert read_query(pairs, TapQuery).chosen == expected


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        *((TapQuery, [pair]) for pair in [("businessId", "b"), ("operation", "upsert"), ("content", "yes")]),
        (TapQuery, [("outcome", "succeeded"), ("outcome", "duplicate")]),
        *((OperationQuery, [pair]) for pair in [*TENANT, ("wait", "1")]),
        *((OperationQuery, [*TENANT, ("wait", text)]) for text in ("nan", "-1", "20.1", "soon")),
        (PurgeQuery, [("name", "orders")]),
    ],
)
def test_query_that_cannot_be_meant_is_refused(kind: type[TapQuery], pairs: Pairs) -> None:
    with pytest.raises(BadRequestError):
        read_query(pairs, kind)


class Shards:
    def __init__(self) -> None:
        self.lookups = self
        self.decided: set[str] = set()
        self.looks: list[str] = []
        self.failure: Exception | None = None
        self.silent = "nobody"

    async def is_decided(self, _: str, business_id: str, request_id: str) -> bool:
        self.looks.append(request_id)
        if business_id == self.silent:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return request_id in self.decided

    def is_tenant(self, *_: str) -> bool:
        return True

    def begin(
        self, request_id: str, business_id: str = "t", within_s: float = 60.0, closing: asyncio.Event | None = None
    ) -> asyncio.Task[None]:
        answers = Lookups(
            cast(Any, self), cast(Any, None), cast(Any, None), cast(Any, None), fleet=None, runbook_url=None
        )
        waiting = answers.wait_for_operation(request_id, business_id, "l", within_s, closing or asyncio.Event())
        return asyncio.create_task(waiting)

    async def look(self, count: int = 2) -> None:
        seen = len(self.looks)
        await eventually(lambda: len(self.looks) >= seen + count)


async def test_wait_ends_when_its_operation_is_decided(monkeypatch: Any) -> None:
    monkeypatch.setattr(lookups, "LOOK_EVERY_S", 0.001)
    shards = Shards()
    shards.silent = "s"
    first, other, silent = shards.begin("a"), shards.begin("b"), shards.begin("a", "s")
    await shards.look(4)
    shards.decided.add("a")
    await first
    assert not other.done()
    assert not silent.done()
    other.cancel()
    silent.cancel()


async def test_wait_ends_after_its_time_or_at_a_stop(monkeypatch: Any) -> None:
    monkeypatch.setattr(lookups, "LOOK_EVERY_S", 0.001)
    shards, stop = Shards(), asyncio.Event()
    await shards.begin("a", within_s=0.01)
    waiting = shards.begin("a", closing=stop)
    await shards.look()
    stop.set()
    await waiting


class _Worker(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()


@contextmanager
def a_worker(certificate: tuple[Path, Path] | None = None, status: int = 200) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), type("Worker", (_Worker,), {"status": status})) as server:
        if certificate is not None:
            tls = ServerTls(*certificate)
            tls.read()
            server.socket = tls.context.wrap_socket(server.socket, server_side=True)
        serving = Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_worker_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    certificate = make_certificate(tmp_path) if scheme == "https" else None
    if certificate is not None:
        monkeypatch.setenv("HTTP_TLS_CERT_FILE", str(certificate[0]))
    with a_worker(certificate) as port:
        monkeypatch.setenv("HTTP_PORT", str(port))
        tls.main()


def test_service_link_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_worker() as port:
        monkeypatch.setattr(tls, "DEFAULT_PORT", str(port))
        monkeypatch.setenv("HTTP_PORT", "tcp://10.0.0.1:80")
        tls.main()
