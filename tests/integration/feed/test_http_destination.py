"""Receivers over HTTP as destinations: signed, in order by resource, and never where the feed may not go."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError
from support.feed.events import feed_event
from support.feed.publishing import expected_by_key, first_by_key, open_webhook, publish_all

from simplu_worker.feed.destinations import (
    CONNECTIONS,
    HttpDestination,
    open_destination,
    open_guarded_session,
    pack_webhook,
)
from simplu_worker.feed.feed_file import AllowedHosts, DestinationMembers, FeedDestination
from simplu_worker.feed.types import Delivered, Disabled, FeedEvent, Refused, RetryLater
from simplu_worker.network_errors import NO_URL
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import DestinationKind, FeedKind

SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in range(3))
LOOPBACK = AllowedHosts.parse(("127.0.0.1",))
TIMEOUT_S = 1.0  # of a request to a receiver that hangs

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Receiver:
    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.ids: list[tuple[str, str]] = []  # key and id of the events that got a 2xx, in order
        self.respond: Respond = self.accept
        self.busy: set[str] = set()  # keys with a request that has not ended
        self.busy_max = 0
        self.is_over = asyncio.Event()  # what hangs ends with the test

    async def accept(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.path, dict(request.headers), body))
        event = json.loads(body)
        key = event.get("partitionkey", event.get("resourceId"))
        assert key not in self.busy
        self.busy.add(key)
        self.busy_max = max(self.busy_max, len(self.busy))
        try:
            answer = await self.respond(request)
        finally:
            self.busy.discard(key)
        if answer.status < 300:
            self.ids.append((key, event.get("id", "")))
        return answer


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.is_over.set()
    await runner.cleanup()


@pytest.fixture
async def webhook(receiver: Receiver) -> AsyncIterator[HttpDestination]:
    async with open_webhook(f"{receiver.url}/hooks?v=1", SECRETS[:1], LOOPBACK) as destination:
        yield destination


@pytest.fixture
async def impatient(receiver: Receiver) -> AsyncIterator[HttpDestination]:
    async with open_webhook(receiver.url, SECRETS[:1], LOOPBACK, timeout_s=TIMEOUT_S) as destination:
        yield destination


def resources(count: int, keys: int) -> list[FeedEvent]:
    return [feed_event(number, f"p-{number % keys}") for number in range(count)]


def status(number: int, **headers: str) -> Respond:
    async def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(status=number, headers={name.replace("_", "-"): text for name, text in headers.items()})

    return respond


async def test_webhook_is_a_cloud_event_that_the_library_verifies(receiver: Receiver, webhook: HttpDestination) -> None:
    event = feed_event(data='{"name": "Zoë"}'.encode())
    assert await webhook.publish([event]) == [Delivered()]
    ((path, headers, body),) = receiver.requests
    assert (path, headers["Content-Type"]) == ("/hooks", "application/cloudevents+json; charset=UTF-8")
    assert (headers["webhook-id"], headers["User-Agent"]) == (event.id, "simplu-worker")
    assert Webhook(SECRETS[0]).verify(body, headers)["data"] == {"name": "Zoë"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRETS[0]).verify(body.replace(b"patient", b"Patient"), headers)


async def test_each_try_is_signed_by_every_secret_with_its_own_time(receiver: Receiver) -> None:
    now = utc_now()
    async with open_guarded_session("127.0.0.1", LOOPBACK, connections=1, timeout_s=30) as session:
        destination = HttpDestination(session, receiver.url, pack_webhook(SECRETS[:2]), utc=lambda: now)
        await destination.publish([feed_event()])
        now += timedelta(hours=3)
        await destination.publish([feed_event()])
    (_, first, body), (_, second, second_body) = receiver.requests
    for secret in SECRETS[:2]:
        assert Webhook(secret).verify(body, first)["id"] == "token-7-0"
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(SECRETS[2]).verify(body, first)
    assert (first["webhook-id"], body) == (second["webhook-id"], second_body)
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 3 * 3600


@pytest.mark.slow
async def test_resource_arrives_in_order_from_a_receiver_that_fails(
    receiver: Receiver, webhook: HttpDestination
) -> None:
    answers = itertools.cycle([204, 500, 204, 204, 503, 204, 429, 204, 204, 204])

    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.001)
        return web.Response(status=next(answers))

    receiver.respond = respond
    events = resources(600, 97)
    await publish_all(webhook, events)
    assert len(receiver.ids) == len(events)
    assert first_by_key(receiver.ids) == expected_by_key(events)
    assert 1 < receiver.busy_max <= CONNECTIONS


async def test_event_that_is_refused_holds_no_other(receiver: Receiver, webhook: HttpDestination) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        return web.Response(status=422 if b"bad" in await request.read() else 200)

    receiver.respond = respond
    first, *others = await webhook.publish([feed_event(0, "bad"), *resources(38, 38)])
    assert isinstance(first, Refused)
    assert "got 422" in first.error
    assert others == [Delivered()] * 38


async def test_receiver_that_hangs_is_left_after_the_time_of_one_request(
    receiver: Receiver, impatient: HttpDestination
) -> None:
    async def respond(_: web.Request) -> web.StreamResponse:
        await receiver.is_over.wait()
        return web.Response()

    receiver.respond = respond
    started = asyncio.get_running_loop().time()
    deliveries = await impatient.publish(resources(150, 150))
    assert {type(delivery) for delivery in deliveries} == {RetryLater}
    assert asyncio.get_running_loop().time() - started < 10 * TIMEOUT_S  # one after the other they would take 32
    assert len(receiver.requests) <= CONNECTIONS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (status(500), (RetryLater, None)),
        (status(429, Retry_After="7"), (RetryLater, 7.0)),
        (status(410), (Disabled, None)),
    ],
)
async def test_receiver_that_takes_nothing_is_asked_no_more(
    receiver: Receiver, webhook: HttpDestination, answer: Respond, expected: object
) -> None:
    receiver.respond = answer
    deliveries = await webhook.publish(resources(150, 150))
    assert {(type(one), getattr(one, "after_s", None)) for one in deliveries} == {expected}
    assert len(receiver.requests) <= CONNECTIONS


async def test_redirect_is_not_followed(receiver: Receiver, webhook: HttpDestination) -> None:
    receiver.respond = status(307, Location=f"{receiver.url}/elsewhere")
    (delivery,) = await webhook.publish([feed_event()])
    assert isinstance(delivery, RetryLater)
    assert "redirect" in delivery.error
    assert [path for path, _, _ in receiver.requests] == ["/hooks"]


@pytest.mark.parametrize("how", ["long", "slow", "cut", "compressed"])
async def test_body_of_an_answer_neither_matters_nor_costs(receiver: Receiver, how: str) -> None:
    sent = 0

    async def respond(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse(headers={"Content-Encoding": "gzip"} if how == "compressed" else {})
        await answer.prepare(request)
        for _ in range(400 if how == "long" else 2):
            await answer.write(b"x" * 65_536)
            sent += 1
            if how == "slow":
                await receiver.is_over.wait()
            if how == "cut" and request.transport is not None:
                request.transport.abort()
        return answer

    receiver.respond = respond
    timeout_s = 3.0 if how == "slow" else 30.0  # which a slow one takes; a status that is late itself does not count
    async with open_webhook(receiver.url, SECRETS[:1], LOOPBACK, timeout_s=timeout_s) as destination:
        assert await destination.publish([feed_event()]) == [Delivered()]
        assert sent < 400
        receiver.respond = receiver.accept
        assert await destination.publish([feed_event(1, "p-2")]) == [Delivered()]


async def test_notification_is_posted_as_the_typescript_worker_did(receiver: Receiver) -> None:
    members = DestinationMembers("live", kind=DestinationKind.NOTIFICATION, target=f"{receiver.url}/base/")
    async with open_destination(FeedDestination(members), region=None, allowed=LOOPBACK) as destination:
        events = [
            feed_event(0, data=b"{}"),
            feed_event(1, resource_id=None, resource_type=None, kind=FeedKind.TENANT_MOVED),
        ]
        assert await destination.publish(events) == [Delivered(), Delivered()]
    ((path, headers, body),) = receiver.requests
    assert (path, headers["Content-Type"]) == ("/base/api/notifications", "application/json")
    assert [*json.loads(body)] == [
        *("type", "resourceType", "businessId", "locationId", "resourceId", "shardId", "data", "timestamp"),
    ]


class NameServer:
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebound.example":
            return self._real(host, port, *args, **kwargs)
        return [found for one in self.addresses for found in self._real(one, port, type=socket.SOCK_STREAM)]


NOT_ALLOWED = "expected an address of the public internet, or one of FEED_ALLOWED_HOSTS, got another for "


async def test_name_that_leads_elsewhere_at_the_next_look_up_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NameServer("127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    url = receiver.url.replace("127.0.0.1", "rebound.example")
    deliveries = []
    for names.addresses in (("127.0.0.1",), ("127.0.0.2",)):
        async with open_webhook(url, SECRETS[:1], LOOPBACK) as destination:
            deliveries += await destination.publish([feed_event()])
    place = url.removeprefix("http://")
    assert deliveries == [Delivered(), RetryLater(f"{place}: {NOT_ALLOWED}rebound.example")]
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("10.0.0.1", "192.168.0.1", "fe80::1"), ("::1", "127.0.0.1")])
async def test_name_that_leads_into_this_network_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", NameServer(*addresses).getaddrinfo)
    url = receiver.url.replace("127.0.0.1", "rebound.example")
    async with open_webhook(url, SECRETS[:1], AllowedHosts.parse(("rebound.example",))) as destination:
        (delivery,) = await destination.publish([feed_event()])
    assert isinstance(delivery, RetryLater)
    assert delivery.error.endswith(f"{NOT_ALLOWED}rebound.example")
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_every_form_of_loopback_is_refused(receiver: Receiver, host: str) -> None:
    url = receiver.url.replace("127.0.0.1", host)
    async with open_webhook(url, SECRETS[:1], AllowedHosts()) as destination:
        (delivery,) = await destination.publish([feed_event()])
    assert isinstance(delivery, RetryLater)
    assert NOT_ALLOWED in delivery.error or NO_URL in delivery.error  # aiohttp takes a number for no host
    assert receiver.requests == []


async def test_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with open_webhook(receiver.url, SECRETS[:1], LOOPBACK) as destination:
        assert await destination.publish([feed_event()]) == [Delivered()]
