"""Polling a Citrus about its shards, also one that gives no usable answer; and the capacity of one shard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from support.citrus.cases import SHARD, Reply, ScriptedCitrus, no_reply, reply

from simplu_local.processes.loopback import poll_until
from simplu_worker.errors import RetryableError
from simplu_worker.shards.health.assessment import Usage
from simplu_worker.shards.health.registry import CitrusWatch, HealthRegistry
from simplu_worker.shards.routing.citrus import CitrusClient, CitrusUnavailableError
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.vocabulary import ShardProblem

SOON_S = 30.0


def listed(*counts: int, **members: Any) -> Reply:
    return reply([SHARD | {"shardId": f"watched-{n}", "businessCount": c} | members for n, c in enumerate(counts, 1)])


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


@pytest.mark.slow
async def test_watch_shows_how_full_shards_are() -> None:
    citrus = ScriptedCitrus(listed(0, 0))
    async with citrus.opened() as client, watching(client) as book:
        await comes_to(book, {"watched-1": Usage(0, 10), "watched-2": Usage(0, 10)})
        citrus.script.append(listed(9, 0))
        await comes_to(book, {"watched-1": Usage(9, 10), "watched-2": Usage(0, 10)})
        assert REGISTRY.get_sample_value("simplu_shard_usage_ratio", {"shard_id": "watched-1"}) == 0.9
        assert book.by_shard_id["watched-1"].problems == {ShardProblem.USAGE}
        citrus.script.append(listed(0, isActive=False))
        await comes_to(book, {"watched-1": Usage(0, 10, is_active=False)})
        assert book.by_shard_id["watched-1"].problems == {ShardProblem.INACTIVE}


@pytest.mark.slow
@pytest.mark.parametrize("answer", [reply(b"<html>"), reply({"error": "no"}, status=500), reply({}, status=401)])
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


async def test_watch_notices_that_a_key_is_good_again() -> None:
    citrus = ScriptedCitrus(reply({}, status=401), reply([SHARD]))
    async with citrus.opened() as client:
        with pytest.raises(RetryableError):
            await client.locate("any-tenant")
        assert client.is_denied
        async with watching(client):

            async def is_welcome() -> bool:
                return not client.is_denied

            assert await poll_until(is_welcome, within_s=SOON_S)


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
