"""A shard that leaves the map: only an empty one may, and it is never written to again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.citrus.cases import silent
from support.postgres.tenant_cases import fetch, operation
from support.shard_map_world import Shards, World, tenant_on, worker, write_map

from simplu_worker.errors import RetryableError
from simplu_worker.operations.waves import HOLD
from simplu_worker.vocabulary import Absence


async def test_reload_lets_a_shard_leave_only_when_it_was_retired_and_says_that_it_is_empty(
    world: World, shards: Shards
) -> None:
    tenant = tenant_on(1, 2)
    await world.provision(tenant)

    assert 'not marked "retired"' in (await world.reload(shards[0]))["problems"][0]
    assert (await world.reload(*shards[:2], retired=("shard-2",)))["event"] == "shard_map.reloaded"
    assert await world.found(tenant) == "shard-2"  # retired: it takes no new ones, and keeps its own
    assert "as it has 1 tenants" in (await world.reload(shards[0]))["problems"][0]
    await fetch(world.pools.pool_of("shard-2"), "UPDATE tenants SET state = 'moved', moved_to = 'shard-1'")

    said = await world.reload(shards[0])

    assert (said["event"], said["left"]) == ("shard_map.reloaded", ["shard-2"])


async def test_reload_keeps_a_shard_that_does_not_say_whether_it_is_empty(shards: Shards, tmp_path: Path) -> None:
    down = silent("shard-2")
    write_map(tmp_path / "map.json", shards[0], down, retired=("shard-2",))
    async with worker(tmp_path / "map.json") as world:
        said = await world.reload(shards[0])

    assert said["event"] == "shard_map.refused"
    assert "shard shard-2: expected, as it gave no answer" in said["problems"][0]


async def left(world: World, shards: Shards) -> tuple[str, str]:
    tenant = tenant_on(1, 2)
    await world.provision(tenant)
    assert await world.found(tenant) == "shard-2"
    await world.reload(*shards[:2], retired=("shard-2",))
    await fetch(world.pools.pool_of("shard-2"), "DELETE FROM tenants")
    assert (await world.reload(shards[0]))["left"] == ["shard-2"]
    return tenant


async def test_a_shard_that_left_is_never_written_to(world: World, shards: Shards) -> None:
    pool = world.pools.ensure_pool(shards[1])
    tenant = await left(world, shards)
    create = operation("create", "r1", {}, tenant=tenant)

    assert world.gateway.cached_shard_id("-".join(tenant)) is None
    assert await world.gateway.apply("shard-2", [create, create]) == [HOLD, HOLD]
    assert await world.gateway.give_up("shard-2", create) == HOLD
    await world.gateway.probe("shard-2")  # nobody waits for it: what was held for it is asked for by tenant
    assert await world.found(tenant) == Absence.NOT_HERE
    assert await world.gateway.list_shard_ids() == ["shard-1"]
    for use in (
        lambda: world.gateway.positions.read_positions("shard-2", "stream", ["shardId-0"]),
        lambda: world.gateway.positions.write_positions("shard-2", []),
        lambda: world.gateway.wait_until_safe("shard-2", [create]),
        lambda: world.directory.find_home("-".join(tenant), shards[1]),
        pool.probe,
        lambda: fetch(pool, "SELECT 1"),
    ):
        with pytest.raises(RetryableError):
            await use()
    assert pool.counts()["open"] == 0
