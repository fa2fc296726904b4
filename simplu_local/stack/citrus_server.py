"""A local Citrus: the server of docs/shard-manager.md with a registry in memory; it places tenants by capacity."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Handler

from simplu_local.processes.http_serving import serve_on_loopback

MAX_BUSINESSES = 3
REGISTRATION_FIELDS = ("businessId", "locationId", "businessType", "shardKey")


@dataclass
class CitrusShard:
    """A shard as Citrus knows it; tests may set *is_active* to false for a shard that accepts no work.

    With *filled_at* businesses the shard gets no more, though it has room: another shard is made in time.
    """

    shard_id: str
    connection_string: str
    max_businesses: int = MAX_BUSINESSES
    filled_at: int | None = None
    is_active: bool = True
    checked_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    tenants: dict[str, str] = field(default_factory=dict)  # the business of each, by shard key

    def __repr__(self) -> str:
        # Without the connection string: it contains a password.
        usage = f"{self.business_count}/{self.max_businesses}"
        return f"CitrusShard({self.shard_id}, {usage}, {'active' if self.is_active else 'inactive'})"

    @property
    def business_count(self) -> int:
        """How many businesses have a location here."""
        return len(set(self.tenants.values()))

    @property
    def has_room(self) -> bool:
        """Whether another business may be placed here."""
        most = self.max_businesses if self.filled_at is None else self.filled_at
        return self.is_active and self.business_count < most


@dataclass
class CitrusRegistry:
    """The placement of tenants: *shards* by id, in the order of their creation, and *homes* by shard key."""

    shards: dict[str, CitrusShard] = field(default_factory=dict)
    homes: dict[str, CitrusShard] = field(default_factory=dict)

    def add_shard(
        self,
        shard_id: str,
        connection_string: str,
        *,
        max_businesses: int = MAX_BUSINESSES,
        filled_at: int | None = None,
    ) -> CitrusShard:
        """Add an empty shard."""
        shard = self.shards[shard_id] = CitrusShard(shard_id, connection_string, max_businesses, filled_at)
        return shard

    def first_with_room(self) -> CitrusShard | None:
        """Return the first shard with room for another business; none when all are full."""
        return next((shard for shard in self.shards.values() if shard.has_room), None)

    def place(self, shard_key: str, shard: CitrusShard, business_id: str | None = None) -> None:
        """Make *shard* the tenant's home, in place of its earlier one; alone in its business, unless that is known."""
        earlier = self.homes.get(shard_key)
        known = None if earlier is None else earlier.tenants.pop(shard_key, None)
        shard.tenants[shard_key] = business_id or known or shard_key
        self.homes[shard_key] = shard

    def forget(self, shard_key: str) -> None:
        """Remove the tenant from the registry."""
        if shard := self.homes.pop(shard_key, None):
            shard.tenants.pop(shard_key, None)


@dataclass
class CitrusFaults:
    """The faults of a Citrus, which tests change while it serves."""

    latency_s: float = 0.0
    is_unreachable: bool = False  # every connection is cut without an answer
    status: int | None = None  # of every answer
    retry_after_s: int | None = None  # with such a status
    wrong_shards: dict[str, str | None] = field(
        default_factory=dict
    )  # by shard key: the shard id named; None: unregistered
    drops_registrations: bool = False  # a registration, as soon as it was answered
    rotates_shards: bool = False  # it names the next shard with every answer, full or not
    struck_count: int = 0  # requests that one of the faults above has hit, but for the last two


def registration_problem(body: object) -> str | None:
    """Return why the body of a registration is invalid; none when it is valid."""
    if not isinstance(body, dict):
        return "expected a JSON object"
    for name in REGISTRATION_FIELDS:
        if not isinstance(body.get(name), str) or not body[name]:
            return f"expected {name} as a string that is not empty"
    if body["shardKey"] != (expected := f"{body['businessId']}-{body['locationId']}"):
        return f"expected shardKey {expected!r}"
    return None


