"""`check` does on each shard what a worker does, and leaves nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest
from support.postgres.databases import ShardMaker, execute
from support.settings import settings_in

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.check.checking import DependencyChecks
from simplu_worker.commands.check.dependency import CheckStatus
from simplu_worker.shards.postgres.address import ShardAddress

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
    shards = [{"shardId": address.shard_id, "connectionString": address.connection_string}]
    (path := folder / "map.json").write_text(json.dumps({"shards": shards}))
    settings = settings_in({"SHARD_MAP_FILE": str(path)})
    async with open_shards(settings) as opened:
        (answer,) = await DependencyChecks(settings).check_shards(opened)
    return answer.status, answer.result


@pytest.mark.slow
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


@pytest.mark.slow
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
