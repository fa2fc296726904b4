"""What the command checks before a move, and what it publishes after it; with a Citrus that is away for a while."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards
from support.moves.failpoints import set_failpoint
from support.moves.world import ROWS, TENANT_ID
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch
from support.settings import settings_in

from simplu_worker.commands.command_line import DEFAULT_BOUNDS
from simplu_worker.commands.moves import MoveRequest, MoveRunner, plan_request
from simplu_worker.errors import PermanentError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress


class CitrusWorld:
    def __init__(self, routed: RoutedShards) -> None:
        self.faults = routed.citrus.faults
        self.registry = routed.citrus.registry
        commits = ReplicationWaiter(routed.pools)
        self.shards = cast("Any", SimpleNamespace(locator=routed.locator, pools=routed.pools, commits=commits))

    def set_away(self, *, is_away: bool) -> None:
        self.faults.is_unreachable, self.faults.status = is_away, 503 if is_away else None

    def case(self, shard_id: str) -> TenantCase:
        return TenantCase(self.shards.pools.pool_of(shard_id), TENANT)

    async def move(self, capsys: pytest.CaptureFixture[str], shard_id: str = "b") -> dict[str, Any]:
        settings = settings_in({"AWS_REGION": "eu-west-1"})
        status = await MoveRunner(settings, self.shards, DEFAULT_BOUNDS, as_json=True).run(
            [MoveRequest(*TENANT, shard_id)]
        )
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert status == (0 if result["outcome"] == "moved" else 1)
        return result


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
async def addresses(make_shard: ShardMaker) -> list[ShardAddress]:
    return [await make_shard("a"), await make_shard("b")]


@pytest.fixture
async def world(addresses: list[ShardAddress]) -> AsyncIterator[CitrusWorld]:
    async with routed_shards(addresses, tenants_per_shard=2) as routed:
        routed.register(TENANT, "a")
        world = CitrusWorld(routed)
        for address in addresses:
            world.shards.pools.ensure_pool(address)
        await add_tenant(world.case("a").pool)
        await fetch(world.case("a").pool, ROWS, TENANT_ID, 100)
        yield world


@pytest.mark.slow(2)
async def test_move_writes_nothing_while_citrus_is_away(world: CitrusWorld, capsys: pytest.CaptureFixture[str]) -> None:
    before = await world.case("a").resources()
    world.set_away(is_away=True)
    result = await world.move(capsys)
    assert result["outcome"] == "failed"
    assert "Citrus" in result["error"]
    assert await fetch(world.case("a").pool, "SELECT FROM transfers") == []
    assert await fetch(world.case("b").pool, "SELECT FROM tenants") == []

    world.set_away(is_away=False)
    result = await world.move(capsys)
    assert (result["outcome"], "warning" in result) == ("moved", False)
    assert await world.case("b").resources() == before
    assert world.registry.homes[TENANT_ID].shard_id == "b"


@pytest.mark.parametrize("point", ["after _prepare", "after _copy", "before _publish"])
@pytest.mark.slow(2)
async def test_move_ends_without_citrus_and_the_same_command_publishes_it(
    world: CitrusWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    before = await world.case("a").resources()

    async def go_away(_: object) -> None:
        world.set_away(is_away=True)

    with monkeypatch.context() as patch:
        set_failpoint(point, go_away, patch.setattr)
        result = await world.move(capsys)
    assert (result["outcome"], result["certificate"]["tenant"]) == ("moved", TENANT_ID)
    assert "the old shard leads there" in result["warning"]
    assert world.registry.homes[TENANT_ID].shard_id == "a"
    assert await fetch(world.case("a").pool, "SELECT state, moved_to FROM tenants") == [
        {"state": "moved", "moved_to": "b"}
    ]

    world.set_away(is_away=False)
    result = await world.move(capsys)
    assert (result["outcome"], "warning" in result) == ("moved", False)
    assert world.registry.homes[TENANT_ID].shard_id == "b"
    assert await world.case("b").resources() == before


@pytest.mark.slow
async def test_target_without_the_business_type_is_refused_before_anything_is_written(
    world: CitrusWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = world.case("b").pool
    await fetch(pool, "UPDATE business_types SET name = 'another' WHERE name = 'dental'")
    error = "shard b lacks the tenant's business type dental; write it there with"

    with pytest.raises(PermanentError, match=error):
        await plan_request(world.shards, MoveRequest(*TENANT, "b"))
    result = await world.move(capsys)
    assert (result["outcome"], result["error"][: len(error)]) == ("failed", error)
    assert await fetch(world.case("a").pool, "SELECT FROM transfers") == []
    assert await fetch(pool, "SELECT FROM tenants") == []

    await fetch(pool, "UPDATE business_types SET name = 'dental' WHERE name = 'another'")
    assert (await world.move(capsys))["outcome"] == "moved"
