"""A tenant catches up after its restore: a reader reads the stream again, and every operation takes effect once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.postgres.databases import ShardMaker
from support.postgres.snapshots import copy_rows
from support.postgres.tenant_cases import fetch
from support.reader_world import World, chain, eventually, logs, looked_after, mixed, open_world, record

from simplu_worker.consumers.kinesis.fleet import position_sync
from simplu_worker.consumers.kinesis.recovery import shard_positions
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.transfers.restoring import Restore, RestoreMode, Restorer

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(3)]
FIRST, COUNT = 2, 42  # of operations before the backup, and since; the last one leaves the resource


@pytest.fixture
async def world(endpoint_url: str, make_shard: ShardMaker) -> AsyncIterator[World]:
    async with open_world(endpoint_url, make_shard) as world:
        for tenant in ("a-x", "b-x"):
            await world.provision(tenant, "shard-1")
        yield world


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_sync, "INTERVAL_S", 0.1)
    monkeypatch.setattr(shard_positions, "WRITE_AFTER_S", 0.2)


async def data_of(pool: ShardPool) -> list[dict[str, object]]:
    query = 'SELECT id, "resourceId", data::text AS data FROM resources WHERE "resourceName" = \'class\' ORDER BY 1, 2'
    return await fetch(pool, query)


@pytest.mark.parametrize("mode", RestoreMode)
async def test_restored_tenant_and_its_neighbour_have_each_operation_once(
    world: World, make_shard: ShardMaker, tmp_path: Path, mode: RestoreMode
) -> None:
    live = await world.shard("shard-1")
    async with world.reading() as reader, looked_after(world, reader), Pools(size=2) as backups:
        await world.put(*mixed(chain("a-x", FIRST), chain("b-x", FIRST)))
        await logs(live, "a-x", FIRST)
        await logs(live, "b-x", FIRST)
        backup = backups.ensure_pool(await make_shard("shard-1"))
        await copy_rows(live, backup)
        as_of_backup = await data_of(backup)
        await world.put(*mixed(chain("a-x", COUNT, first=FIRST), chain("b-x", COUNT, first=FIRST)))
        await logs(live, "a-x", COUNT + FIRST)
        await logs(live, "b-x", COUNT + FIRST)
        before = await data_of(live)
        await fetch(live, "UPDATE resources SET data = '{}' WHERE id = 'a-x'")  # by hand

        restore = Restore("a-x", "shard-1", mode, tmp_path / "export", timedelta(days=1))
        commits = ReplicationWaiter(world.pools)
        await Restorer(world.locator, world.pools, backup, commits, restore, show=lambda _: None).run()
        if mode is RestoreMode.CATCH_UP:
            await logs(live, "a-x", COUNT + FIRST)
            assert await data_of(live) == before
        else:
            own = [row for row in as_of_backup if row["id"] == "a-x"]
            assert [row for row in await data_of(live) if row["id"] == "a-x"] == own
        await world.put(record("update", "a-x", 100), *chain("b-x", 2, first=COUNT + FIRST))
        await logs(live, "b-x", COUNT + FIRST + 2)
        await logs(live, "a-x", COUNT + FIRST + 1)
        await eventually(lambda: not reader.view.held_status())
    assert await world.letters() == []
