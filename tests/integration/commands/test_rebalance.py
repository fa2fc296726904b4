from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.citrus.for_commands import citrus_for_commands, cut, refused
from support.moves.killed_movers import running_movers
from support.postgres.databases import ShardMaker
from support.postgres.log_rows import made_up_rows
from support.postgres.move_cases import (
    TENANT_ID,
    ask,
    copy_held_up,
    fill,
    is_arriving_on,
    move,
    pins_of,
    roll_back,
    settings_of,
    stop_in_copy,
    unfinished,
    write_map,
)

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.output import show
from simplu_worker.commands.shards.rebalance import Balance, Weight, drain_shard, rebalance_shards, undo_drain
from simplu_worker.commands.shards.show import list_shards
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.health import assessment
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_map import ShardMap, parse_shard_map
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
from simplu_worker.transfers import QUERIES, engine
from simplu_worker.transfers.importing.copying import find_shard_problem

OPERATIONS = made_up_rows(
    "generate_series(1, $2::int) AS number", tenant_id="$1", request_id="number::text", resource_id="number::text"
)


async def make_shards(make_shard: ShardMaker, names: str) -> list[ShardAddress]:
    return [await make_shard(name) for name in names]


async def rebalance(settings: Settings, balance: Balance | None = None, *, apply: bool = False) -> int:
    return await rebalance_shards(settings, balance or Balance(), MoveTerms(), apply=apply, as_json=True)


async def drain(settings: Settings, shard_id: str, *, apply: bool = False) -> int:
    return await drain_shard(settings, shard_id, MoveTerms(), apply=apply, as_json=True)


def printed(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def moves_of(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["tenant"], one["sourceShard"], one["targetShard"]) for one in plan["plan"]]


def unpinned(folder: Path) -> ShardMap:
    return parse_shard_map((folder / "map.json").read_bytes(), ()).without_pins()


@pytest.mark.slow
async def test_shard_is_drained(shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path, *shards)

    assert await drain(settings, "a") == 0
    (plan,) = printed(capsys)
    assert (plan["before"], {name: count for name, count in plan["after"].items() if count}) == ({"a": 1}, {"b": 1})
    assert moves_of(plan) == [(TENANT_ID, "a", "b")]
    assert plan["removable"] is False
    assert plan["keptBy"] == ["1 tenants are still there, such as clinic-main: keep it"]

    assert await drain(settings, "a", apply=True) == 0
    _, result, verdict = printed(capsys)
    assert (result["outcome"], verdict) == ("moved", {"shard": "a", "removable": True, "keptBy": []})
    assert await ask(shards[1], "SELECT state FROM tenants") == [{"state": "active"}]
    assert await drain_shard(settings, "a", MoveTerms(), apply=False, as_json=False) == 0
    assert "it can be retired in the map or Citrus" in capsys.readouterr().err


@pytest.mark.slow(0.3)
async def test_shard_is_kept_while_citrus_names_it(
    shards: list[ShardAddress], capsys: pytest.CaptureFixture[str]
) -> None:
    async with citrus_for_commands(shards, {TENANT_ID: "a"}) as citrus:
        with citrus.door.lying(refused("PUT", 405)):
            assert await drain(citrus.settings, "a", apply=True) == 1
            verdict = printed(capsys)[-1]
            assert verdict["removable"] is False
            assert "1 tenants have left it, and are still looked for there" in verdict["keptBy"][0]
        with citrus.door.lying(cut("GET")), pytest.raises(RetryableError, match="Citrus shards_health"):
            await drain(citrus.settings, "a")
        citrus.server.registry.place(TENANT_ID, citrus.server.registry.shards["b"])
        capsys.readouterr()
        assert await drain(citrus.settings, "a") == 0
        assert printed(capsys)[0]["removable"] is True


