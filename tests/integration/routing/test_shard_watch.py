"""Shards are listed and followed; routes serve on while Citrus is away; its lies misplace nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, requests_to, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, add_tenant_at, fetch

from simplu_local.processes.loopback import poll_until
from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.routing.shard_watch import CALM_S, TROUBLE_MAX_S, ShardWatch
from simplu_worker.vocabulary import Absence, Inability

TENANT_ID = "-".join(TENANT)
LATE_S = 2 * CALM_S


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class World:
    routed: RoutedShards
    clock: Clock

    async def later(self, seconds: float) -> int:
        before, self.clock.now = requests_to("shards_health"), self.clock.now + seconds
        await self.routed.watch.list_when_due()
        return requests_to("shards_health") - before

    async def found(self) -> str:
        return await self.routed.gateway.find_again(TENANT_ID)


@pytest.fixture
async def world(make_shard: ShardMaker) -> AsyncIterator[World]:
    clock = Clock()
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with routed_shards(shards, clock=clock) as routed:
        world = World(routed, clock)
        routed.register(TENANT, "shard-1")
        await add_tenant(world.routed.pool("shard-1"))
        assert await routed.gateway.find(TENANT_ID) == "shard-1"
        await world.later(0)
        yield world


@contextlib.asynccontextmanager
async def running(watch: ShardWatch) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watch.run())
        try:
            yield
        finally:
            task.cancel()


def soon(is_so: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return is_so()

    return look


async def test_shards_are_listed_each_minute_and_routes_to_inactive_ones_end(world: World) -> None:
    before = requests_to("get_shard")
    assert [await world.later(CALM_S / 2), await world.later(CALM_S), await world.later(1)] == [0, 1, 0]
    assert world.routed.gateway.cached_shard_id(TENANT_ID) == "shard-1"
    assert requests_to("get_shard") == before
    world.routed.citrus.registry.shards["shard-1"].is_active = False
    assert await world.later(LATE_S) == 1
    assert world.routed.gateway.cached_shard_id(TENANT_ID) is None
    assert await world.found() == Absence.INACTIVE


async def test_shards_are_listed_often_while_one_is_silent_or_citrus_was(world: World) -> None:
    world.routed.citrus.faults.is_unreachable = True
    with pytest.raises(RetryableError):
        await world.routed.gateway.find("new-tenant")
    inabilities = [world.routed.locator.inability]
    world.routed.citrus.faults.is_unreachable = False
    assert [await world.later(1), await world.later(0)] == [1, 0]
    assert [*inabilities, world.routed.locator.inability] == [Inability.CITRUS_UNREACHABLE, None]
    world.routed.pool("shard-1").is_healthy = False
    assert [await world.later(TROUBLE_MAX_S) for _ in range(3)] == [1, 1, 1]


async def test_silent_shard_that_citrus_lists_no_more_is_forgotten(world: World) -> None:
    pool = world.routed.pool("shard-2")
    del world.routed.citrus.registry.shards["shard-2"]
    await world.later(LATE_S)
    assert world.routed.pools.pool_of("shard-2") is pool
    pool.is_healthy = False
    await world.later(LATE_S)
    assert [*world.routed.pools.by_shard_id()] == ["shard-1"]


@pytest.mark.slow
async def test_a_tenant_in_doubt_is_found_by_its_last_shard_while_citrus_is_away(world: World) -> None:
    world.routed.citrus.faults.is_unreachable = True
    pool = world.routed.pool("shard-1")
    assert await world.found() == "shard-1"
    await fetch(pool, "UPDATE tenants SET state = 'fenced'")
    assert await world.found() == Absence.MOVING
    await fetch(pool, "UPDATE tenants SET state = 'active'")
    assert await world.found() == "shard-1"

    await world.routed.directory.find(TENANT_ID)
    world.routed.citrus.faults.is_unreachable = False
    await world.routed.locator.list_shards()
    world.routed.citrus.faults.is_unreachable = True
    await add_tenant(world.routed.pool("shard-2"))
    await fetch(pool, "UPDATE tenants SET state = 'moved', moved_to = 'shard-2'")
    assert await world.found() == "shard-2"

    await fetch(world.routed.pool("shard-2"), "DELETE FROM tenants")
    with pytest.raises(RetryableError, match="Citrus"):
        await world.found()


@pytest.mark.parametrize("named", ["shard-2", None])
async def test_a_route_stays_when_citrus_lies_and_the_shard_has_the_tenant(world: World, named: str | None) -> None:
    world.routed.citrus.faults.wrong_shards[TENANT_ID] = named
    with capture_logs() as logs:
        assert await world.found() == "shard-1"

    assert world.routed.gateway.cached_shard_id(TENANT_ID) == "shard-1"
    conflicts = [entry for entry in logs if entry["event"] == "route.conflict"]
    assert [(entry["named_shard_id"], entry["shard_id"]) for entry in conflicts] == [(named, "shard-1")]


async def test_a_wrong_address_does_nothing_to_a_shard_that_works(world: World, make_shard: ShardMaker) -> None:
    shard = world.routed.citrus.registry.shards["shard-1"]
    right = shard.connection_string
    other, empty, standby = (
        await make_shard("shard-9"),
        await make_shard("shard-1", is_empty=True),
        await make_shard("shard-1"),
    )
    database = standby.connection_string.rpartition("/")[2]
    await execute(standby.connection_string, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    case, errors = TenantCase(world.routed.pool("shard-1"), TENANT), []
    for number, wrong in enumerate((other, empty, silent("shard-1"), standby)):
        shard.connection_string = wrong.connection_string
        with capture_logs() as logs:
            assert await world.later(LATE_S) == 1
        errors += [entry["error"] for entry in logs if entry["event"] == "shard.address_refused"]
        assert "secret-word" not in repr(logs)
        create = case.operation("create", f"r{number}", data={})
        assert await world.routed.gateway.apply("shard-1", [create]) == [SUCCEEDED]
        assert REGISTRY.get_sample_value("simplu_shard_healthy", {"shard_id": "shard-1"}) == 1

    assert world.routed.pools.by_shard_id()["shard-1"].address.connection_string == right
    parts = ("the database of shard shard-9", "empty", "nothing listens there", "read-only")
    for error, part in zip(errors, parts, strict=True):
        assert part in error


@pytest.mark.slow(0.4)
async def test_a_shard_in_trouble_is_asked_for_once_and_followed_for_all_its_tenants(
    make_shard: ShardMaker,
) -> None:
    old, new = await make_shard("shard-1"), await make_shard("shard-1")
    async with routed_shards([old]) as routed:
        tenants = [("clinic", str(number)) for number in range(20)]
        pool = routed.pools.ensure_pool(old)
        for tenant in tenants:
            routed.register(tenant, "shard-1")
            await add_tenant(pool, tenant)
            await add_tenant_at(new, tenant)
            await routed.gateway.find("-".join(tenant))
        before = requests_to("get_shard") + requests_to("shards_health")
        routed.citrus.registry.shards["shard-1"].connection_string = new.connection_string
        async with running(routed.watch):
            pool.is_healthy = False  # as after any failure
            started = asyncio.get_running_loop().time()
            assert await poll_until(soon(lambda: pool.address.connection_string == new.connection_string), within_s=60)
            took_s = asyncio.get_running_loop().time() - started
            assert await poll_until(soon(lambda: pool.is_healthy), within_s=60)

        assert took_s < 10  # on a slow machine
        assert requests_to("get_shard") + requests_to("shards_health") - before <= 3
        for tenant in tenants:
            create = TenantCase(pool, tenant).operation("create", data={})
            assert await routed.gateway.apply("shard-1", [create]) == [SUCCEEDED]
