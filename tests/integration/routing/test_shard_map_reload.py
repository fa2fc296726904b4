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
from support.postgres.tenant_cases import fetch, operation
from support.shard_map_world import Shards, World, row_counts, tenant_on, worker, write_map

from simplu_worker.errors import RetryableError
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
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
    assert world.gateway.cached_shard_id("-".join(old)) == "shard-1"
    with capture_logs() as logs:
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


async def test_reload_refuses_a_bad_file_and_goes_on_by_the_map_before(world: World) -> None:
    tenant, refused = tenant_on(0, 2), reload_count("refused")
    await world.provision(tenant)
    world.path.write_bytes(
        b'{"shards": [{"shardId": "shard-1", "connectionString": "mysql://u:correct-horse@evil/d"}]}'
    )

    said = await world.hang_up()

    assert (said["event"], said["log_level"]) == ("shard_map.refused", "error")
    assert all(problem.startswith("SHARD_MAP_FILE: ") for problem in said["problems"])
    assert "correct-horse" not in str(said)
    assert reload_count("refused") == refused + 1
    assert await world.found(tenant) == "shard-1"
    assert [shard.shard_id for shard in await world.locator.list_shards()] == ["shard-1", "shard-2"]


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
    assert pool.address.connection_string == shards[0].connection_string
    assert shards[2].connection_string not in str(logs)

    await world.reload(copy, shards[1])
    assert pool.address.connection_string == copy.connection_string
    assert await world.found(tenant) == Absence.NOT_HERE  # a copy made before the tenant
    await world.reload(copy, shards[1], replicas={"shard-1": shards[0].connection_string})
    assert pool.address.successor(world.locator.known_shards()[0], is_healthy=False) is not None  # its replica


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
