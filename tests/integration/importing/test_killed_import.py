"""A `tenants import` that meets a command that was killed in the middle of a copy, or runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from support.postgres.databases import ShardMaker, execute
from support.postgres.move_cases import ask
from support.restaurants import make_restaurants, queries_text, row_count
from support.settings import settings_of

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.commands.output import show
from simplu_worker.commands.tenants.importing import import_tenants
from simplu_worker.config.settings import Settings
from simplu_worker.shards.health import assessment
from simplu_worker.transfers.importing.importer import ImportOptions

STATES = "SELECT state, step FROM tenants JOIN transfers ON tenant_id = id"


async def apply(settings: Settings, queries: Path) -> int:
    options = ImportOptions("restaurant")
    return await show(import_tenants(settings, queries, options, apply=True, follow=False), as_json=False)


@pytest.mark.slow(8)
async def test_import_waits_for_a_killed_command_and_ends_its_work(
    make_shard: ShardMaker,
    postgres_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shard = await make_shard("a")
    url = await make_restaurants(postgres_server, "killed_import", restaurants=2, orders=10)
    settings = settings_of(tmp_path, shard, IMPORT_SOURCE_URL=url)
    (queries := tmp_path / "restaurants.sql").write_text(queries_text())
    options = ("--business-type", "restaurant", "--parallel", "1", "--max-rows-per-second", "3", "--apply")
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "tenants", "import", str(queries), *options),
        env={"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(tmp_path / "map.json"), "IMPORT_SOURCE_URL": url},
        stdout=asyncio.subprocess.DEVNULL,
    )

    async def is_at_work() -> bool:
        return bool(await ask(shard, "SELECT FROM transfers WHERE detail ? 'seenAt'"))

    assert await poll_until(is_at_work, within_s=60)
    assert await apply(settings, queries) == 1
    assert "another command imports it; run this again once that has ended" in capsys.readouterr().out
    first.send_signal(signal.SIGKILL)
    await first.wait()
    assert {"state": "incoming", "step": "open"} in await ask(shard, STATES)
    await execute(url, "DELETE FROM order_items WHERE line = 3")  # of one tenant: the run above has the other

    monkeypatch.setattr(assessment, "RUNNING_S", 4.0)
    await ask(shard, "UPDATE transfers SET updated_at = clock_timestamp() WHERE step = 'open'")
    assert await apply(settings, queries) == 0
    assert "to import it, and counts as killed once it has written nothing for 4 s" in capsys.readouterr().err
    assert await ask(shard, STATES) == [{"state": "active", "step": "done"}] * 2
    counted = await ask(shard, "SELECT count(*) FROM resources WHERE \"resourceName\" <> 'settings'")
    assert counted == [{"count": row_count(2, 10) - 10}]
