from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.tenant_cases import add_tenant
from support.reader_world import World, chain, eventually, logs, open_world

from simplu_local.postgres.server import PostgresServer
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.pipeline import home_lookup
from simplu_worker.shards.postgres.statement_timeouts import DEFAULT_TIMEOUTS

TENANT = ("b", "x")

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.fixture
async def world(endpoint_url: str, make_shard: ShardMaker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(home_lookup, "RETRY_MAX_S", 0.25)
    async with open_world(endpoint_url, make_shard, timeouts=DEFAULT_TIMEOUTS) as world:
        yield world


def leave(world: World, shard_id: str) -> None:
    del world.citrus.registry.shards[shard_id]
    world.pools.retire([shard_id])
    world.gateway._directory.routes.apply_map_change([shard_id])


def held_targets(reader: StreamShardReader) -> list[tuple[str, str]]:
    return sorted((held["target"], held["reason"]) for held in reader.view.held_status())


@pytest.mark.slow(1)
async def test_what_is_on_its_way_to_a_shard_that_leaves_is_applied_where_its_tenant_lives(world: World) -> None:
    await world.provision("b-x", "shard-2")
    old, new = await world.shard("shard-2"), await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*chain("b-x", 3))
        await logs(old, "b-x", 3)
        await add_tenant(new, TENANT, created_at=datetime.now(UTC))
        world.citrus.registry.place("b-x", world.citrus.registry.shards["shard-1"])
        leave(world, "shard-2")
        await world.put(*chain("b-x", 30, first=3))
        await logs(new, "b-x", 30)
        await eventually(lambda: not reader.view.held_status())
    await old.close()


@pytest.mark.slow(2)
async def test_what_is_held_for_a_shard_that_leaves_is_held_by_tenant_then(
    world: World, breakable_server: PostgresServer
) -> None:
    broken = world.add_shard(await copy_shard(breakable_server, shard_id="shard-2"))
    await world.provision("b-x", "shard-2")
    new = await world.shard("shard-1")
    async with world.reading() as reader:
        await world.put(*chain("b-x", 3))
        await logs(broken, "b-x", 3)
        await breakable_server.kill()
        await world.put(*chain("b-x", 30, first=3))
        await eventually(lambda: held_targets(reader) == [("shard shard-2", "shard_unavailable")])
        world.citrus.registry.place("b-x", world.citrus.registry.shards["shard-1"])
        leave(world, "shard-2")
        await eventually(lambda: held_targets(reader) == [("tenant b-x", "not_here")])
        await add_tenant(new, TENANT, created_at=datetime.now(UTC))
        await logs(new, "b-x", 30)
        await eventually(lambda: not reader.view.held_status())
    await broken.close()
