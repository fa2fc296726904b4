"""The cache follows the shards: after every commit, through trouble of Redis, and never on the way of a commit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TENANT_WAIT, add_tenant, operation
from support.redis.server import PASSWORD, RedisServer

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.cache.cache import Cache, CacheAdmin, create_redis_commands, open_cache
from simplu_worker.cache.invalidations import ResourceKey
from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.telemetry.log import scrub_text

PATIENCE_S = 60.0
TENANT_ID = "-".join(TENANT)


@pytest.fixture(scope="module")
def group() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


@pytest.fixture
async def redis(group: ProcessGroup) -> AsyncIterator[RedisServer]:
    server = RedisServer(group)
    await server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Cache]:
    cache = Cache(url, **({"call_timeout_s": 20.0, "ping_interval_s": 0.2} | options))
    task = asyncio.create_task(cache.run())
    try:
        yield cache
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await cache.close()


async def eventually(ask: Callable[[], bool]) -> None:
    async def answer() -> bool:
        return ask()

    assert await poll_until(answer, within_s=PATIENCE_S)


async def settled(cache: Cache) -> None:
    def is_settled() -> bool:
        summary = cache.summary()
        return bool(summary["epoch"] and cache.is_reachable and not summary["waiting"] and not summary["sweeping"])

    await eventually(is_settled)


def key(number: int | str = 1, resource_type: str = "patient") -> ResourceKey:
    return ResourceKey(TENANT_ID, resource_type, f"r{number}")


async def put(redis: RedisServer, *keys: ResourceKey) -> None:
    for one in keys:
        await redis.ask("SET", one.entry, "stale?")


async def fill(redis: RedisServer, count: int) -> None:
    await redis.ask("MSET", *(word for number in range(count) for word in (f"simplu-not-ours:{number}", "1")))


async def epoch_of(redis: RedisServer) -> int:
    return int(await redis.ask("GET", "simplu:epoch") or 0)


async def version_of(redis: RedisServer, one: ResourceKey) -> int:
    return int(await redis.ask("GET", one.version) or 0)


def events(logs: Iterable[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"].startswith("cache.")]


# Telling


async def test_cache_drops_what_changed_and_nothing_else(redis: RedisServer) -> None:
    async with running(redis.url) as cache:
        await settled(cache)
        epoch = await epoch_of(redis)
        await put(redis, key(1), key(2), key(1, "room"))
        cache.invalidate([key(1), key(1), key(3)])
        await settled(cache)

        assert await redis.ask("EXISTS", key(1).entry) == 0
        assert await redis.ask("EXISTS", key(2).entry, key(1, "room").entry) == 2
        assert (await version_of(redis, key(1)), await version_of(redis, key(1, "room"))) == (1, 0)
        assert await epoch_of(redis) == epoch
        assert cache.summary()["invalidations"] == {"done": 2, "retried": 0, "dropped": 0}


@pytest.mark.slow
async def test_cache_moves_the_epoch_and_sweeps_when_a_process_starts(redis: RedisServer) -> None:
    entries = [key(number) for number in range(50)]
    await redis.ask("SET", "simplu:epoch", "7")
    await redis.ask("MSET", "simplu:list:7:0:clinic", "[]", "others", "1")
    await put(redis, *entries)
    with capture_logs() as logs:
        async with running(redis.url) as cache:
            await settled(cache)

    assert await epoch_of(redis) == 8
    assert sorted(await redis.ask("KEYS", "*")) == ["others", "simplu:epoch", "simplu:list:7:0:clinic"]
    (moved,) = [entry for entry in logs if entry["event"] == "cache.epoch_moved"]
    assert (moved["reason"], moved["epoch"], moved["redis"]) == ("started", 8, redis.address)


# Trouble


@pytest.mark.slow
async def test_cache_loses_nothing_when_redis_is_killed_and_comes_back(redis: RedisServer) -> None:
    with capture_logs() as logs:
        async with running(redis.url) as cache:
            await settled(cache)
            await put(redis, key(1), key(2), key(3))
            await redis.ask("SET", key(1).version, "7")
            epoch = await epoch_of(redis)
            await redis.ask("SAVE")
            cache.invalidate([key(3)])
            await settled(cache)
            redis.kill()
            cache.invalidate([key(1)])
            await eventually(lambda: not cache.is_reachable)
            cache.invalidate([key(2)])
            await asyncio.sleep(0.5)  # some tries
            assert cache.summary()["waiting"] == 2
            await redis.start()  # with what it had at the save, the entry that was deleted since among it
            await settled(cache)

            assert await epoch_of(redis) > epoch
            assert await version_of(redis, key(1)) > 7
            assert await redis.ask("EXISTS", *(key(number).entry for number in (1, 2, 3))) == 0
    assert events(logs) == ["cache.epoch_moved", "cache.unreachable", "cache.epoch_moved", "cache.recovered"]
    assert PASSWORD not in json.dumps(logs, default=str)


@pytest.mark.parametrize("trouble", ["read-only", "wrong password"])
async def test_cache_waits_while_redis_takes_nothing(redis: RedisServer, trouble: str) -> None:
    begin = {
        "read-only": ("REPLICAOF", "127.0.0.1", "1"),
        "wrong password": ("ACL", "SETUSER", "worker", "resetpass", ">another"),
    }[trouble]
    end = {
        "read-only": ("REPLICAOF", "NO", "ONE"),
        "wrong password": ("ACL", "SETUSER", "worker", f">{PASSWORD}"),
    }[trouble]
    await redis.ask("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "+@all")
    url = redis.url.replace("redis://:", "redis://worker:")
    with capture_logs() as logs:
        async with running(url) as cache:
            await settled(cache)
            await redis.ask(*begin)
            if trouble == "wrong password":
                await redis.ask("CLIENT", "KILL", "USER", "worker")
            cache.invalidate([key(1)])
            await eventually(lambda: not cache.is_reachable)
            assert cache.summary()["waiting"] == 1
            epoch = await epoch_of(redis)
            await redis.ask(*end)
            await settled(cache)
            assert await epoch_of(redis) > epoch
            assert await version_of(redis, key(1)) >= 1
    assert events(logs).count("cache.unreachable") == 1
    assert PASSWORD not in json.dumps(logs, default=str)


# Stopping


async def test_flush_does_not_wait_for_a_redis_that_is_gone(redis: RedisServer) -> None:
    async with running(redis.url) as cache:
        await settled(cache)
        redis.kill()
        cache.invalidate([key(1)])
        await eventually(lambda: not cache.is_reachable)
        started = time.monotonic()
        with capture_logs() as logs:
            await cache.flush(PATIENCE_S)
        assert time.monotonic() - started < PATIENCE_S / 4
    (entry,) = logs
    assert (entry["event"], entry["resource_count"]) == ("cache.not_flushed", 1)


# Who commits


@pytest.fixture
async def routed(make_shard: ShardMaker) -> AsyncIterator[RoutedShards]:
    async with routed_shards([await make_shard("shard-1")]) as routed:
        routed.register(TENANT, "shard-1")
        await add_tenant(pool_of(routed))
        yield routed


def pool_of(routed: RoutedShards) -> ShardPool:
    shard = routed.citrus.registry.shards["shard-1"]
    return routed.pools.ensure_pool(ShardAddress("shard-1", shard.connection_string))


def gateway_of(routed: RoutedShards, cache: Cache, pools: Pools | None = None) -> ShardGateway:
    return ShardGateway(
        routed.directory, routed.locator, pools or routed.pools, tenant_wait=TENANT_WAIT, on_change=cache.invalidate
    )


async def test_gateway_tells_the_cache_what_was_written(routed: RoutedShards, redis: RedisServer) -> None:
    create = operation("create", "r1", {"n": 1})
    others = [operation("patch", "r2", {}), operation("read", "r3"), operation("list", None)]
    async with running(redis.url) as cache:
        gateway = gateway_of(routed, cache)
        await settled(cache)
        await put(redis, key(1), key(2), key(3))
        await gateway.find(TENANT_ID)
        assert (await gateway.apply("shard-1", [create, *others]))[0] == SUCCEEDED
        await settled(cache)
        assert await redis.ask("EXISTS", key(1).entry) == 0
        assert await redis.ask("EXISTS", key(2).entry, key(3).entry) == 2  # not found, only read

        await put(redis, key(1))
        assert await gateway.apply("shard-1", [create]) == [DUPLICATE]
        await settled(cache)
        assert await redis.ask("EXISTS", key(1).entry) == 0
        assert await version_of(redis, key(1)) == 2


# People


@pytest.fixture
async def desk(redis: RedisServer) -> AsyncIterator[CacheAdmin]:
    async with open_cache(redis.url) as (cache, desk), running_task(cache):
        await settled(cache)
        yield desk


@contextlib.asynccontextmanager
async def running_task(cache: Cache) -> AsyncIterator[None]:
    task = asyncio.create_task(cache.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_stats_say_what_is_known_here_and_there(redis: RedisServer, desk: CacheAdmin) -> None:
    await put(redis, key(1), key(2))
    await redis.ask("MSET", key().version, "3", "simplu:list:1", "[]", "others", "1")
    await redis.ask("GET", key(1).entry)
    await redis.ask("GET", "nothing")
    stats = await desk.read_stats()

    assert (stats["reachable"], stats["error"], stats["epoch"], stats["redis"]) == (True, None, 1, redis.address)
    assert stats["server"]["epoch"] == "1"
    assert stats["server"]["hits"] >= 1
    assert stats["server"]["misses"] >= 1
    assert stats["server"]["evictionPolicy"] == "noeviction"
    assert PASSWORD not in json.dumps(stats)
    json.dumps(stats)


async def test_clear_deletes_our_entries_and_moves_the_epoch(redis: RedisServer, desk: CacheAdmin) -> None:
    await fill(redis, 3000)
    await put(redis, *(key(number) for number in range(20)))
    await redis.ask("MSET", key().version, "3", "simplu:list:1", "[]")
    assert await desk.clear() == {"deleted": 21, "epoch": 2}
    assert sorted(await redis.ask("KEYS", "simplu:*")) == ["simplu:epoch", key().version]
    assert await redis.ask("DBSIZE") == 3002
    assert (await desk.read_stats())["epochMovedFor"] == "cleared"


# The door


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://user:a-long-password@cache.example", "cache.example:6379"),
        ("rediss://cache.example:7000/3?password=a-long-password", "cache.example:7000/3"),
        ("redis://[::1]:7000/3", "[::1]:7000/3"),
        ("unix:///run/redis.sock?db=1", "/run/redis.sock"),
    ],
)
async def test_redis_is_named_without_its_credentials(url: str, place: str) -> None:
    commands = create_redis_commands(url)
    assert commands.place == place
    if "a-long-password" in url:
        assert "a-long-password" not in scrub_text("text with a-long-password in it")
    await commands.close()


async def test_redis_url_with_options_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_redis_commands("redis://:pass-word@host/0?nonsense=1")
    assert "pass-word" not in str(caught.value)
    assert caught.value.problems[0].startswith("REDIS_URL: ")


async def test_cache_is_void_when_another_replica_ended_without_giving_back_its_leases(redis: RedisServer) -> None:
    async with running(redis.url) as cache:
        await settled(cache)
        before = await epoch_of(redis)
        await put(redis, key())

        cache.note_replica_ended()
        await eventually(lambda: cache.summary()["epochMovedFor"] == "taken_over")
        await settled(cache)

        assert await epoch_of(redis) == before + 1
        assert await redis.ask("EXISTS", key().entry) == 0
