"""Another shard map while at work: it holds from one step to the next, and no tenant is split or lost by it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import silent
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import fetch
from support.shard_map_world import Shards, World, row_counts, tenant_on, worker, write_map

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult, ShardUnavailableError
from simplu_worker.vocabulary import Absence

pytestmark = pytest.mark.slow


def reload_count(outcome: str) -> float:
    return REGISTRY.get_sample_value("simplu_shard_map_reloads_total", {"outcome": outcome}) or 0.0


async def test_reload_places_new_tenants_by_the_new_map_and_leaves_the_others_where_they_are(
    world: World, shards: Shards
) -> None:
    old, new = tenant_on(2, 3, before=0), tenant_on(2, 3, before=0, number=1)
    assert await world.provision(old) is ProvisionResult.PROVISIONED
    assert await world.found(old) == "shard-1"

    said = await world.reload(*shards)

    assert (said["event"], said["log_level"]) == ("shard_map.reloaded", "info")
    assert (said["shard_count"], said["added"], said["left"]) == (3, ["shard-3"], [])
    assert said["moved_route_count"] == 1
    assert world.gateway.cached_shard_id("-".join(old)) == "shard-1"
    with capture_logs() as logs:
        assert await world.refresh.refresh_next()  # in line, though its route was fresh
        assert not await world.refresh.refresh_next()
        assert await world.found(old) == "shard-1"
    assert {(line["event"], line["named_shard_id"], line["shard_id"]) for line in logs} == {
        ("route.conflict", "shard-3", "shard-1")
    }
    assert await world.provision(old) is ProvisionResult.EXISTED
    assert await world.provision(new) is ProvisionResult.PROVISIONED
    assert await world.found(new) == "shard-3"
    assert await row_counts(shards, "-".join(old)) == [1, 0, 0]


async def test_reload_takes_a_marked_map_when_all_are_in_place(world: World, shards: Shards) -> None:
    tenant = tenant_on(2, 3, before=0)
    await world.provision(tenant)
    assert (await world.reload(*shards[:2], all_in_place=True))["event"] == "shard_map.reloaded"

    said = await world.reload(*shards, all_in_place=True)

    assert (said["event"], len(said["problems"])) == ("shard_map.refused", 1)
    assert "is on shard shard-1, and has no row on shard shard-3, where the map places it; pin" in said["problems"][0]
    pinned = await world.reload(*shards, pins={"-".join(tenant): "shard-1"}, all_in_place=True)
    assert pinned["event"] == "shard_map.reloaded"


BAD_FILES = {
    "no JSON": b'{"shards": [{"shardId": "shard-1", "connectionString": "postgresql://u:correct-horse@h',
    "no shards": b'{"shards": []}',
    "another host": b'{"shards": [{"shardId": "shard-1", "connectionString": "mysql://u:correct-horse@evil/d"}]}',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
async def test_reload_refuses_a_bad_file_and_goes_on_by_the_map_before(world: World, content: bytes) -> None:
    tenant, refused = tenant_on(0, 2), reload_count("refused")
    await world.provision(tenant)
    world.path.write_bytes(content)

    said = await world.hang_up()

    assert (said["event"], said["log_level"]) == ("shard_map.refused", "error")
    assert all(problem.startswith("SHARD_MAP_FILE: ") for problem in said["problems"])
    assert "correct-horse" not in str(said)
    assert reload_count("refused") == refused + 1
    assert await world.found(tenant) == "shard-1"
    assert [shard.shard_id for shard in await world.locator.list_shards()] == ["shard-1", "shard-2"]


async def test_reload_refuses_shards_in_another_order(world: World, shards: Shards) -> None:
    said = await world.reload(*shards[1::-1])

    assert said["event"] == "shard_map.refused"
    assert "shard shard-2: expected at place 2" in said["problems"][0]


async def test_reload_uses_another_address_once_the_shard_is_found_there(
    world: World, shards: Shards, make_shard: ShardMaker
) -> None:
    tenant = tenant_on(0, 2)
    await world.provision(tenant)
    pool = world.pools.pool_of("shard-1")
    other = ShardAddress("shard-1", shards[2].connection_string)  # another shard's database
    copy = await make_shard("shard-1")

    with capture_logs() as logs:
        assert (await world.reload(other, shards[1]))["readdressed"] == ["shard-1"]
    await world.directory.address_changer.try_candidate("shard-1")
    assert pool.address.connection_string == shards[0].connection_string
    assert shards[2].connection_string not in str(logs)

    await world.reload(copy, shards[1], replicas={"shard-1": shards[0].connection_string})
    assert await world.found(tenant) == "shard-1"  # as long as nobody has looked there
    await world.directory.address_changer.try_candidate("shard-1")
    assert pool.address.connection_string == copy.connection_string
    assert await world.found(tenant) == Absence.NOT_HERE  # a copy made before the tenant
    assert world.locator.address_book.contested_shard_ids() == ["shard-1"]  # its replica, should it fail


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_tenant_whose_pin_is_taken_away_is_not_made_again(
    world: World, shards: Shards, *, is_restarted: bool
) -> None:
    tenant = tenant_on(0, 2)
    await world.reload(*shards[:2], pins={"-".join(tenant): "shard-2"})
    await world.provision(tenant)
    await world.reload(*shards[:2])
    async with worker(world.path) as restarted:
        of_now = restarted if is_restarted else world
        assert await of_now.provision(tenant) is ProvisionResult.EXISTED
        assert await of_now.found(tenant) == "shard-2"
    assert await row_counts(shards, "-".join(tenant)) == [0, 1, 0]


async def test_a_tenant_made_while_a_shard_was_retired_is_not_made_again_where_its_shard_is_silent(
    shards: Shards, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    write_map(path, *shards, retired=("shard-2",))
    async with worker(path) as world:
        tenants = [tenant_on(1, 3, number=number) for number in range(20)]
        for tenant in tenants:
            await world.provision(tenant)
        passed = [tenant for tenant in tenants if await world.found(tenant) == "shard-3"]
        was_retired = "shard-2"
        assert 'expected "wasRetired": true' in (await world.reload(*shards))["problems"][0]
        assert (await world.reload(*shards, was_retired=[was_retired]))["event"] == "shard_map.reloaded"
    assert len(passed) > 3
    write_map(path, *shards[:2], silent("shard-3"), was_retired=[was_retired])
    async with worker(path) as world:
        for tenant in passed:
            with pytest.raises(ShardUnavailableError, match="shard-3"):
                await world.found(tenant)
            with pytest.raises(ShardUnavailableError, match="shard-3"):
                await world.provision(tenant)
    for tenant in passed:
        assert await row_counts(shards, "-".join(tenant)) == [0, 0, 1]


def histories(seed: int, count: int) -> Iterator[tuple[int, tuple[str, ...], dict[str, str]]]:
    draw = random.Random(seed)
    size = 1
    for _ in range(count):
        size = min(3, size + draw.choice((0, 0, 1)))
        names = [f"shard-{number}" for number in range(1, size + 1)]
        retired = tuple(name for name in names if draw.random() < 0.3)
        pins = {f"clinic-{draw.randrange(40)}": draw.choice(names) for _ in range(draw.randrange(4))}
        yield size, retired if len(retired) < size else (), pins


@pytest.mark.parametrize("seed", range(2))
async def test_no_tenant_is_split_whatever_maps_follow_each_other(shards: Shards, tmp_path: Path, seed: int) -> None:
    tenants = [("clinic", f"{number}") for number in range(40)]
    path = tmp_path / "map.json"
    write_map(path, shards[0])
    was_retired: set[str] = set()
    async with worker(path) as one:
        for size, retired, pins in histories(seed, 8):
            answer = await one.reload(*shards[:size], retired=retired, was_retired=was_retired, pins=pins)
            assert answer["event"] == "shard_map.reloaded"
            was_retired |= {*retired}
            draw = random.Random(f"{seed} {size} {pins}")
            requests = [ProvisionRequest(*tenant, "dental", datetime.now(UTC)) for tenant in draw.sample(tenants, k=10)]
            async with worker(path) as another:
                for made_by in (one, another):
                    answers = await made_by.provisioner.provision_all(requests)
                    assert set(answers) <= {ProvisionResult.PROVISIONED, ProvisionResult.EXISTED}
                for request in requests:
                    ids = (request.business_id, request.location_id)
                    assert await one.found(ids) == await another.found(ids)
    pools = [ShardPool(shard, size=1) for shard in shards]
    made = [row["id"] for pool in pools for row in await fetch(pool, "SELECT id FROM tenants")]
    for pool in pools:
        await pool.close()
    assert len(made) == len(set(made)) > 20
