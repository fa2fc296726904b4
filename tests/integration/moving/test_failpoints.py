"""A move is struck at each boundary of its phases: its mover, or the server of one of the shards, is killed with -9."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.moves.failpoints import POINTS, set_failpoint
from support.moves.killed_movers import KilledMovers, move, running_movers, settings_of
from support.moves.world import LOGGED, ROWS, TENANT_ID
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant, fetch
from support.slow import slow_after

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.health import assessment
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.settling import MoveSettler

FENCED_OR_LEFT = [point for point, states in POINTS.items() if states[0] == "fenced" or states == ("moved", "ready")]


class Struck:
    def __init__(self, pools: Pools, path: Path, addresses: list[ShardAddress]) -> None:
        self.pools = pools
        self.path = path
        self.cases = {one.shard_id: TenantCase(pools.ensure_pool(one), TENANT) for one in addresses}
        listed = [{"shardId": one.shard_id, "connectionString": one.connection_string} for one in addresses]
        path.write_text(json.dumps({"shards": listed, "tenants": {TENANT_ID: "a"}}))
        self.settings = settings_of(path)
        self.expected: tuple[Any, Any] = ({}, {})

    async def fill(self) -> None:
        pool = self.cases["a"].pool
        await add_tenant(pool)
        await fetch(pool, ROWS, TENANT_ID, 250)
        await fetch(pool, LOGGED, TENANT_ID, 50)
        await self.note_content("a")

    async def note_content(self, shard_id: str) -> None:
        """Note what the tenant has to have in the end: what it has now on its home."""
        self.expected = await self.cases[shard_id].resources(), await self.cases[shard_id].log()

    async def states(self) -> tuple[str, str]:
        found = []
        for case in self.cases.values():
            rows = await fetch(case.pool, "SELECT state FROM tenants WHERE id = $1", TENANT_ID)
            found.append(rows[0]["state"] if rows else "")
        return found[0], found[1]

    async def write_like_a_worker(self) -> None:
        for shard_id, state in zip(self.cases, await self.states(), strict=True):
            case = self.cases[shard_id]
            if state == "active":
                await case.apply(case.operation("update", "17", {"n": "late"}), case.operation("delete", "18"))
                await self.note_content(shard_id)

    async def assert_moved(self, printed: str) -> None:
        """Every row is on the target, once, and no fence stays; the command has shown it, and the map names it."""
        result = json.loads(printed.splitlines()[-1])
        assert (result["outcome"], "warning" in result) == ("moved", False), result
        compared = result["certificate"]["comparison"]
        assert compared["source"] == compared["target"]
        assert await self.states() == ("moved", "active")
        assert (await self.cases["b"].resources(), await self.cases["b"].log()) == self.expected
        for case in self.cases.values():
            assert await fetch(case.pool, "SELECT FROM tenants WHERE fenced_until IS NOT NULL") == []
        assert await fetch(
            self.cases["a"].pool, "SELECT step, detail->>'verdict' AS verdict FROM transfers WHERE kind = 'departure'"
        ) == [{"step": "done", "verdict": "equal"}]
        assert json.loads(self.path.read_text())["tenants"].get(TENANT_ID, "b") == "b"


@pytest.fixture(autouse=True)
def _killed_movers_count_as_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "RUNNING_S", 0.0)


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def movers() -> Iterator[KilledMovers]:
    with running_movers() as movers:
        yield movers


@pytest.fixture
async def struck(make_shard: ShardMaker, tmp_path: Path) -> AsyncIterator[Struck]:
    async with Pools(size=4) as pools:
        struck = Struck(pools, tmp_path / "map.json", [await make_shard("a"), await make_shard("b")])
        await struck.fill()
        yield struck


@pytest.mark.parametrize("point", slow_after(0, POINTS))
async def test_same_command_ends_a_move_whose_mover_was_killed(
    struck: Struck, movers: KilledMovers, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    assert await movers.move(struck.path, "b", point) == -signal.SIGKILL
    assert await struck.states() == POINTS[point]
    await struck.write_like_a_worker()

    assert await move(struck.settings, "b") == 0
    await struck.assert_moved(capsys.readouterr().out)


@pytest.mark.parametrize("point", slow_after(0, FENCED_OR_LEFT))
async def test_worker_ends_the_pause_of_a_move_whose_mover_was_killed(
    struck: Struck, movers: KilledMovers, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    assert await movers.move(struck.path, "b", point) == -signal.SIGKILL
    settler = MoveSettler(struck.pools, ReplicationWaiter(struck.pools))
    has_left = POINTS[point] == ("moved", "ready")

    async def settle() -> bool:
        if has_left:
            return await settler.activate_left("a", "b", TENANT_ID)
        return await settler.end_overdue_fence("a", TENANT_ID)

    assert await poll_until(settle, within_s=60)
    assert await struck.states() == (("moved", "active") if has_left else ("active", POINTS[point][1]))
    await struck.write_like_a_worker()

    assert await move(struck.settings, "b") == 0
    await struck.assert_moved(capsys.readouterr().out)


@pytest.mark.parametrize("killed", ["a", "b"])
@pytest.mark.parametrize("point", slow_after(0, POINTS))
async def test_mover_goes_on_when_a_server_was_killed_and_started_again(
    make_shard: ShardMaker,
    breakable_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed: str,
    point: str,
) -> None:
    monkeypatch.setattr("simplu_worker.transfers.engine.PAUSE_S", 0.05)
    addresses = [
        await (copy_shard(breakable_server, shard_id) if shard_id == killed else make_shard(shard_id))
        for shard_id in ("a", "b")
    ]
    kills = 0

    async def kill_and_start(_: object) -> None:
        nonlocal kills
        if not kills:
            kills += 1
            await breakable_server.kill()
            await breakable_server.start()

    set_failpoint(point, kill_and_start, monkeypatch.setattr)
    async with Pools(size=4) as pools:
        struck = Struck(pools, tmp_path / "map.json", addresses)
        await struck.fill()
        assert await move(struck.settings, "b") == 0
        assert kills == 1
        await struck.cases[killed].pool.probe()  # its connections are those of before
        await struck.assert_moved(capsys.readouterr().out)
