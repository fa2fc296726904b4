"""After a move: a replica that remembers the old route answers from the new home, and writes nothing to the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.citrus.cases import RoutedShards, routed_shards
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
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.types import Rejection
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import Role
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.types import Move

TENANT_ID = "-".join(TENANT)
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


@asynccontextmanager
async def moved_tenant(make_shard: ShardMaker) -> AsyncIterator[MovedTenant]:
    async with (
        routed_shards([await make_shard("shard-1"), await make_shard("shard-2")]) as routed,
        Pools(size=2) as pools,
    ):
        late = ShardGateway(Directory(routed.locator, pools), routed.locator, pools, tenant_wait=TENANT_WAIT)
        replica = ReplicaStatus("replica-2", asyncio.Event())
        lease = Lease("a", TRIM_HORIZON, hash_range=HashRange(0, HASH_KEY_LAST), read_up_to=SEEN_AT)
        fleet = cast("Fleet", SimpleNamespace(readers=list, leases=lambda: [lease], stream_name="s"))
        replica.start(late, pools, routed.locator, fleet=fleet)
        moved = MovedTenant(routed, late, replica)
        moved.routed.pool("shard-2")
        await add_tenant(moved.routed.pool("shard-1"))
        routed.register(TENANT, "shard-1")
        assert await late.find(TENANT_ID) == "shard-1"
        yield moved


@pytest.fixture
async def tenant(make_shard: ShardMaker) -> AsyncIterator[MovedTenant]:
    async with moved_tenant(make_shard) as moved:
        yield moved


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