@pytest.mark.slow(2)
async def test_shard_that_was_added_gets_the_tenants_that_belong_there(
    make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = await make_shards(make_shard, "abcde")
    write_map(tmp_path, addresses[:4], {})
    shorter = unpinned(tmp_path)
    tenants = [("clinic", str(number)) for number in range(40)]
    homes = {"-".join(tenant): shorter.shard_of("-".join(tenant)).shard_id for tenant in tenants}
    for address in addresses[:4]:
        there = [tenant for tenant in tenants if homes["-".join(tenant)] == address.shard_id]
        await fill(address, *there, rows=1)
    settings = settings_of(tmp_path, *addresses, tenants=homes)
    longer = unpinned(tmp_path)
    expected = {(name, home, "e") for name, home in homes.items() if longer.shard_of(name).shard_id == "e"}
    assert 4 <= len(expected) <= 12

    assert await rebalance(settings, Balance(to=("a", "b"))) == 0
    assert moves_of(printed(capsys)[0]) == []
    assert await rebalance(settings) == 0
    assert {*moves_of(printed(capsys)[0])} == expected

    assert await rebalance(settings, apply=True) == 0
    plan, *results = printed(capsys)
    assert Counter(one["outcome"] for one in results) == {"moved": len(expected)}
    assert plan["after"]["e"] == len(expected)
    assert pins_of(tmp_path).keys() == homes.keys() - {name for name, _, _ in expected}
    assert await rebalance(settings) == 0
    assert moves_of(printed(capsys)[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("by", Weight)
async def test_shards_are_balanced_by_a_measure(
    make_shard: ShardMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: Weight
) -> None:
    addresses = await make_shards(make_shard, "ab")
    tenants = [("clinic", str(number)) for number in range(2)]
    await fill(addresses[0], *tenants, rows=10)
    names = ["-".join(tenant) for tenant in tenants]
    for name in names:
        await ask(addresses[0], OPERATIONS, name, 3)
    settings = settings_of(tmp_path, *addresses, tenants=dict.fromkeys(names, "a"))

    assert await rebalance(settings, Balance(by)) == 0
    (plan,) = printed(capsys)
    assert moves_of(plan) == [(names[0], "a", "b")]
    assert plan["before"] == {"a": 2 * plan["plan"][0]["weight"]}
    assert plan["plan"][0]["weight"] == {Weight.ROWS: 10, Weight.LOAD: 3}.get(by, plan["after"]["b"])
    assert plan["after"]["a"] == plan["after"]["b"] > 0


@pytest.mark.slow(0.3)
async def test_shard_that_is_full_for_citrus_gets_nothing(
    make_shard: ShardMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = await make_shards(make_shard, "abc")
    tenants = [(f"clinic{number}", "main") for number in range(4)]
    await fill(addresses[0], *tenants, rows=1)
    async with citrus_for_commands(addresses, {"-".join(tenant): "a" for tenant in tenants}) as citrus:
        for shard_id in "ab":
            citrus.server.registry.shards[shard_id].filled_at = 0
        assert await rebalance(citrus.settings) == 0
        assert [target for _, _, target in moves_of(printed(capsys)[0])] == ["c", "c"]
        assert await drain(citrus.settings, "a") == 0
        assert [target for _, _, target in moves_of(printed(capsys)[0])] == ["c"] * 4


@pytest.mark.slow(0.3)
async def test_drain_moves_nothing_unless_all_tenants_have_a_place(
    make_shard: ShardMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = await make_shards(make_shard, "ab")
    tenants = [(f"clinic{number}", "main") for number in range(3)]
    await fill(addresses[0], *tenants, rows=1)
    homes = {"-".join(tenant): "a" for tenant in tenants}
    async with citrus_for_commands(addresses, homes, limits={"a": 10, "b": 2}) as citrus:
        for apply in (False, True):
            assert await drain(citrus.settings, "a", apply=apply) == 1
            (plan,) = printed(capsys)
            assert len(moves_of(plan)) == 2
            assert plan["refused"] == {"clinic2-main": "expected a shard with room and its type, got none; add one"}
        assert await ask(addresses[1], "SELECT FROM tenants") == []
        assert await drain_shard(citrus.settings, "a", MoveTerms(), apply=True, as_json=False) == 1
        assert "nothing moves before all of its tenants can" in capsys.readouterr().err


@pytest.mark.slow(0.3)
@pytest.mark.parametrize("by", [Weight.ROWS, Weight.BYTES])
async def test_weights_of_a_large_shard_are_of_a_part_of_its_pages(make_shard: ShardMaker, by: Weight) -> None:
    address = await make_shard("a")
    await fill(address, ("clinic", "large"), ("clinic", "small"), rows=5000)
    await ask(address, "ANALYZE resources")
    query = QUERIES["weigh_resources"]
    whole = {row["id"]: row[by] for row in await ask(address, query, 10**6)}
    part = {row["id"]: row[by] for row in await ask(address, query, 2500)}
    assert whole.keys() == {"clinic-large", "clinic-small"}
    assert sum(part.values()) == pytest.approx(sum(whole.values()), rel=0.9)


@pytest.mark.slow(1)
async def test_drained_shard_takes_no_tenants_until_its_undo(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, *shards, tenants={TENANT_ID: "a", "new-one": "a"})
    assert await drain(settings, "a", apply=True) == 0
    write_map(tmp_path, shards, {TENANT_ID: "a", "new-one": "a"})  # as if it were where it belongs
    capsys.readouterr()

    assert await drain(settings, "b", apply=True) == 1
    (plan,) = printed(capsys)
    assert (plan["plan"], list(plan["refused"]), plan["drained"]) == ([], [TENANT_ID], ["a"])
    assert await rebalance(settings) == 0
    assert printed(capsys)[0]["plan"] == []
    assert await show(list_shards(settings), as_json=False) == 0
    assert "drained: takes no tenants" in capsys.readouterr().out
    with pytest.raises(PermanentError, match="shards drain a --undo --apply"):
        await rebalance(settings, Balance(to=("a",)))
    new = ProvisionRequest("new", "one", "dental", datetime(2026, 1, 31, tzinfo=UTC))
    async with open_shards(settings) as opened:
        with pytest.raises(RetryableError, match="was drained, and takes no tenants"):
            await opened.provisioner.provision(new)
        problem = await find_shard_problem(opened.pools.ensure_pool(shards[0]), ["dental"])
        assert "was drained, and takes no tenants" in str(problem)  # nor an import

    for apply in (False, True):
        capsys.readouterr()
        assert await show(undo_drain(settings, "a", apply=apply), as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == {"shard": "a", "takesTenants": apply}
    async with open_shards(settings) as opened:
        assert await opened.provisioner.provision(new) is ProvisionResult.PROVISIONED


COMMANDS: dict[str, Callable[[Settings], Awaitable[int]]] = {
    "rebalance": lambda settings: rebalance(settings, apply=True),
    "drain": lambda settings: drain(settings, "a", apply=True),
    "move": lambda settings: move(settings, "b"),
    "rollback": roll_back,
}


@pytest.mark.slow(0.3)
async def test_move_of_a_command_that_runs_is_left_to_it(
    shards: list[ShardAddress], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "NOTE_INTERVAL_S", 0.05)
    settings = settings_of(tmp_path, *shards, tenants={TENANT_ID: "b"})

    async with copy_held_up(shards[0]):
        running = asyncio.create_task(move(settings, "b"))
        assert await is_arriving_on(shards[1])
        is_left = "another command moves it; run this again once that has ended"
        for name in ("rebalance", "drain", "move"):
            assert await COMMANDS[name](settings) == 1
            results = [one for one in printed(capsys) if "outcome" in one]
            assert [one["outcome"] for one in results] == ["failed"]
            assert is_left in results[0]["error"]
        with pytest.raises(RetryableError, match=is_left):
            await roll_back(settings)
    assert await running == 0
    assert await ask(shards[1], "SELECT state FROM tenants") == [{"state": "active"}]


@pytest.mark.slow(1)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_move_whose_command_was_killed_goes_on(
    shards: list[ShardAddress],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[Settings], Awaitable[int]],
) -> None:
    """Killed with -9, it counts as killed once it has written nothing for a while, for which each command waits."""
    monkeypatch.setattr(assessment, "RUNNING_S", 4.0)
    settings = settings_of(tmp_path, *shards)
    with running_movers() as movers:
        assert await movers.move(tmp_path / "map.json", "b", "after _copy") == -signal.SIGKILL
    await ask(shards[0], "UPDATE transfers SET updated_at = clock_timestamp()")  # however slow this machine is
    capsys.readouterr()

    assert await command(settings) == 0
    told = capsys.readouterr()
    assert f'"{"undone" if command is roll_back else "moved"}"' in told.out
    assert "counts as killed once it has written nothing for 4 s: waiting for that" in told.err
    assert await unfinished(*shards) == []


@pytest.mark.slow(0.3)
async def test_shard_is_kept_until_the_move_to_it_that_has_begun_is_taken_back(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, *shards)
    await stop_in_copy(move(settings, "b"), *shards)
    assert await drain(settings, "b", apply=True) == 1
    capsys.readouterr()
    assert await roll_back(settings, apply=False) == 0
    plan = json.loads(capsys.readouterr().out)["rollback"]
    assert (plan["shard"], plan["deletesCopiesOn"], plan["rowsDeleted"]) == ("a", ["b"], 0)
    assert await roll_back(settings, stay=True) == 0
    capsys.readouterr()
    assert await drain(settings, "b", apply=True) == 0
    plan, verdict = printed(capsys)
    assert (moves_of(plan), verdict["removable"]) == ([], True)
    assert await unfinished(*shards) == []
