"""The name of a host without an answer takes one thread of its own, and none of those that the process shares."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from support.feed.events import feed_event
from support.postgres.databases import QUICK

from simplu_local.processes.loopback import poll_until
from simplu_worker.feed.feed_file import AllowedHosts
from simplu_worker.feed.http_destination import open_webhook
from simplu_worker.feed.types import RetryLater
from simplu_worker.network_errors import UNKNOWN_HOST
from simplu_worker.network_lookup import look_up_host
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.citrus import CitrusUnavailableError, open_citrus
from simplu_worker.shards.types import ShardUnavailableError

HURRIED = msgspec.structs.replace(QUICK, probe_s=0.05)
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
SOON_S = 10.0  # on a busy machine


class Resolver:
    """A resolver that gives `dead.example` no answer until `answers`, and then *error*, if any."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.error: Exception | None = None
        self.asked: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()

    def getaddrinfo(self, host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        """Stand in for the function of `socket`."""
        self.asked[host] += 1
        self.waiting[host] += 1
        if host.startswith("dead"):
            self.answers.wait()
        self.waiting[host] -= 1
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 0))]

    async def is_idle(self) -> bool:
        """Return whether no thread waits."""
        return not self.waiting.total()


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Resolver]:
    """Resolve all names, and leave no thread behind."""
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answers.set()
    assert await poll_until(resolver.is_idle, within_s=SOON_S)


def pool_at(host: str) -> ShardPool:
    """Return the pool of a shard at a port where nobody listens."""
    return ShardPool(ShardAddress("shard-1", f"postgresql://u:p@{host}:1/d"), size=1, timeouts=HURRIED)


async def test_name_without_an_answer_leaves_the_shared_threads_alone(resolver: Resolver) -> None:
    shared = ThreadPoolExecutor(2)
    asyncio.get_running_loop().set_default_executor(shared)
    for _ in range(20):
        with pytest.raises(ShardUnavailableError):
            await pool_at("dead.example").probe()
    assert resolver.waiting == {"dead.example": 1}
    await asyncio.wait_for(asyncio.to_thread(int), SOON_S)


async def publish_to_dead_host() -> None:
    """Send an event to a webhook whose name has no answer."""
    async with open_webhook("https://dead.example/hooks", (SECRET,), AllowedHosts(), timeout_s=0.1) as webhook:
        (delivery,) = await webhook.publish([feed_event()])
    assert isinstance(delivery, RetryLater)


async def ask_dead_citrus() -> None:
    """Ask a Citrus whose name has no answer."""
    citrus = open_citrus("https://dead.example", api_key=None, timeout_s=0.1, attempts=1, allowed_hosts=("*",))
    async with citrus as client:
        with pytest.raises(CitrusUnavailableError):
            await client.locate("clinic-main")


@pytest.mark.parametrize("ask", [publish_to_dead_host, ask_dead_citrus])
async def test_server_without_an_answer_of_its_name_leaves_the_shared_threads_alone(
    resolver: Resolver, ask: Callable[[], Awaitable[None]]
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    for _ in range(3):
        await ask()
    assert resolver.waiting == {"dead.example": 1}
    await asyncio.wait_for(asyncio.to_thread(int), SOON_S)


async def test_each_host_of_an_address_is_looked_up_by_itself(resolver: Resolver) -> None:
    async def is_next_one_asked() -> bool:
        with pytest.raises(ShardUnavailableError):
            await pool_at("dead.example:1,live.example").probe()
        return resolver.asked["live.example"] >= 1

    assert await poll_until(is_next_one_asked, within_s=SOON_S)  # a busy machine may use up the time of a probe before
    assert resolver.waiting["dead.example"] == 1


async def test_lookup_goes_on_for_others_when_a_caller_is_cancelled(resolver: Resolver) -> None:
    callers = [asyncio.ensure_future(look_up_host("dead.example")) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await callers[0]
    resolver.answers.set()
    await asyncio.gather(*callers[1:])
    assert resolver.asked == {"dead.example": 1}
    await look_up_host("dead.example")
    assert resolver.asked == {"dead.example": 2}


async def test_error_of_the_lookup_is_the_error_of_the_shard(resolver: Resolver) -> None:
    resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(ShardUnavailableError, match=UNKNOWN_HOST):
        await pool_at("unknown.example").probe()
    with pytest.raises(socket.gaierror):
        await look_up_host("unknown.example")
    resolver.error = None
    await look_up_host("unknown.example")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%1", "/var/run/postgresql", ""])
async def test_address_or_folder_needs_no_lookup(resolver: Resolver, host: str) -> None:
    await look_up_host(host)
    assert not resolver.asked
