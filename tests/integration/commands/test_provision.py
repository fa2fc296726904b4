"""`tenants provision` of one tenant: it creates, and changes no tenant that exists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.tenant_cases import TENANT, add_tenant, fetch
from support.settings import settings_of

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.inventory import provision_tenant
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import DestructionResult

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class World:
    settings: Settings
    pool: ShardPool
    capsys: pytest.CaptureFixture[str]

    async def provision(self, business_type: str = "dental", *, as_json: bool = False) -> tuple[int, str, str]:
        status = await show(provision_tenant(self.settings, *TENANT, business_type), as_json=as_json)
        return status, *self.capsys.readouterr()

    async def row(self) -> dict[str, Any]:
        (row,) = await fetch(self.pool, "SELECT * FROM tenants")
        return row


@pytest.fixture
async def world(make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[World]:
    shard = await make_shard("shard-1")
    pool = ShardPool(shard, size=1)
    yield World(settings_of(tmp_path, shard), pool, capsys)
    await pool.close()


async def test_provision_creates_a_tenant_once(world: World) -> None:
    expected = "clinic main, dental, on shard shard-1\n"
    assert await world.provision() == (0, f"provisioned: {expected}", "")
    before = await world.row()
    assert await world.provision() == (0, f"existed: {expected}", "")
    assert (await world.row(), before["control_at"].year) == (before, 1970)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("destroying", "destroying; to bring it back, send a SHARD_CREATION"),
        ("destroyed", "destroyed; to bring it back, send a SHARD_CREATION"),
        ("fenced", "moving; run this again once its move or import has ended"),
    ],
)
async def test_provision_leaves_a_tenant_that_is_not_active(world: World, state: str, told: str) -> None:
    await add_tenant(world.pool, state=state)
    before = await world.row()
    status, out, notes = await world.provision()
    assert (status, out.partition(",")[0]) == (1, "stale: clinic main")
    assert notes == f"nothing was changed: the tenant is {told}\n"
    assert await world.row() == before


async def test_destruction_that_waits_destroys_a_tenant_made_since(world: World) -> None:
    await add_tenant(world.pool)
    sent_at = datetime.now(UTC) - timedelta(seconds=60)
    assert (await world.provision())[0] == 0
    async with open_shards(world.settings) as shards:
        assert await shards.destroyer.destroy(*TENANT, sent_at) is DestructionResult.DESTROYING