class CitrusServer:
    """The HTTP side. *make_shard* makes another shard when all are full; it returns shard id and connection string."""

    def __init__(
        self,
        *,
        api_key: str,
        make_shard: Callable[[], Awaitable[tuple[str, str]]],
        max_businesses: int = MAX_BUSINESSES,
        filled_at: int | None = None,
    ) -> None:
        self.registry = CitrusRegistry()
        self.faults = CitrusFaults()
        self._authorization = f"Bearer {api_key}".encode()
        self._make_shard = make_shard
        self._max_businesses = max_businesses
        self._filled_at = filled_at
        self._last_rotated: CitrusShard | None = None
        self._closing = asyncio.Event()  # ends the latency of requests, with or without a client
        self._placing = asyncio.Lock()  # one placement at a time: two concurrent ones would make two new shards

    def __repr__(self) -> str:
        return f"Citrus({list(self.registry.shards.values())})"

    def add_shard(self, shard_id: str, connection_string: str) -> CitrusShard:
        """Add an empty shard of the usual capacity."""
        return self.registry.add_shard(
            shard_id, connection_string, max_businesses=self._max_businesses, filled_at=self._filled_at
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve on a free port of loopback; yields the base URL."""
        async with serve_on_loopback(self._application(), shutdown_timeout_s=1.0) as url:
            try:
                yield url
            finally:
                self._closing.set()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._inject_faults, self._authorize])
        application.router.add_route("*", "/{path:(?s:.*)}", self._route)
        return application

    async def _route(self, request: web.Request) -> web.Response:
        """Answer by the path as it was sent: the router's own patterns match a decoded one, and no brace in an id."""
        path = request.raw_path.partition("?")[0]
        match request.method, *(unquote(part) for part in path.split("/")[1:]):
            case "GET", "api", "shard", shard_key:
                return self._look_up(shard_key)
            case "PUT", "api", "shard", shard_key:
                return await self._repoint(request, shard_key)
            case "POST", "api", "register":
                return await self._register(request)
            case "GET", "api", "shards", "health":
                return self._list_shards()
            case "GET", "api", "shard", shard_id, "capacity":
                return self._show_capacity(shard_id)
            case _:
                return _error_response(404, "no such request")

    @web.middleware
    async def _inject_faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        faults = self.faults
        faults.struck_count += bool(faults.latency_s or faults.is_unreachable or faults.status)
        if faults.latency_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), faults.latency_s)
        if faults.is_unreachable and request.transport is not None:
            request.transport.abort()
        if faults.status is not None:
            headers = {} if faults.retry_after_s is None else {"Retry-After": str(faults.retry_after_s)}
            return web.json_response({"error": "failed on demand"}, status=faults.status, headers=headers)
        return await handler(request)

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # As bytes: compare_digest raises for text with non-ASCII characters, which a header may contain.
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            return _error_response(401, "expected Authorization: Bearer with the API key")
        return await handler(request)

    def _look_up(self, shard_key: str) -> web.Response:
        shard = self.registry.homes.get(shard_key)
        if self.faults.rotates_shards and shard is not None:
            shard = self._next_shard(shard)
            self.registry.place(shard_key, shard)
        if shard_key in self.faults.wrong_shards:
            self.faults.struck_count += 1
            shard = self.registry.shards.get(self.faults.wrong_shards[shard_key] or "")
        return (
            web.json_response(_describe(shard)) if shard else _error_response(404, "this shard key is not registered")
        )

    async def _register(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        if problem := registration_problem(body):
            return _error_response(400, problem)
        shard_key = body["shardKey"]
        async with self._placing:
            if shard_key in self.registry.homes:
                return _error_response(409, "this shard key is registered already")
            shard = self.registry.first_with_room() or self.add_shard(*await self._make_shard())
            if self.faults.rotates_shards:
                shard = self._last_rotated = self._next_shard(self._last_rotated or shard)
            self.registry.place(shard_key, shard, body["businessId"])
            if self.faults.drops_registrations:
                self.registry.forget(shard_key)
        return web.json_response(_describe(shard), status=201)

    def _next_shard(self, shard: CitrusShard) -> CitrusShard:
        shards = list(self.registry.shards.values())
        return shards[(shards.index(shard) + 1) % len(shards)] if shard in shards else shards[0]

    async def _repoint(self, request: web.Request, shard_key: str) -> web.Response:
        body = await _read_json(request)
        shard = self.registry.shards.get(str(body.get("shardId"))) if isinstance(body, dict) else None
        if shard is None:
            return _error_response(400, "expected shardId of a known shard")
        if shard_key not in self.registry.homes:
            return _error_response(404, "this shard key is not registered")
        self.registry.place(shard_key, shard)
        return web.json_response(_describe(shard))

    def _list_shards(self) -> web.Response:
        return web.json_response([_describe(shard) for shard in self.registry.shards.values()])

    def _show_capacity(self, shard_id: str) -> web.Response:
        shard = self.registry.shards.get(shard_id)
        if shard is None:
            return _error_response(404, "this shard id is unknown")
        return web.json_response(_describe(shard) | {"canAcceptNewBusiness": shard.has_room})


async def _read_json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        return None


def _describe(shard: CitrusShard) -> dict[str, object]:
    return {
        "shardId": shard.shard_id,
        "connectionString": shard.connection_string,
        "isActive": shard.is_active,
        "lastHealthCheck": shard.checked_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "businessCount": shard.business_count,
        "maxBusinesses": shard.max_businesses,
    }


def _error_response(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
