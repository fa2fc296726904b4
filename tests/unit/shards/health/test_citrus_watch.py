"""Polling a Citrus about its shards: also one that is slow, wrong, lies, or knows only half of the questions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from prometheus_client import REGISTRY
from support.citrus.cases import API_KEY, SHARD, Reply, ScriptedCitrus, no_reply, reply
from support.citrus.lying_citrus import LyingCitrus

from simplu_local.processes.loopback import poll_until
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.errors import RetryableError
from simplu_worker.shards.health.assessment import Usage
from simplu_worker.shards.health.registry import CitrusWatch, HealthRegistry
from simplu_worker.shards.routing.citrus import CitrusClient, CitrusUnavailableError, open_citrus
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.vocabulary import ShardProblem

SOON_S = 30.0
NAMES = ("watched-1", "watched-2")


@pytest.fixture
def registry() -> CitrusServer:
    async def make_shard() -> tuple[str, str]:
        raise AssertionError("nobody registers")

    local = CitrusServer(api_key=API_KEY, make_shard=make_shard, max_businesses=10)
    for name in NAMES:
        local.add_shard(name, f"postgresql://postgres@127.0.0.1:1/{name}")
    return local


@pytest.fixture
async def lying(registry: CitrusServer) -> AsyncIterator[LyingCitrus]:
    async with registry.serve() as url, LyingCitrus(url) as lying:
        yield lying


@contextlib.asynccontextmanager
async def client_of(url: str, *, timeout_s: float = 5.0) -> AsyncIterator[CitrusClient]:
    async with open_citrus(url, api_key=API_KEY, timeout_s=timeout_s, attempts=3, allowed_hosts=()) as citrus:
        yield citrus


@contextlib.asynccontextmanager
async def watching(citrus: CitrusClient) -> AsyncIterator[HealthRegistry]:
    book = HealthRegistry()
    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(CitrusWatch(citrus, book, poll_s=0.05, trouble_poll_s=0.05).run())
        try:
            yield book
        finally:
            polling.cancel()
    book.note_usages({})


async def comes_to(book: HealthRegistry, expected: dict[str, Usage]) -> None:
    async def is_there() -> bool:
        return {name: health.observation.usage for name, health in book.by_shard_id.items()} == expected

    assert await poll_until(is_there, within_s=SOON_S), dict(book.by_shard_id)


def fill(registry: CitrusServer, name: str, count: int) -> None:
    for number in range(count):
        registry.registry.place(f"clinic-{name}-{number}", registry.registry.shards[name])


@pytest.mark.slow
async def test_watch_shows_how_full_shards_are(registry: CitrusServer, lying: LyingCitrus) -> None:
    async with client_of(lying.url) as citrus, watching(citrus) as book:
        empty = Usage(0, 10)
        await comes_to(book, dict.fromkeys(NAMES, empty))
        fill(registry, "watched-1", 9)
        await comes_to(book, {"watched-1": Usage(9, 10), "watched-2": empty})
        assert REGISTRY.get_sample_value("simplu_shard_usage_ratio", {"shard_id": "watched-1"}) == 0.9
        assert book.by_shard_id["watched-1"].problems == {ShardProblem.USAGE}
        registry.registry.shards["watched-2"].is_active = False
        await comes_to(
            book,
            {
                "watched-1": Usage(9, 10),
                "watched-2": Usage(0, 10, is_active=False),
            },
        )
        assert book.by_shard_id["watched-2"].problems == {ShardProblem.INACTIVE}
        del registry.registry.shards["watched-1"]
        await comes_to(book, {"watched-2": Usage(0, 10, is_active=False)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        reply(b"<html>"),
        reply({"shards": []}),
        reply([SHARD | {"businessCount": -1}]),
        reply([SHARD | {"businessCount": "many"}]),
        reply([SHARD | {"maxBusinesses": 10**30}]),
        reply([SHARD | {"shardId": "a\nb"}]),
        reply([SHARD | {"shardId": ""}]),
        reply({"error": "no"}, status=500),
        reply({"error": "no"}, status=401),
        reply({"error": "no"}, status=422),
        reply(b"[" * 100_000),
    ],
)
async def test_watch_keeps_what_was_said_when_the_answer_is_none(answer: Reply) -> None:
    citrus = ScriptedCitrus(reply([SHARD]), answer)
    async with citrus.opened(attempts=3) as client, watching(client) as book:
        await comes_to(book, {"shard-a": Usage(3, 10)})
        count = len(citrus.requests)

        async def was_asked_more() -> bool:
            return len(citrus.requests) >= count + 4

        assert await poll_until(was_asked_more, within_s=SOON_S)
        await comes_to(book, {"shard-a": Usage(3, 10)})
        assert (client.last_error, client.is_denied) == (None, False)


async def test_watch_notices_that_a_key_is_good_again(registry: CitrusServer, lying: LyingCitrus) -> None:
    async with client_of(lying.url) as citrus:
        with lying.lying(lambda _: web.Response(status=401)):
            with pytest.raises(RetryableError):
                await citrus.locate("any-tenant")
            assert citrus.is_denied
        async with watching(citrus):

            async def is_welcome() -> bool:
                return not citrus.is_denied

            assert await poll_until(is_welcome, within_s=SOON_S)


@pytest.mark.slow
async def test_capacity_is_that_of_the_shard_that_was_asked_about() -> None:
    answer = {"shardId": "a/b", "businessCount": 3, "maxBusinesses": 10, "canAcceptNewBusiness": False}
    citrus = ScriptedCitrus(reply(answer), reply({**answer, "shardId": "c"}), reply(None, status=404), no_reply())
    async with citrus.opened(timeout_s=60.0) as client:
        assert await client.fetch_capacity("a/b") == Capacity(3, 10, accepts_new=False)
        with pytest.raises(CitrusUnavailableError, match="got another one"):
            await client.fetch_capacity("a/b")
        assert await client.fetch_capacity("a/b") is None
    async with citrus.opened(timeout_s=0.5) as client:
        with pytest.raises(CitrusUnavailableError, match="within CITRUS_TIMEOUT, got none"):
            await client.fetch_capacity("a/b")
    assert citrus.requests == [("GET", "/api/shard/a%2Fb/capacity")] * 4
