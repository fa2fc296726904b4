"""`check` and many shards that are databases of one server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support.settings import settings_in

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.check.checking import SHARDS_AT_ONCE, DependencyChecks, sparing

SHARDS = 3 * SHARDS_AT_ONCE
ROOM = 2 * SHARDS_AT_ONCE  # connections of the server: backends end some time after their connections
WELL = "empty: the schema is created with the first tenant"


@pytest.mark.slow(4)
async def test_check_leaves_room_on_a_server_of_many_shards(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        (hba := group.directory / "hba.conf").write_text("host all all 127.0.0.0/8 trust\n")
        settings = {"hba_file": str(hba), "listen_addresses": "*", "max_connections": str(ROOM)}
        server = PostgresServer(group, PostgresPrograms.find(group.directory), database="many", settings=settings)
        await server.start()
        urls = [server.url.replace("127.0.0.1", f"127.0.{number}.1") for number in range(SHARDS)]
        shards = [{"shardId": f"shard-{number}", "connectionString": url} for number, url in enumerate(urls)]
        (path := tmp_path / "map.json").write_text(json.dumps({"shards": shards}))
        checks = DependencyChecks(settings_in({"SHARD_MAP_FILE": str(path), "KINESIS_STREAM_NAME": "operations"}))
        async with open_shards(sparing(checks._settings)) as opened:
            answers = await checks.check_shards(opened)
            open_count = sum(pool.counts()["open"] for pool in opened.pools.by_shard_id().values())
    assert Counter((one.status, one.result.rpartition(", ")[2]) for one in answers) == {("ok", WELL): SHARDS}
    assert open_count <= SHARDS_AT_ONCE
