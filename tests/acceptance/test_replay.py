"""`replay` beside a worker: lost operations are applied again, of all tenants or one; a dry run changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from support.postgres.databases import execute
from support.runbook.scene import Scene
from support.runbook.world import open_world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(10)]

TENANTS = ("smile-berlin", "fit-oslo")
LOSE_SQL = """
DELETE FROM resources WHERE id = '{tenant}' AND "resourceName" = 'notes';
DELETE FROM operations WHERE tenant_id = '{tenant}';
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Run two shards with a tenant each, and a worker that has applied three operations of each."""
    async with open_world() as world, Scene(world, "replay") as scene:
        await scene.deploy("db-1", "db-2")
        await scene.wait_until_applied()
        yield scene


async def lose(scene: Scene) -> None:
    """Remove the operations of both tenants, with their effects, so that no worker notices."""
    for host, tenant in zip(("db-1", "db-2"), TENANTS, strict=True):
        await execute(scene.servers[host].url, LOSE_SQL.format(tenant=tenant))


async def replay(scene: Scene, options: str = "", *, status: int = 0) -> dict[str, Any]:
    """Return what a replay of the last hour reports, with *options*."""
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    found, out = await scene.run_lines(
        f"simplu-worker replay --from {since} --json --env-file worker.env {options} 2>err"
    )
    assert found == status, (out, (scene.folder / "err").read_text())
    answer: dict[str, Any] = json.loads(out)
    return answer


async def test_replay_applies_what_a_shard_lacks_and_a_dry_run_counts_it(scene: Scene) -> None:
    """First nothing is missing; then a tenant's operations come back, then the other's, each once."""
    assert (await replay(scene, "--dry-run"))["outcomes"] == {"duplicate": 6}
    await lose(scene)
    planned = await replay(scene, "--dry-run")
    assert (planned["dryRun"], planned["records"], planned["outcomes"]) == (True, 6, {"would_apply": 6})
    assert (await replay(scene, "--dry-run --tenant fit oslo"))["outcomes"] == {"would_apply": 3}
    assert (await replay(scene, "--tenant fit oslo"))["outcomes"] == {"succeeded": 3}
    assert (await replay(scene))["outcomes"] == {"succeeded": 3, "duplicate": 3}
    await scene.wait_until_applied()


async def test_replay_ends_with_the_records_of_its_range(scene: Scene) -> None:
    """A record that arrived at the end of the range or later is not read; the end must be behind the start."""
    now = datetime.now(UTC)
    assert (await replay(scene, f"--to {(now - timedelta(minutes=59)).isoformat()}"))["outcomes"] == {}
    assert (await replay(scene, f"--to {now.isoformat()}"))["outcomes"] == {"duplicate": 6}
    status, out = await scene.run_lines("simplu-worker replay --from 2026-01-02 --to 2026-01-01 --env-file worker.env")
    assert (status, "--to: expected a time after --from" in out) == (2, True)


async def test_replay_leaves_the_tenants_of_a_shard_that_is_down_and_names_them(scene: Scene) -> None:
    """The others are applied. Its end is 1, and the next replay applies the rest."""
    await lose(scene)
    await scene.servers["db-1"].kill()
    try:
        answer = await replay(scene, status=1)
    finally:
        await scene.servers["db-1"].start()
    assert answer["outcomes"] == {"succeeded": 3}
    assert (answer["leftOperations"], list(answer["left"])) == (3, ["tenant smile-berlin"])
    assert (await replay(scene))["outcomes"] == {"succeeded": 3, "duplicate": 3}
    await scene.wait_until_applied()
