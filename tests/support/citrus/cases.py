"""Citrus for tests: one that answers by a script, and a local one in front of real shards."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY
from support.postgres.tenant_cases import TENANT_WAIT

from simplu_local.processes.loopback import HOST, free_port
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.citrus import CitrusClient, open_citrus
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_watch import ShardWatch
from simplu_worker.shards.tenants.deletion import Destroyer
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.tenants.resource_changes import ResourceChanges
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import CitrusOutcome

API_KEY = "key-of-citrus"
CONNECTION_STRING = "postgresql://worker:secret-word@db.internal:5432/shard_a"
SHARD = {
    "shardId": "shard-a",
    "connectionString": CONNECTION_STRING,
    "isActive": True,
    "lastHealthCheck": "2026-03-01T12:00:00.000Z",
    "businessCount": 3,
    "maxBusinesses": 10,
    "region": "a member that nobody has told us of",
}

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


def reply(body: Any = None, *, status: int = 200, content_type: str = "application/json", **headers: str) -> Reply:
    """Return an answer for the script; *body* is JSON unless it is bytes."""

    async def answer(_: web.Request) -> web.StreamResponse:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=payload, status=status, content_type=content_type, headers=named)

    return answer


def half_a_reply(body: bytes) -> Reply:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Content-Length": f"{2 * len(body)}"}
        )
        await response.prepare(request)
        await response.write(body)
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


class ScriptedCitrus:
    """Gives the answers of `script` in order, the last one ever again, and keeps what it was asked."""

    def __init__(self, *script: Reply) -> None:
        self.script = deque(script)
        self.requests: list[tuple[str, str]] = []  # method, path as it came
        self.bodies: list[Any] = []
        self.authorizations: set[str | None] = set()
        self.cookies: set[str | None] = set()
        self.url = ""

    @contextlib.asynccontextmanager
    async def opened(
        self,
        *,
        attempts: int = 1,
        timeout_s: float = 20.0,
        allowed_hosts: tuple[str, ...] = (),
        clock: Callable[[], float] = loop_time,
    ) -> AsyncIterator[CitrusClient]:
        # An answer that is not waited for any more ends with its connection, and not some time after its test.
        server = web.Server(self._answer, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0).start()
            self.url = f"http://{HOST}:{runner.addresses[0][1]}"
            async with open_citrus(
                self.url,
                api_key=API_KEY,
                timeout_s=timeout_s,
                attempts=attempts,
                allowed_hosts=allowed_hosts,
                clock=clock,
            ) as client:
                yield client
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.method, request.rel_url.raw_path))
        self.authorizations.add(request.headers.get("Authorization"))
        self.cookies.add(request.headers.get("Cookie"))
        body = await request.read()
        self.bodies.append(json.loads(body) if body else None)
        answer = self.script.popleft() if len(self.script) > 1 else self.script[0]
        return await answer(request)  # type: ignore[arg-type]  # a bare server has no application, and needs none


@dataclass(frozen=True)
class RoutedShards:
    """Real shards behind a local Citrus, with all of the worker that finds and provisions tenants there."""

    citrus: CitrusServer
    locator: Locator
    pools: Pools
    directory: Directory
    provisioner: Provisioner
    destroyer: Destroyer
    changes: ResourceChanges
    gateway: ShardGateway
    watch: ShardWatch

    def pool(self, shard_id: str = "shard-1") -> ShardPool:
        shard = self.citrus.registry.shards[shard_id]
        return self.pools.ensure_pool(ShardAddress(shard_id, shard.connection_string))

    def register(self, tenant: tuple[str, str], shard_id: str) -> None:
        self.citrus.registry.place("-".join(tenant), self.citrus.registry.shards[shard_id])


@contextlib.asynccontextmanager
async def routed_shards(
    shards: Sequence[ShardAddress],
    *,
    tenants_per_shard: int = 100,
    timeouts: ShardTimeouts | None = None,
    clock: Callable[[], float] = loop_time,
) -> AsyncIterator[RoutedShards]:
    """Put a local Citrus in front of *shards*, which it fills in their order; *clock* is that of routing."""

    async def make_shard() -> tuple[str, str]:
        raise AssertionError("all shards are full")

    local = CitrusServer(api_key=API_KEY, make_shard=make_shard, max_businesses=tenants_per_shard)
    for shard in shards:
        local.add_shard(shard.shard_id, shard.connection_string)
    async with (
        local.serve() as url,
        open_citrus(url, api_key=API_KEY, timeout_s=5, attempts=2, allowed_hosts=(), clock=clock) as citrus,
        Pools(size=2, timeouts=timeouts or ShardTimeouts()) as pools,
    ):
        directory = Directory(citrus, pools, clock=clock)
        yield RoutedShards(
            citrus=local,
            locator=citrus,
            pools=pools,
            directory=directory,
            provisioner=Provisioner(citrus, directory, pools),
            destroyer=Destroyer(citrus, directory, pools),
            changes=ResourceChanges(directory, pools),
            gateway=ShardGateway(directory, citrus, pools, tenant_wait=TENANT_WAIT),
            watch=ShardWatch(citrus, pools, directory.routes, clock=clock),
        )


def silent(shard_id: str) -> ShardAddress:
    return ShardAddress(shard_id, f"postgresql://postgres:secret-word@{HOST}:{free_port()}/{shard_id}")


def requests_to(endpoint: str) -> int:
    """Return how many requests Citrus has answered at one endpoint so far, whatever the answer was."""
    return requests_by_outcome(endpoint).total()


def requests_by_outcome(endpoint: str) -> Counter[str]:
    name = "simplu_citrus_request_seconds_count"
    return Counter(
        {
            outcome: round(REGISTRY.get_sample_value(name, {"endpoint": endpoint, "outcome": outcome}) or 0)
            for outcome in CitrusOutcome
        }
    )
