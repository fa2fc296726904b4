from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Secret
from support.citrus.for_commands import citrus_for_commands, refused
from support.postgres.databases import ShardMaker
from support.postgres.move_cases import (
    TENANT_ID,
    ask,
    fill,
    move,
    roll_back,
    settings_of,
    stop_in_copy,
    unfinished,
)
from support.postgres.tenant_cases import TENANT
from support.redis.server import RedisServer

from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.commands.command_line import DEFAULT_BOUNDS
from simplu_worker.commands.moves import MoveRequest, clean_up_tenants, move_tenant, verify_tenant
from simplu_worker.commands.output import show
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.postgres.address import ShardAddress

SPOIL = """UPDATE resources SET data = '{"n": 1}' WHERE "resourceId" = '7'"""
CORRECT = """UPDATE resources SET data = '{}' WHERE "resourceId" = '7'"""
ENTRY = f"simplu:resource:{TENANT_ID}:patient:7"


@pytest.fixture
def group() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


def answer_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


async def test_tenant_moves_is_verified_moved_back_and_cleaned_up(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, *shards)

    assert await move(settings, "b", apply=False) == 0
    (plan,) = answer_of(capsys)["plan"]
    assert (plan["tenant"], plan["sourceShard"], plan["targetShard"], plan["resources"]) == (TENANT_ID, "a", "b", 20)
    assert await ask(shards[1], "SELECT FROM tenants") == []

    assert await move(settings, "b") == 0
    moved = answer_of(capsys)
    assert (moved["outcome"], moved["certificate"]["epoch"], "warning" in moved) == ("moved", 2, False)
    assert json.loads((tmp_path / "map.json").read_text())["tenants"].get(TENANT_ID, "b") == "b"
    assert await ask(shards[0], "SELECT step, detail->>'verdict' AS verdict FROM transfers") == [
        {"step": "done", "verdict": "equal"}
    ]

    assert await show(verify_tenant(settings, TENANT), as_json=True) == 0
    assert answer_of(capsys)["verdict"] == "equal"
    await ask(shards[1], SPOIL)
    assert await show(verify_tenant(settings, TENANT), as_json=False) == 1
    assert "patient 7" in capsys.readouterr().err
    await ask(shards[1], CORRECT)

    assert await roll_back(settings, apply=False) == 0
    plan = answer_of(capsys)
    assert (plan["rollback"]["backTo"], plan["plan"][0]["targetShard"]) == ("a", "a")
    assert await ask(shards[1], "SELECT state FROM tenants") == [{"state": "active"}]
    assert await roll_back(settings) == 0
    back = answer_of(capsys)
    assert (back["certificate"]["targetShard"], back["certificate"]["epoch"]) == ("a", 3)
    expected = {("a", None), ("b", 20)}
    for apply in (False, True):
        assert await show(clean_up_tenants(settings, "0s", apply=apply), as_json=True) == 0
        assert {(one["left"], one["rows"]) for one in answer_of(capsys)["tenants"]} == expected
    assert await ask(shards[1], "SELECT FROM resources") == []
    assert len(await ask(shards[0], "SELECT FROM resources")) == 20
    with pytest.raises(PermanentError, match="a cleanup or a move back has started"):
        await show(verify_tenant(settings, TENANT), as_json=True)
    assert await roll_back(settings) == 0
    there = answer_of(capsys)
    assert (there["outcome"], there["certificate"]["targetShard"]) == ("moved", "b")
    assert len(await ask(shards[1], "SELECT FROM resources")) == 20


async def differing(shards: list[ShardAddress], settings: Settings) -> None:
    assert await move(settings, "b") == 0
    await ask(shards[1], SPOIL)
    await ask(shards[0], 'UPDATE transfers SET detail = detail || \'{"verdict": "differs"}\'')


@pytest.mark.slow(0.3)
async def test_rows_of_a_move_that_ended_with_others_stay(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, *shards)
    await differing(shards, settings)
    moving = move_tenant(settings, MoveRequest(*TENANT, "b"), DEFAULT_BOUNDS, apply=True, as_json=False)
    assert await show(moving, as_json=False) == 1
    assert "correct what differs, then this move again" in capsys.readouterr().err
    for apply in (False, True):
        assert await show(clean_up_tenants(settings, "0s", apply=apply), as_json=True) == 1
        (kept,) = answer_of(capsys)["tenants"]
        assert "with --differing" in kept["error"]
    assert len(await ask(shards[0], "SELECT FROM resources")) == 20

    await ask(shards[1], CORRECT)
    assert await move(settings, "b") == 0
    assert await show(clean_up_tenants(settings, "0s", apply=True), as_json=False) == 0
    assert await ask(shards[0], "SELECT FROM resources") == []
    assert len(await ask(shards[1], "SELECT FROM resources")) == 20


