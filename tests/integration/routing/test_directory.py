"""Where a tenant lives: asked once by many, confirmed by the shard, followed where it moved, forgotten when wrong."""

from __future__ import annotations

import asyncio

import pytest
from support.citrus.cases import RoutedShards, requests_to, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, add_tenant, fetch

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.routing.tenant_homes import TenantHome
from simplu_worker.shards.types import HomeUnknownError, ShardUnavailableError

TENANT_ID = "-".join(TENANT)


async def put(routed: RoutedShards, shard_id: str, state: str = "active", moved_to: str | None = None) -> None:
    shard = next(shard for shard in await routed.locator.list_shards() if shard.shard_id == shard_id)
    await add_tenant(routed.pools.ensure_pool(shard), state=state, moved_to=moved_to)


async def found(routed: RoutedShards) -> str:
    answer = await routed.directory.find(TENANT_ID)
    return answer.shard_id if isinstance(answer, ShardAddress) else f"absent: {answer}"


async def test_find_asks_once_when_many_want_the_same_tenant(routed: RoutedShards) -> None:
    routed.register(TENANT, "shard-1")
    await put(routed, "shard-1")
    before = requests_to("get_shard")

    answers = await asyncio.gather(*(found(routed) for _ in range(100)))

    assert set(answers) == {"shard-1"}
    assert await found(routed) == "shard-1"
    assert requests_to("get_shard") - before == 1
    remembered = routed.directory.cached_address(TENANT_ID)
    assert remembered is not None
    assert remembered.shard_id == "shard-1"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("active", "shard-1"),
        ("destroying", "shard-1"),  # the shard itself gives the outcome
        ("destroyed", "shard-1"),
        ("fenced", "absent: moving"),
        ("incoming", "absent: moving"),
        ("ready", "absent: moving"),
    ],
)
async def test_find_returns_the_shard_as_the_tenants_state_says(
    routed: RoutedShards, state: str, expected: str
) -> None:
    routed.register(TENANT, "shard-1")
    await put(routed, "shard-1", state)

    assert await found(routed) == expected


async def test_find_waits_when_a_shard_that_may_be_home_does_not_answer(make_shard: ShardMaker) -> None:
    up, down = await make_shard("shard-1"), silent("shard-2")
    async with routed_shards([up, down]) as routed:
        routed.register(TENANT, "shard-2")
        with pytest.raises(ShardUnavailableError, match="shard shard-2 at 127"):
            await found(routed)
        routed.register(TENANT, "shard-1")
        with pytest.raises(ShardUnavailableError, match="shard shard-2 at 127"):
            await found(routed)
    async with routed_shards([await make_shard("shard-3"), up, down]) as routed:
        routed.register(TENANT, "shard-3")
        await put(routed, "shard-1")
        assert await found(routed) == "shard-1"


async def test_homes_answers_for_each_of_many_tenants(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1"), await make_shard("shard-2"), silent("shard-3")]) as routed:
        first, second, third = await routed.locator.list_shards()
        for shard, location, state in (
            (first, "here", "active"),
            (second, "there", "active"),
            (second, "gone", "destroyed"),
            (first, "ended", "destroyed"),
        ):
            await add_tenant(routed.pools.ensure_pool(shard), ("b", location), state=state)
        await add_tenant(routed.pools.ensure_pool(first), ("b", "moved"), state="moved", moved_to="shard-2")
        await add_tenant(routed.pools.ensure_pool(second), ("b", "moved"))
        names = ("here", "there", "gone", "ended", "moved", "nowhere")
        before = requests_to("shards_health")

        homes = await routed.directory.homes.find_homes({f"b-{name}": first for name in names} | {"b-silent": third})

        assert requests_to("shards_health") == before + 1  # for earlier homes; by then all are known
        found = {
            name.removeprefix("b-"): home.address.shard_id
            for name, home in homes.items()
            if isinstance(home, TenantHome)
        }
        assert found == {"here": "shard-1", "there": "shard-2", "moved": "shard-2"}
        silent_ones = {name for name, home in homes.items() if isinstance(home, HomeUnknownError)}
        assert silent_ones == {"b-gone", "b-ended", "b-nowhere"}
        assert type(homes["b-silent"]) is ShardUnavailableError  # the one that is named
        del routed.citrus.registry.shards["shard-3"]
        homes = await routed.directory.homes.find_homes({f"b-{name}": first for name in ("gone", "ended", "nowhere")})
        ended = homes.pop("b-ended")
        assert isinstance(ended, TenantHome)
        assert ended.tenant["state"] == "destroyed"
        assert homes == {"b-gone": None, "b-nowhere": None}


async def test_homes_prefers_a_living_row_when_the_named_shard_has_a_destroyed_one(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1"), await make_shard("shard-2")]) as routed:
        first, second = await routed.locator.list_shards()
        await add_tenant(routed.pools.ensure_pool(first), state="destroyed")
        await add_tenant(routed.pools.ensure_pool(second))

        home = (await routed.directory.homes.find_homes({TENANT_ID: first}))[TENANT_ID]

        assert isinstance(home, TenantHome)
        assert home.address == second


async def test_find_asks_the_earlier_homes_of_a_static_map(make_shard: ShardMaker) -> None:
    shards = [await make_shard(f"shard-{number}") for number in (1, 2)]
    mapped = tuple(MappedShard(shard.shard_id, shard.connection_string) for shard in shards)
    locator = StaticMap(ShardMap(shards=mapped))
    tenant = next(
        ("b", str(number)) for number in range(100) if locator.map.shard_of(f"b-{number}").shard_id == "shard-2"
    )
    async with Pools(size=1) as pools:
        await add_tenant(pools.ensure_pool(shards[0]), tenant)
        directory = Directory(locator, pools)

        answer = await directory.find("-".join(tenant))

        assert isinstance(answer, ShardAddress)
        assert answer.shard_id == "shard-1"
        assert await fetch(pools.ensure_pool(shards[1]), "SELECT * FROM tenants") == []
