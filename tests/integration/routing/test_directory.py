"""Where a tenant lives: asked once by many, confirmed by the shard, followed where it moved, forgotten when wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.citrus.cases import RoutedShards, requests_to, routed_shards, silent
from support.moves.world import OPTIONS
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TENANT_WAIT, TenantCase, add_tenant, fetch, operation

from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_rules import HASH_KEY_LAST
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, HashRange
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.listing import ListRequest, OperationPage
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.lookups import RejectedRequest
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap
from simplu_worker.shards.routing.tenant_homes import TenantHome
from simplu_worker.shards.types import HomeUnknownError, Rejection, ShardUnavailableError
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move

TENANT_ID = "-".join(TENANT)


async def put(routed: RoutedShards, shard_id: str, state: str = "active", moved_to: str | None = None) -> None:
    await add_tenant(routed.pool(shard_id), state=state, moved_to=moved_to)


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


async def test_homes_prefers_a_living_row_when_the_named_shard_has_a_destroyed_one(routed: RoutedShards) -> None:
    first, second = await routed.locator.list_shards()
    await put(routed, "shard-1", "destroyed")
    await put(routed, "shard-2")
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


SEEN_AT = datetime(2026, 3, 1, tzinfo=UTC)
REJECTION = Rejection(TENANT_ID, TENANT[0], "bad", "invalid_message", "expected an object", operation("read").origin)


@dataclass(frozen=True)
class MovedTenant:
    routed: RoutedShards
    late: ShardGateway
    replica: ReplicaStatus

    def case(self, shard_id: str) -> TenantCase:
        return TenantCase(self.routed.pool(shard_id), TENANT)

    async def move(self, source: str = "shard-1", target: str = "shard-2") -> None:
        pools = self.routed.pools
        move = Move(TENANT_ID, source, target)
        certificate = await Mover(pools, ReplicationWaiter(pools), move, OPTIONS, show=lambda _: None).run()
        assert certificate.comparison.verdict == "equal"

    async def noted_on(self, shard_id: str) -> list[str]:
        rows = await fetch(self.routed.pool(shard_id), "SELECT request_id AS id FROM rejections ORDER BY id")
        return [row["id"] for row in rows]

    async def ask(self, request_id: str, *, is_tenant_named: bool = True) -> tuple[int, dict[str, Any]]:
        names: tuple[str | None, str | None] = TENANT if is_tenant_named else (None, None)
        return await self.replica.started.find_operation(request_id, *names, Role.OPERATOR)


@pytest.fixture
async def tenant(routed: RoutedShards) -> AsyncIterator[MovedTenant]:
    async with Pools(size=2) as pools:
        late = ShardGateway(Directory(routed.locator, pools), routed.locator, pools, tenant_wait=TENANT_WAIT)
        replica = ReplicaStatus("replica-2", asyncio.Event())
        lease = Lease("a", TRIM_HORIZON, hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=SEEN_AT)
        fleet = cast("Fleet", SimpleNamespace(readers=list, leases=lambda: [lease], stream_name="s"))
        replica.start(late, pools, routed.locator, fleet=fleet)
        routed.pool("shard-2")
        await put(routed, "shard-1")
        routed.register(TENANT, "shard-1")
        assert await late.find(TENANT_ID) == "shard-1"
        yield MovedTenant(routed, late, replica)


@pytest.mark.slow
@pytest.mark.parametrize("question", ["tenant", "list", "rejection", "survey"])
async def test_each_question_looks_the_home_up_anew_when_its_route_is_old(tenant: MovedTenant, question: str) -> None:
    await tenant.routed.gateway.lookups.note_rejections("shard-1", "letters", [REJECTION])
    first = tenant.case("shard-1").operation("create", data={})
    await tenant.case("shard-1").apply(first)
    await tenant.move()
    await tenant.case("shard-2").apply(tenant.case("shard-2").operation("create", "r2", {}))

    match question:
        case "tenant":
            found = await tenant.late.lookups.find_tenant(TENANT_ID)
            assert isinstance(found, tuple)
            assert (found[0], found[1]["operation_count"]) == ("shard-2", 2)
        case "list":
            page = await tenant.late.lookups.list_operations(*TENANT, ListRequest())
            assert isinstance(page, OperationPage)
            assert (page.shard_id, len(page.operations)) == ("shard-2", 2)
        case "rejection":
            rejected = await tenant.late.lookups.find_rejection("bad", TENANT_ID)
            assert isinstance(rejected, RejectedRequest)
            assert rejected.shard_id == "shard-2"
            of_any = await tenant.late.lookups.find_rejection("bad", None)
            assert isinstance(of_any, RejectedRequest)
            assert of_any.shard_id == "shard-2"
        case "survey":
            survey = await tenant.late.lookups.survey("find_operations", [TENANT_ID], [key_of_id(first.request_id)])
            assert [shard_id for shard_id, _ in survey.rows] == ["shard-2"]


@pytest.mark.slow(0.4)
async def test_nothing_is_written_to_a_former_home_and_the_tenant_moves_back(tenant: MovedTenant) -> None:
    await tenant.move()

    assert await tenant.late.lookups.note_rejections("shard-1", "letters", [REJECTION]) == {}
    assert tenant.late.cached_shard_id(TENANT_ID) is None
    assert await tenant.late.find(TENANT_ID) == "shard-2"
    assert await tenant.late.lookups.note_rejections("shard-2", "letters", [REJECTION]) == {TENANT_ID: TENANT[0]}
    assert (await tenant.noted_on("shard-1"), await tenant.noted_on("shard-2")) == ([], ["bad"])

    await tenant.move("shard-2", "shard-1")
    assert await tenant.noted_on("shard-1") == ["bad"]