@pytest.mark.slow(0.5)
async def test_cleanup_finds_the_home_when_a_shard_has_left_the_map(
    make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = [await make_shard(name) for name in "abc"]
    await fill(addresses[0])
    settings = settings_of(tmp_path, *addresses)
    assert [await move(settings, shard_id) for shard_id in "bc"] == [0, 0]
    settings = settings_of(tmp_path, addresses[0], addresses[2], tenants={TENANT_ID: "c"})
    capsys.readouterr()
    for apply in (False, True):
        assert await show(clean_up_tenants(settings, "0s", apply=apply), as_json=True) == 0
        (left,) = answer_of(capsys)["tenants"]
        assert (left["left"], left["home"], left["rows"]) == ("a", "c", 20)
    assert await ask(addresses[0], "SELECT FROM resources") == []


@pytest.fixture
async def redis(group: ProcessGroup) -> RedisServer:
    redis = RedisServer(group)
    await redis.start()
    await redis.ask("SET", ENTRY, "{}")
    return redis


def with_redis(settings: Settings, redis: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": Secret(redis.url)})


@pytest.mark.slow(1.5)
async def test_cache_is_cleared_after_moves(
    shards: list[ShardAddress], tmp_path: Path, redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = with_redis(settings_of(tmp_path, *shards), redis)

    assert await move(settings, "b") == 0
    assert (await redis.ask("EXISTS", ENTRY), await redis.ask("GET", "simplu:epoch")) == (0, "1")
    await redis.ask("SET", ENTRY, "{}")
    assert await move(settings, "b") == 0  # which has moved
    assert await redis.ask("EXISTS", ENTRY) == 0
    redis.kill()
    assert await move(settings, "a") == 0
    assert "the cache was not cleared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tenant", "shard_id", "error"),
    [
        (("no", "body"), "b", "no shard has this tenant"),
        (TENANT, "a", "its home is shard a already"),
        (TENANT, "z", "shard z is unknown; choose one of a, b"),
    ],
)
async def test_move_that_cannot_be_is_refused_with_the_reason(
    shards: list[ShardAddress],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tenant: tuple[str, str],
    shard_id: str,
    error: str,
) -> None:
    settings, request = settings_of(tmp_path, *shards), MoveRequest(*tenant, shard_id)
    with pytest.raises(WorkerError, match=error):
        await move_tenant(settings, request, DEFAULT_BOUNDS, apply=False, as_json=True)
    assert await show(move_tenant(settings, request, DEFAULT_BOUNDS, apply=True, as_json=True), as_json=True) == 1
    assert error in answer_of(capsys)["error"]


@pytest.mark.slow(0.3)
async def test_citrus_that_cannot_be_written_leaves_a_warning(
    shards: list[ShardAddress], capsys: pytest.CaptureFixture[str]
) -> None:
    async with citrus_for_commands(shards, {TENANT_ID: "a"}) as citrus:
        with citrus.door.lying(refused("PUT", 405)):
            assert await move(citrus.settings, "b") == 0
        result = answer_of(capsys)
        assert result["outcome"] == "moved"
        assert result["warning"].startswith("Citrus has no PUT /api/shard/clinic-main")
        assert "keep the old shard" in result["warning"]
        assert citrus.named(TENANT_ID) == "a"
        assert await move(citrus.settings, "b") == 0
        assert citrus.named(TENANT_ID) == "b"
    assert await ask(shards[1], "SELECT state FROM tenants") == [{"state": "active"}]


@pytest.mark.slow(0.3)
async def test_rollback_that_was_stopped_goes_on(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, *shards)
    assert await move(settings, "b") == 0
    await ask(shards[0], "UPDATE transfers SET step = 'committed'")  # as if it was killed before its certificate
    with pytest.raises(PermanentError, match="has not ended; run: simplu-worker tenants move clinic main --to b"):
        await roll_back(settings)
    assert await move(settings, "b") == 0
    await stop_in_copy(roll_back(settings), shards[1], shards[0])
    capsys.readouterr()

    assert await roll_back(settings) == 0
    certificate = answer_of(capsys)["certificate"]
    assert certificate["targetShard"] == "a"
    assert certificate["rowsCopied"] < 20
    assert await ask(shards[0], "SELECT state FROM tenants") == [{"state": "active"}]
    assert await unfinished(*shards) == []
