"""Shards are listed and followed; routes serve on while Citrus is away; its lies misplace nobody."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, requests_to, routed_shards, silent
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, add_tenant_at, fetch, operation
from support.shard_map_world import Shards, World, row_counts, tenant_on, worker, write_map

from simplu_local.processes.loopback import poll_until
from simplu_worker.errors import RetryableError
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.shard_watch import CALM_S, TROUBLE_MAX_S, ShardWatch
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
from simplu_worker.vocabulary import Absence, Inability

TENANT_ID = "-".join(TENANT)
LATE_S = 2 * CALM_S


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Watched:
    routed: RoutedShards
    clock: Clock

    async def later(self, seconds: float) -> int:
        before, self.clock.now = requests_to("shards_health"), self.clock.now + seconds
        await self.routed.watch.list_when_due()
        return requests_to("shards_health") - before

    async def found(self) -> str:
        return await self.routed.gateway.find_again(TENANT_ID)


@pytest.fixture
async def watched(make_shard: ShardMaker) -> AsyncIterator[Watched]:
    clock = Clock()
    shards = [await make_shard("shard-1"), await make_shard("shard-2")]
    async with routed_shards(shards, clock=clock) as routed:
        watched = Watched(routed, clock)
        routed.register(TENANT, "shard-1")
        await add_tenant(watched.routed.pool("shard-1"))
        assert await routed.gateway.find(TENANT_ID) == "shard-1"
        await watched.later(0)
        yield watched


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


async def test_shards_are_listed_each_minute_and_routes_to_inactive_ones_end(watched: Watched) -> None:
    before = requests_to("get_shard")
    assert [await watched.later(CALM_S / 2), await watched.later(CALM_S), await watched.later(1)] == [0, 1, 0]
    assert watched.routed.gateway.cached_shard_id(TENANT_ID) == "shard-1"
    assert requests_to("get_shard") == before
    watched.routed.citrus.registry.shards["shard-1"].is_active = False
    assert await watched.later(LATE_S) == 1
    assert watched.routed.gateway.cached_shard_id(TENANT_ID) is None
    assert await watched.found() == Absence.INACTIVE


async def test_shards_are_listed_often_while_one_is_silent_or_citrus_was(watched: Watched) -> None:
    watched.routed.citrus.faults.is_unreachable = True
    with pytest.raises(RetryableError):
        await watched.routed.gateway.find("new-tenant")
    inabilities = [watched.routed.locator.inability]
    watched.routed.citrus.faults.is_unreachable = False
    assert [await watched.later(1), await watched.later(0)] == [1, 0]
    assert [*inabilities, watched.routed.locator.inability] == [Inability.CITRUS_UNREACHABLE, None]
    watched.routed.pool("shard-1").is_healthy = False
    assert [await watched.later(TROUBLE_MAX_S) for _ in range(3)] == [1, 1, 1]


async def test_silent_shard_that_citrus_lists_no_more_is_forgotten(watched: Watched) -> None:
    pool = watched.routed.pool("shard-2")
    del watched.routed.citrus.registry.shards["shard-2"]
    await watched.later(LATE_S)
    assert watched.routed.pools.pool_of("shard-2") is pool
    pool.is_healthy = False
    await watched.later(LATE_S)
    assert [*watched.routed.pools.by_shard_id()] == ["shard-1"]


@pytest.mark.slow
async def test_a_tenant_in_doubt_is_found_by_its_last_shard_while_citrus_is_away(watched: Watched) -> None:
    watched.routed.citrus.faults.is_unreachable = True
    pool = watched.routed.pool("shard-1")
    assert await watched.found() == "shard-1"
    await fetch(pool, "UPDATE tenants SET state = 'fenced'")
    assert await watched.found() == Absence.MOVING
    await fetch(pool, "UPDATE tenants SET state = 'active'")
    assert await watched.found() == "shard-1"

    await watched.routed.directory.find(TENANT_ID)
    watched.routed.citrus.faults.is_unreachable = False
    await watched.routed.locator.list_shards()
    watched.routed.citrus.faults.is_unreachable = True
    await add_tenant(watched.routed.pool("shard-2"))
    await fetch(pool, "UPDATE tenants SET state = 'moved', moved_to = 'shard-2'")
    assert await watched.found() == "shard-2"

    await fetch(watched.routed.pool("shard-2"), "DELETE FROM tenants")
    with pytest.raises(RetryableError, match="Citrus"):
        await watched.found()


@pytest.mark.parametrize("named", ["shard-2", None])
async def test_a_route_stays_when_citrus_lies_and_the_shard_has_the_tenant(watched: Watched, named: str | None) -> None:
    watched.routed.citrus.faults.wrong_shards[TENANT_ID] = named
    with capture_logs() as logs:
        assert await watched.found() == "shard-1"

    assert watched.routed.gateway.cached_shard_id(TENANT_ID) == "shard-1"
    conflicts = [entry for entry in logs if entry["event"] == "route.conflict"]
    assert [(entry["named_shard_id"], entry["shard_id"]) for entry in conflicts] == [(named, "shard-1")]


async def test_a_wrong_address_does_nothing_to_a_shard_that_works(watched: Watched, make_shard: ShardMaker) -> None:
    shard = watched.routed.citrus.registry.shards["shard-1"]
    right = shard.connection_string
    other, empty, standby = (
        await make_shard("shard-9"),
        await make_shard("shard-1", is_empty=True),
        await make_shard("shard-1"),
    )
    database = standby.connection_string.rpartition("/")[2]
    await execute(standby.connection_string, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    case, errors = TenantCase(watched.routed.pool("shard-1"), TENANT), []
    for number, wrong in enumerate((other, empty, silent("shard-1"), standby)):
        shard.connection_string = wrong.connection_string
        with capture_logs() as logs:
            assert await watched.later(LATE_S) == 1
        errors += [entry["error"] for entry in logs if entry["event"] == "shard.address_refused"]
        assert "secret-word" not in repr(logs)
        create = case.operation("create", f"r{number}", data={})
        assert await watched.routed.gateway.apply("shard-1", [create]) == [SUCCEEDED]
        assert REGISTRY.get_sample_value("simplu_shard_healthy", {"shard_id": "shard-1"}) == 1

    assert watched.routed.pools.by_shard_id()["shard-1"].address.connection_string == right
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


def reload_count(outcome: str) -> float:
    return REGISTRY.get_sample_value("simplu_shard_map_reloads_total", {"outcome": outcome}) or 0.0


@pytest.mark.slow
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


@pytest.mark.slow
async def test_reload_takes_a_marked_map_when_all_are_in_place(world: World, shards: Shards) -> None:
    tenant = tenant_on(2, 3, before=0)
    await world.provision(tenant)
    assert (await world.reload(*shards[:2], all_in_place=True))["event"] == "shard_map.reloaded"

    said = await world.reload(*shards, all_in_place=True)

    assert (said["event"], len(said["problems"])) == ("shard_map.refused", 1)
    assert "is on shard shard-1, and has no row on shard shard-3, where the map places it; pin" in said["problems"][0]
    pinned = await world.reload(*shards, pins={"-".join(tenant): "shard-1"}, all_in_place=True)
    assert pinned["event"] == "shard_map.reloaded"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
