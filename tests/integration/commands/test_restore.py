from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.postgres.databases import PoolMaker, ShardMaker
from support.postgres.move_cases import TENANT_ID, ask
from support.postgres.snapshots import copy_rows
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant
from support.settings import settings_of

from simplu_worker.commands.output import Answer, show
from simplu_worker.commands.tenants.restore import restore_tenant
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.health import assessment
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.transfers.restoring import RestoreMode


def restore(settings: Settings, export: Path | None = None, *, apply: bool = True) -> Coroutine[Any, Any, Answer]:
    return restore_tenant(settings, TENANT, RestoreMode.AS_OF_BACKUP, export, apply=apply)


def exports(folder: Path) -> list[Path]:
    return list(folder.glob("*.jsonl"))


@pytest.fixture(autouse=True)
def _exports_are_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def shards(make_shard: ShardMaker, make_pool: PoolMaker) -> list[ShardAddress]:
    addresses = [await make_shard("a"), await make_shard("a")]
    live, backup = [await make_pool(address) for address in addresses]
    await add_tenant(live)
    case = TenantCase(live, TENANT)
    await case.apply(*(case.operation("create", key, {}) for key in ("r1", "r2")))
    await copy_rows(live, backup)
    await case.apply(case.operation("delete", "r1"))
    return addresses


def backed(folder: Path, live: ShardAddress, backup: ShardAddress, **more: str) -> Settings:
    return settings_of(folder, live, BACKUP_URL=backup.connection_string, **more)


async def test_plan_is_printed_and_then_carried_out(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = backed(tmp_path, *shards)

    assert await show(restore(settings, apply=False), as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["tenant"], plan["shard"], plan["mode"], plan["goesOn"]) == (TENANT_ID, "a", "as-of-backup", False)
    assert (plan["resourcesInBackup"], plan["resourcesNow"], plan["sinceBackup"]) == (2, 1, {"kinesis": 1})
    assert await ask(shards[0], "SELECT FROM transfers") == []

    assert await show(restore(settings), as_json=False) == 0
    out = capsys.readouterr().out
    (export,) = exports(tmp_path)
    assert export.name.startswith("restore-clinic-main-")
    assert f"{TENANT_ID}: restored on shard a, as-of-backup, epoch 2, 2 rows; 1 resources and 3 operations" in out
    assert str(export) in out
    assert len(await ask(shards[0], "SELECT FROM resources")) == 2

    assert await show(restore(settings, export=tmp_path / "mine.jsonl"), as_json=True) == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    assert (certificate["epoch"], certificate["export"]) == (3, str(tmp_path / "mine.jsonl"))


@pytest.mark.slow(0.3)
async def test_restore_that_was_killed_goes_on_with_its_own_file(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assessment, "RUNNING_S", 4.0)
    await ask(shards[0], "UPDATE tenants SET state = 'fenced', move_token = 4")
    await ask(
        shards[0],
        "INSERT INTO transfers (tenant_id, kind, place, token, step, detail) VALUES ('clinic-main', 'restore', 'there',"
        ' \'4/run\', \'replacing\', \'{"mode": "as-of-backup", "export": "/first", "resources": 7}\')',
    )
    settings = backed(tmp_path, *shards)

    assert await show(restore(settings, apply=False), as_json=False) == 0
    assert "an earlier command has started to overwrite" in capsys.readouterr().err
    assert await show(restore(settings), as_json=True) == 0
    told = capsys.readouterr()
    assert "to restore it, and counts as killed once it has written nothing for 4 s: waiting for that" in told.err
    certificate = json.loads(told.out)["certificate"]
    assert (certificate["export"], certificate["resourcesBefore"]) == ("/first", 7)
    assert exports(tmp_path) == []
    assert await ask(shards[0], "SELECT state FROM tenants") == [{"state": "active"}]


@pytest.mark.slow(0.3)
async def test_restore_that_was_not_confirmed_is_not_repeated(
    shards: list[ShardAddress], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise asyncio.CancelledError

    settings = backed(tmp_path, *shards, REDIS_URL="redis://127.0.0.1:1/0")
    with monkeypatch.context() as patched:
        patched.setattr(ReplicationWaiter, "wait_for_transaction", fail)
        with pytest.raises(asyncio.CancelledError):
            await show(restore(settings), as_json=False)
    printed = capsys.readouterr().err
    assert "the tenant was released and continues" in printed
    assert "the cache was not cleared" in printed
    before = await ask(shards[0], "SELECT *, ctid FROM tenants")

    (export,) = exports(tmp_path)
    for same in (None, export):
        with pytest.raises(PermanentError, match=r"restored with --as-of-backup 0 h ago, .* another file than .*jsonl"):
            await show(restore(settings, same), as_json=False)
    assert await show(restore(settings, apply=False), as_json=False) == 0
    assert "--apply is refused: expected a tenant that was not restored within 24 h" in capsys.readouterr().err
    assert await ask(shards[0], "SELECT *, ctid FROM tenants") == before

    assert await show(restore(settings, export=tmp_path / "again.jsonl"), as_json=False) == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("DELETE FROM tenants", "expected the tenant in the backup, got none"),
        ("UPDATE shard_meta SET shard_id = 'b'", "leads to the database of shard b"),
    ],
)
async def test_restore_that_cannot_be_is_refused_before_any_write(
    shards: list[ShardAddress], tmp_path: Path, change: str, error: str
) -> None:
    await ask(shards[1], change)
    before = await ask(shards[0], "SELECT *, ctid FROM tenants")

    with pytest.raises(WorkerError, match=error):
        await show(restore(backed(tmp_path, *shards)), as_json=True)

    assert await ask(shards[0], "SELECT *, ctid FROM tenants") == before
    assert exports(tmp_path) == []
