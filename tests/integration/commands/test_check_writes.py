from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, execute
from support.postgres.tenant_cases import TENANT, add_tenant, fetch
from support.settings import settings_of

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.check.checking import CheckStatus, DependencyChecks
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.inventory import provision_tenant
from simplu_worker.config.settings import Settings
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import DestructionResult

pytestmark = pytest.mark.slow


RAISE = """
CREATE FUNCTION public.refuse() RETURNS {kind} LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'refused by its owner' USING ERRCODE = '{code}'; END $$;
"""
DDL = RAISE.format(kind="event_trigger", code="42501") + (
    "CREATE EVENT TRIGGER refuse_tables ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION refuse()"
)


def at(table: str, code: str) -> str:
    trigger = f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
    return RAISE.format(kind="trigger", code=code) + trigger


async def checked(address: ShardAddress, folder: Path) -> tuple[CheckStatus, str]:
    settings = settings_of(folder, address)
    async with open_shards(settings) as opened:
        (answer,) = await DependencyChecks(settings).check_shards(opened)
    return answer.status, answer.result


@pytest.mark.parametrize(
    ("is_empty", "ruin", "code"),
    [
        (True, DDL, "42501"),
        (False, at("tenants", "42501"), "42501"),
        (False, at("log_rows", "42P10"), "42P10"),
        (False, at("resources", "XX001"), "XX001"),
        (False, at("stream_positions", "42501"), "42501"),
    ],
    ids=["schema", "tenant", "log", "resource", "position"],
)
async def test_check_finds_writes_that_a_shard_refuses(
    make_shard: ShardMaker, tmp_path: Path, ruin: str, code: str, *, is_empty: bool
) -> None:
    address = await make_shard(is_empty=is_empty)
    await execute(address.connection_string, ruin)
    status, result = await checked(address, tmp_path)
    assert status is CheckStatus.FAILED
    assert f"({code})" in result


@pytest.mark.parametrize("is_empty", [True, False])
async def test_check_leaves_a_shard_as_it_was(make_shard: ShardMaker, tmp_path: Path, *, is_empty: bool) -> None:
    address = await make_shard(is_empty=is_empty)
    connection = await asyncpg.connect(address.connection_string)
    tables = "SELECT relname, n_live_tup FROM pg_stat_user_tables ORDER BY relname"
    rows = "SELECT (SELECT count(*) FROM tenants) + (SELECT count(*) FROM log_rows) + (SELECT count(*) FROM resources)"
    try:
        before = [row["relname"] for row in await connection.fetch(tables)]
        assert (await checked(address, tmp_path))[0] is CheckStatus.OK
        assert [row["relname"] for row in await connection.fetch(tables)] == before
        assert is_empty or await connection.fetchval(rows) == 0
        assert bool(before) is not is_empty
    finally:
        await connection.close()


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
async def world(shard: ShardPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(settings_of(tmp_path, shard.address), shard, capsys)


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
