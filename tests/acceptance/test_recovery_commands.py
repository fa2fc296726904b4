"""`replay` and `tenants restore`, beside a worker and its shards."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from support.postgres.databases import execute
from support.runbook.scene import Scene
from support.runbook.world import open_world

from simplu_local.processes.loopback import poll_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(10)]

TENANTS = ("smile-berlin", "fit-oslo")
LOSE_SQL = """
DELETE FROM resources WHERE id = '{tenant}' AND "resourceName" = 'notes';
DELETE FROM log_rows WHERE tenant_no = (SELECT number FROM tenants WHERE id = '{tenant}');
"""

ROWS_SQL = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
SELECT $1, 'dental', 'scans', number::text, jsonb_build_object('n', number), now(), now()
FROM generate_series(1, 40000) AS number
"""
CONTENT_SQL = """
SELECT
    count(*) FILTER (WHERE "resourceName" = 'notes') AS notes,
    md5(string_agg(concat("resourceId", data::text), ',' ORDER BY "resourceId")
        FILTER (WHERE "resourceName" = 'scans')) AS scans
FROM resources WHERE id = $1
"""
RESTORE_SQL = """
SELECT state, epoch, (SELECT step FROM restores WHERE tenant_id = $1) AS step FROM tenants WHERE id = $1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Run two shards with a tenant each, and a worker that has applied three operations of each."""
    async with open_world() as world, Scene(world, "recovery") as scene:
        await scene.deploy("db-1", "db-2")
        await scene.wait_until_applied()
        yield scene


async def lose_operations(scene: Scene) -> None:
    """Remove the operations of both tenants, with their effects, so that no worker notices."""
    for host, tenant in zip(("db-1", "db-2"), TENANTS, strict=True):
        await execute(scene.servers[host].url, LOSE_SQL.format(tenant=tenant))


async def replay(scene: Scene, options: str = "", *, status: int = 0, hours: int = 1) -> dict[str, Any]:
    since = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    found, out = await scene.run_lines(
        f"simplu-worker replay --since {since} --json --env-file worker.env {options} 2>err"
    )
    assert found == status, (out, (scene.folder / "err").read_text())
    answer: dict[str, Any] = json.loads(out)
    return answer


async def test_replay_applies_what_a_shard_lacks_as_planned(scene: Scene) -> None:
    assert (await replay(scene))["outcomes"] == {"duplicate": 6}
    await lose_operations(scene)
    planned = await replay(scene)
    assert (planned["applied"], planned["records"], planned["outcomes"]) == (False, 6, {"would_apply": 6})
    assert (await replay(scene, "--tenant fit oslo"))["outcomes"] == {"would_apply": 3}
    assert (await replay(scene, "--tenant fit oslo --apply"))["outcomes"] == {"succeeded": 3}
    assert (await replay(scene, "--apply"))["outcomes"] == {"succeeded": 3, "duplicate": 3}
    await scene.wait_until_applied()


async def ask(scene: Scene, query: str) -> asyncpg.Record:
    connection = await asyncpg.connect(scene.servers["db-1"].url)
    try:
        row = await connection.fetchrow(query, TENANTS[0])
        assert row is not None
        return row
    finally:
        await connection.close()


async def start_restore(scene: Scene, export: str) -> asyncio.subprocess.Process:
    command = ["tenants", "restore", *TENANTS[0].split("-"), "--catch-up", "--apply", "--export", export, "--json"]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", *command),
        cwd=scene.folder,
        env={**scene.shell, **scene.environment, "BACKUP_URL": scene.backups["db-1"].url},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_restore_that_is_killed_while_it_replaces_rows_goes_on(scene: Scene) -> None:
    await execute(scene.servers["db-1"].url, ROWS_SQL, TENANTS[0])  # so many that the copy can be caught
    await scene.back_up("db-1")
    await scene.backups["db-1"].start()
    await scene.send(TENANTS[0], 20)
    await scene.wait_until_applied()
    before, epoch = await ask(scene, CONTENT_SQL), (await ask(scene, RESTORE_SQL))["epoch"]
    await execute(scene.servers["db-1"].url, "DELETE FROM resources WHERE \"resourceName\" = 'scans'")
    process = await start_restore(scene, "first.jsonl")

    async def is_replacing() -> bool:
        row = await ask(scene, RESTORE_SQL)
        return bool(row["state"] == "fenced" and row["step"] == "replacing")

    assert await poll_until(is_replacing, within_s=60)
    process.kill()
    await process.wait()
    assert (await ask(scene, RESTORE_SQL))["state"] == "fenced"
    for tenant in TENANTS:
        await scene.send(tenant, 3)

    process = await start_restore(scene, "unused.jsonl")
    out, _ = await process.communicate()
    assert process.returncode == 0
    await scene.wait_until_applied()
    certificate = json.loads(out)["certificate"]
    assert (certificate["export"], certificate["epoch"]) == (str(scene.folder / "first.jsonl"), epoch + 1)
    assert not (scene.folder / "unused.jsonl").exists()
    after = await ask(scene, CONTENT_SQL)
    assert (after["scans"], after["notes"]) == (before["scans"], before["notes"] + 3)
    await scene.backups["db-1"].stop()
