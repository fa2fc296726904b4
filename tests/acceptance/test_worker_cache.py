"""The cache beside the whole worker: told after commits, made up for after a kill, and needed by nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Self

import aiohttp
import asyncpg
import pytest
import pytest_asyncio
from support.full_stack import make_item, make_record
from support.redis.server import PASSWORD, RedisServer, require_redis

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants, open_client, put_items
from simplu_local.workload.workload import Tenant

pytestmark = pytest.mark.slow(5)

in_place_loop = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 40.0
TENANT = Tenant("cached", "main", "dental")


class Place:
    """A stack with a Redis, one worker, and what a test sends and finds."""

    def __init__(self) -> None:
        self.stack = Stack(shards=1, stream_shards=1, tenants_per_shard=2)
        self._exit = AsyncExitStack()
        self._sent = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.stack)
            self.redis = RedisServer(self.stack.group)
            await self.redis.start()
            self.env = self.stack.env | {"REDIS_URL": self.redis.url, "KINESIS_LEASE_DURATION_SECONDS": "2"}
            self._kinesis = await entered.enter_async_context(open_client("kinesis", self.env))
            sqs = await entered.enter_async_context(open_client("sqs", self.env))
            self.worker = WorkerProcess(self.stack.group, self.env)
            self.worker.start()
            await self.worker.wait_ready()
            await create_tenants(sqs, self.env["SQS_SHARD_CREATION_QUEUE_URL"], [TENANT])

            async def is_there() -> bool:
                return TENANT.tenant_id in await read_tenant_ids(shard_urls(self.env))

            await self.until(is_there)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def until(self, condition: Any) -> None:
        """Wait until *condition* says yes; a failure shows the worker's log."""
        if not await poll_until(condition, within_s=PATIENCE_S):
            pytest.fail(log_tail(self.worker.log_path))

    async def put(self, resource_id: str) -> None:
        """Put a create on the stream, and wait until it is committed."""
        self._sent += 1
        record = make_record(TENANT, "create", f"cached-{self._sent}", resourceId=resource_id, data={"n": 1})
        await put_items(
            self._kinesis, self.env["KINESIS_STREAM_NAME"], [make_item("key", record)], on_put=lambda _: None
        )

        async def is_committed() -> bool:
            connection = await asyncpg.connect(shard_urls(self.env)[0])
            try:
                query = 'SELECT EXISTS (SELECT FROM resources WHERE id = $1 AND "resourceId" = $2)'
                return bool(await connection.fetchval(query, TENANT.tenant_id, resource_id))
            finally:
                await connection.close()

        await self.until(is_committed)

    async def cached(self, resource_id: str) -> str:
        """Put an entry into the cache as a reader does; return its key."""
        key = f"simplu:resource:{TENANT.tenant_id}:note:{resource_id}"
        await self.redis.ask("SET", key, "{}")
        return key

    async def is_dropped(self, key: str) -> None:
        """Wait until an entry is gone."""

        async def is_gone() -> bool:
            return bool(await self.redis.ask("EXISTS", key) == 0)

        await self.until(is_gone)

    async def metrics(self) -> str:
        """Return what the worker counts."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.worker.url}/metrics") as answer:
            return await answer.text()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place() -> AsyncIterator[Place]:
    """Give the place of all tests of this file."""
    require_redis()
    async with Place() as place:
        yield place


@in_place_loop
async def test_worker_drops_entries_after_the_commit(place: Place) -> None:
    other = await place.cached("other")
    key = await place.cached("first")
    epoch = await place.redis.ask("GET", "simplu:epoch")
    await place.put("first")

    await place.is_dropped(key)
    assert await place.redis.ask("EXISTS", other) == 1
    assert await place.redis.ask("GET", f"simplu:version:{TENANT.tenant_id}:note") == "1"
    assert await place.redis.ask("GET", "simplu:epoch") == epoch
    assert "simplu_cache_unreachable_seconds 0.0" in await place.metrics()


@in_place_loop
async def test_worker_makes_up_for_what_it_had_not_said_when_it_was_killed(place: Place) -> None:
    key = await place.cached("second")
    epoch = int(await place.redis.ask("GET", "simplu:epoch"))
    place.redis.freeze()
    await place.put("second")
    place.worker.kill()
    # What was sent and lies in the frozen server's buffers would be done at its thaw: as if it had been lost.
    place.redis.kill()
    await place.redis.start()
    await place.redis.ask("SET", "simplu:epoch", str(epoch))
    await place.redis.ask("SET", key, "{}")
    place.worker.start()
    await place.worker.wait_ready()

    await place.is_dropped(key)
    assert int(await place.redis.ask("GET", "simplu:epoch")) > epoch


@in_place_loop
async def test_worker_works_on_when_redis_is_gone_and_stops_in_time(place: Place) -> None:
    place.redis.kill()
    await place.put("third")
    await place.put("fourth")
    await place.worker.wait_ready()
    await place.worker.stop(within_s=PATIENCE_S)

    text = place.worker.log_path.read_text()
    assert text.count("cache.unreachable") >= 1
    assert "cache.not_flushed" in text
    assert PASSWORD not in text
